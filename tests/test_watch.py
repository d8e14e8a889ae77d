"""`--watch`: runs again when something changes, whatever a run ends in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from auditor.cli.watch import is_ours
from tests.cli import BAD, FIXED, auditor

PATIENCE = 60.0


def wait_for(output: Path, text: str, times: int = 1) -> None:
    end = time.monotonic() + PATIENCE
    while output.read_text().count(text) < times:
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)


def start(output: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "auditor", "check", ".", "--isolated", "--watch", "--output-format", "concise"]
    return subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, text=True, env=dict(os.environ), preexec_fn=heed_interrupts
    )


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has the jobs it runs in the background ignore them


def test_runs_again_on_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("watchfiles")
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", str(root))
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    net, output = project / "net.py", tmp_path / "output.txt"
    net.write_text(BAD)
    with output.open("w") as file:
        process = start(file)
        try:
            wait_for(output, "watching for changes")
            time.sleep(0.5)  # the watcher starts after the first run
            net.write_text(FIXED)
            wait_for(output, "All checks passed")
            net.write_text("def broken(:  # torch dropout\n")
            wait_for(output, "syntax error")
            net.write_text(BAD)
            wait_for(output, "MOD004", times=2)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
    assert process.returncode == 0


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    result = auditor("check", ".", "--watch")
    assert result.exit_code == 2
    assert "pip install 'torch-auditor[watch]'" in result.output


def test_not_for_standard_input() -> None:
    assert auditor("check", "-", "--watch", stdin="").exit_code == 2


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("a/net.py", True),
        ("a/net.ipynb", True),
        ("pyproject.toml", True),
        ("auditor.toml", True),
        ("a/.net.py.x1.tmp", False),
        ("a/data.csv", False),
    ],
)
def test_files_that_count(path: str, ours: bool) -> None:
    assert is_ours(path) is ours
