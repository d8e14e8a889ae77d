"""What a person at a terminal meets: near misses, terminals that lack characters, colours, times, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import BAD, auditor


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "net.py").write_text(BAD)
    return tmp_path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "auditor", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("chek", "net.py"), "did you mean 'check'?"),
        (("check", "--output-format", "jsn"), "did you mean 'json'?"),
        (("check", "--select", "MOD04"), "did you mean 'MOD004'?"),
        (("check", "--statistic"), "--statistics"),
        (("zzz",), "there are audit, "),
    ],
)
def test_near_misses(arguments: tuple[str, ...], meant: str) -> None:
    result = auditor(*arguments)
    assert result.exit_code == 2
    assert meant in result.output
    assert "Traceback" not in result.output


def test_a_terminal_without_unicode_gets_its_own_words() -> None:
    done = run("rule", "NRM002", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert b"1.22 / sqrtN" in done.stdout
    assert b"?" not in done.stdout


def test_colours_only_where_they_are_wanted() -> None:
    assert b"\x1b[" not in run("check", "--isolated", "net.py").stdout
    assert b"\x1b[" in run("check", "--isolated", "net.py", FORCE_COLOR="1").stdout
    assert b"\x1b[" not in run("check", "--isolated", "net.py", FORCE_COLOR="1", NO_COLOR="1").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_the_summary_says_how_long_it_took_on_a_terminal_only() -> None:
    import pty

    assert not run("check", "--isolated", "net.py").stdout.rstrip().endswith(b" s")
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "auditor", "check", "--isolated", "net.py"]
    with subprocess.Popen(command, stdout=secondary, stderr=secondary, env={**os.environ, "NO_COLOR": "1"}) as process:
        process.wait(timeout=300)
        output = os.read(primary, 65536).decode()
    os.close(primary)
    os.close(secondary)
    assert output.rstrip().endswith(" s")
    assert "Found 1 error in 1 file" in output


def test_shells_complete_commands_and_options() -> None:
    words = run(_AUDITOR_COMPLETE="bash_complete", COMP_WORDS="auditor che", COMP_CWORD="1").stdout
    assert b"check" in words
    words = run(_AUDITOR_COMPLETE="bash_complete", COMP_WORDS="auditor check --stat", COMP_CWORD="2").stdout
    assert b"--statistics" in words
