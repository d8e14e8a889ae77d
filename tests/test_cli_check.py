"""`auditor check` as a user meets it: options, output, exit codes, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from auditor.cli import cli

BAD = """\
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)
"""
FIXED = BAD.replace("0.5)", "0.5, training=self.training)")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def auditor(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin, prog_name="auditor", catch_exceptions=False)


def check(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return auditor("check", *arguments, stdin=stdin)


def test_finding_is_shown_with_its_code_and_frame(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    result = check("net.py")
    assert result.exit_code == 1
    assert "net.py:7:16: MOD004 [*]" in result.output
    assert "7 |         return F.dropout(x, 0.5)" in result.output
    assert "^^^^^^^^^^^^^^^^^ MOD004" in result.output
    assert "Found 1 error in 1 file; 1 fixable with `--fix`." in result.output


def test_clean(folder: Path) -> None:
    (folder / "net.py").write_text(FIXED)
    result = check()
    assert (result.exit_code, result.output) == (0, "All checks passed in 1 file.\n")


def test_json_has_the_shape_of_ruffs(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    (finding,) = json.loads(check("net.py", "--output-format", "json").output)
    assert finding["code"] == "MOD004"
    assert finding["filename"] == "net.py"
    assert finding["location"] == {"row": 7, "column": 16}
    assert finding["end_location"] == {"row": 7, "column": 33}
    assert finding["fix"]["applicability"] == "safe"
    (edit,) = finding["fix"]["edits"]
    assert set(edit) == {"content", "location", "end_location"}
    assert "training=self.training" in edit["content"]


def test_select_and_ignore(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    assert check("--select", "MOD004").exit_code == 1
    assert check("--select", "functional-dropout-always-on").exit_code == 1
    assert check("--ignore", "MOD").exit_code == 0
    assert check("--select", "MOD", "--ignore", "MOD004").exit_code == 0
    assert check("--ignore", "MOD", "--select", "MOD004").exit_code == 1
    unknown = check("--select", "MOD0O4")
    assert unknown.exit_code == 2
    assert "did you mean 'MOD004'?" in unknown.output


def test_suppression_comments(folder: Path) -> None:
    for comment in ("# noqa", "# noqa: MOD004", "# auditor: ignore", "# auditor: ignore[functional-dropout-always-on]"):
        (folder / "net.py").write_text(BAD.replace("0.5)", f"0.5)  {comment}"))
        result = check()
        assert result.exit_code == 0, comment
        assert "1 silenced by comments" in result.output
    for comment in ("# noqa: DRP001", "# auditor: ignore[excessive-dropout-rate]", "# no", "# auditor"):
        (folder / "net.py").write_text(BAD.replace("0.5)", f"0.5)  {comment}"))
        assert check().exit_code == 1, comment
    (folder / "net.py").write_text("# auditor: ignore-file[MOD004]\n" + BAD)
    assert check().exit_code == 0


def test_settings_file(folder: Path) -> None:
    (folder / "legacy").mkdir()
    (folder / "legacy/net.py").write_text(BAD)
    (folder / "pyproject.toml").write_text('[tool.auditor.per-file-ignores]\n"legacy/*" = ["MOD004"]\n')
    assert check().exit_code == 0
    assert check("--isolated").exit_code == 1
    (folder / "pyproject.toml").write_text('[tool.auditor]\nignore = ["mod004"]\n')
    assert check().exit_code == 0
    (folder / "pyproject.toml").write_text("[tool.auditor]\nselekt = []\n")
    wrong = check()
    assert wrong.exit_code == 2
    assert "unknown key 'selekt'" in wrong.output
    assert "did you mean 'select'?" in wrong.output
    (folder / "pyproject.toml").write_text("[tool.auditor]\nfail-on = 3\n")
    assert "fail-on: expected str, found int 3" in check().output
    (folder / "pyproject.toml").write_text("[tool.auditor]\nselect = [\n")
    assert check().exit_code == 2


def test_fail_on_and_exit_zero(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    assert check("--exit-zero").exit_code == 0
    (folder / "broken.py").write_text("import torch\nx = dropout(\n")
    assert check("--exit-zero").exit_code == 2


def test_fix_writes_and_leaves_the_rest_alone(folder: Path) -> None:
    path = folder / "net.py"
    path.write_bytes(b"\xef\xbb\xbf" + BAD.replace("0.5)", "0.5)  # h\u00e4lfte").replace("\n", "\r\n").encode())
    result = check("--fix")
    assert result.exit_code == 0
    assert "1 fix written" in result.output
    expected = FIXED.replace("self.training)", "self.training)  # h\u00e4lfte").replace("\n", "\r\n").encode()
    assert path.read_bytes() == b"\xef\xbb\xbf" + expected


def test_diff_writes_nothing(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    result = check("--diff")
    assert (
        "-        return F.dropout(x, 0.5)\n+        return F.dropout(x, 0.5, training=self.training)\n"
        in result.output
    )
    assert (folder / "net.py").read_text() == BAD


def test_stdin() -> None:
    result = check("-", "--stdin-filename", "model.py", stdin=BAD)
    assert result.exit_code == 1
    assert "model.py:7:16: MOD004" in result.output
    fixed = check("-", "--fix", stdin=BAD)
    assert fixed.stdout == FIXED
    assert check("-", stdin=b"\xff\xfe\x00").exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("syntax.py", b"import torch  # dropout\ndef f(:\n", "syntax.py:2: could not be checked: syntax error"),
        (
            "binary.py",
            b"torch dropout\0\1\2",
            "binary.py: could not be checked: cannot be decoded: contains null bytes",
        ),
        ("latin.py", b"# torch dropout \xe4\n", "latin.py: could not be checked: cannot be decoded"),
        (
            "coding.py",
            b"# coding: klingon\n# torch dropout \xe4\n",
            "coding.py: could not be checked: cannot be decoded",
        ),
    ],
)
def test_bad_files_are_named_and_the_rest_is_checked(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    (folder / "net.py").write_text(BAD)
    result = check()
    assert result.exit_code == 2
    assert message in result.output
    assert "net.py:7:16: MOD004" in result.output


def test_missing_unreadable_and_empty(folder: Path) -> None:
    missing = check("nowhere.py")
    assert missing.exit_code == 2
    assert "nowhere.py: could not be checked: no such file or folder" in missing.output
    (folder / "empty.py").write_bytes(b"")
    assert check("empty.py").exit_code == 0
    (folder / "link.py").symlink_to("nothing.py")
    assert check("link.py").exit_code == 2
    if os.geteuid() != 0:  # root may read everything
        (folder / "secret.py").write_text(BAD)
        (folder / "secret.py").chmod(0)
        assert "Permission denied" in check("secret.py").output


def test_latin_1_with_a_coding_line_is_read(folder: Path) -> None:
    (folder / "net.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe4\n" + BAD.encode())
    assert "net.py:9:16: MOD004" in check().output
    check("--fix")
    assert (folder / "net.py").read_bytes() == b"# -*- coding: latin-1 -*-\n# \xe4\n" + FIXED.encode()


def test_gitignore_and_excludes(folder: Path) -> None:
    for name in ("build/a.py", "scratch/b.py", "src/c.py", "src/d.py", ".venv/e.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(BAD)
    (folder / ".git").mkdir()
    (folder / ".gitignore").write_text("scratch/\n")
    (folder / "src/.gitignore").write_text("d.py\n")
    listed = [item["filename"] for item in json.loads(check("--output-format", "json").output)]
    assert listed == ["src/c.py"]
    assert check("scratch/b.py").exit_code == 1  # named by the user


def run(*arguments: str, **environment: str) -> bytes:
    command = [sys.executable, "-m", "auditor", "check", ".", "--isolated", *arguments]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_output_is_the_same_whatever_the_hash_seed_and_jobs(folder: Path) -> None:
    for number in range(150):
        (folder / f"net_{number}.py").write_text(BAD * (1 + number % 3))
    outputs = {
        run("--jobs", jobs, "--output-format", style, PYTHONHASHSEED=seed)
        for style in ("text",)
        for seed, jobs in (("0", "1"), ("1", "2"), ("2", "3"))
    }
    assert len(outputs) == 1


def test_start_imports_nothing_heavy() -> None:
    """Starting the command pulls in neither torch nor libcst nor rich, and neither does checking a file."""
    Path("net.py").write_text(BAD)
    program = (
        "import sys; from click.testing import CliRunner; import auditor.cli as c;"
        "r = CliRunner().invoke(c.cli, ['check', 'net.py']); assert r.exit_code == 1, r.output;"
        "heavy = {'torch', 'libcst', 'rich', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_rule_rules_and_config(folder: Path) -> None:
    assert "MOD004" in auditor("rules").output
    assert auditor("rule", "mod004").output == auditor("rule", "functional-dropout-always-on").output
    assert "## Fix (safe)" in auditor("rule", "MOD004").output
    unknown = auditor("rule", "MOD04")
    assert unknown.exit_code == 2
    assert "did you mean" in unknown.output
    (folder / "pyproject.toml").write_text("[tool.auditor]\nseed = 7\n")
    assert "seed = 7" in auditor("config").output
