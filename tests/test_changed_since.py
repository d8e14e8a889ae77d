"""`--changed-since`: only what differs from a git revision, on a real repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from auditor.changes import since
from tests.cli import BAD, ZEROS, auditor, git, repository

TWO = BAD + "\n    def encode(self, x):\n        return F.dropout(x, 0.1)\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two old findings in net.py and one in old.py, on a branch of its own."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(TWO)
    Path("old.py").write_text(BAD)
    repository(tmp_path)
    git(tmp_path, "switch", "--quiet", "--create", "work")
    return tmp_path


def found(*arguments: str) -> list[tuple[str, int]]:
    options = ("--changed-since", "main", "--output-format", "json", "--select", "MOD004,INI001")
    result = auditor("check", *options, *arguments)
    assert result.exit_code in (0, 1), result.output
    return [(item["filename"], item["location"]["row"]) for item in json.loads(result.output)]


def test_nothing_changed() -> None:
    assert auditor("check", "--changed-since", "main").output == "All checks passed.\n"


def test_findings_on_changed_lines_are_shown_and_the_others_counted(folder: Path) -> None:
    (folder / "net.py").write_text("import os\n" + TWO.replace("0.1", "0.2"))
    result = auditor("check", "--changed-since", "main", "--output-format", "concise")
    assert result.exit_code == 1
    assert result.output.startswith("net.py:11:16: MOD004")
    assert "Found 1 error in 1 file; 1 fixable with `--fix`; 1 older finding in the changed files not shown." in (
        result.output
    )
    verbose = auditor("check", "--changed-since", "main", "-v").output
    assert "net.py:8:16: MOD004 older than the changes" in verbose


def test_staged_committed_and_untracked_all_count(folder: Path) -> None:
    (folder / "net.py").write_text(TWO.replace("0.1", "0.2"))
    assert found() == [("net.py", 10)]
    git(folder, "add", "net.py")
    assert found() == [("net.py", 10)]
    git(folder, "commit", "--quiet", "--message=second")
    assert found() == [("net.py", 10)]
    (folder / "new.py").write_text(BAD)
    assert found() == [("net.py", 10), ("new.py", 7)]
    (folder / ".gitignore").write_text("new.py\n")
    assert found() == [("net.py", 10)]


def test_what_the_other_branch_did_does_not_count(folder: Path) -> None:
    git(folder, "switch", "--quiet", "main")
    (folder / "old.py").write_text("\n\n" + BAD.replace("0.5", "0.7"))
    git(folder, "commit", "--quiet", "--all", "--message=theirs")
    git(folder, "switch", "--quiet", "work")
    (folder / "net.py").write_text(TWO.replace("0.1", "0.2"))
    assert found() == [("net.py", 10)]


def test_deleted_renamed_and_oddly_named_files(folder: Path) -> None:
    (folder / "old.py").unlink()
    assert found() == []
    git(folder, "mv", "net.py", "moved.py")
    assert found() == []
    (folder / "moved.py").write_text(TWO.replace("0.5", "0.6"))
    assert found() == [("moved.py", 7)]
    git(folder, "commit", "--quiet", "--all", "--message=renamed")
    names = ['quo"te.py', "t\tab.py", "ümlaut.py", "sp ace.py", "back\\slash.py"]
    for name in names:
        (folder / name).write_text(TWO)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=odd")
    git(folder, "branch", "--force", "main")
    for name in names:
        (folder / name).write_text(TWO.replace("0.1", "0.2"))
    assert sorted(found()) == sorted((name, 10) for name in names)


def test_a_line_that_looks_like_a_header(folder: Path) -> None:
    text = 'note = """\n++ b/old.py\n@@ -1 +1,99 @@\n"""\n' + TWO.replace("0.1", "0.2")
    (folder / "net.py").write_text(text)
    assert found() == [("net.py", 14)]
    git(folder, "commit", "--quiet", "--all", "--message=in")
    git(folder, "branch", "--force", "main")
    (folder / "net.py").write_text(TWO.replace("0.1", "0.2"))
    assert found() == []


def test_lines_beside_a_deletion_count(folder: Path) -> None:
    (folder / "net.py").write_text(BAD.replace("    def", "    name = 1\n    other = 2\n\n    def"))
    git(folder, "commit", "--quiet", "--all", "--message=more")
    git(folder, "branch", "--force", "main")
    (folder / "net.py").write_text(
        BAD.replace("    def forward(self, x):", "    name = 1\n\n    def forward(self, x):")
    )
    assert found() == []
    (folder / "net.py").write_text(BAD.replace("return F", "x = x + 1\n        return F"))
    git(folder, "commit", "--quiet", "--all", "--message=more")
    git(folder, "branch", "--force", "main")
    (folder / "net.py").write_text(BAD)
    assert found() == [("net.py", 7)]


def test_a_changed_note_shows_its_finding(folder: Path) -> None:
    (folder / "zeros.py").write_text(ZEROS.replace("self.up = nn.Linear(8, 8", "self.up = nn.Linear(8, 9"))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=zeros")
    git(folder, "branch", "--force", "main")
    (folder / "zeros.py").write_text(ZEROS)
    assert found() == [("zeros.py", 9)]


def test_settings_of_git_change_nothing(folder: Path) -> None:
    for name, value in (
        ("diff.noprefix", "true"),
        ("diff.mnemonicPrefix", "true"),
        ("color.ui", "always"),
        ("diff.external", "false"),
        ("diff.context", "9"),
        ("diff.relative", "true"),
        ("core.quotePath", "true"),
    ):
        git(folder, "config", name, value)
    (folder / "sub").mkdir()
    (folder / "net.py").write_text(TWO.replace("0.1", "0.2"))
    assert found() == [("net.py", 10)]


def test_from_a_folder_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    (folder / "net.py").write_text(TWO.replace("0.1", "0.2"))
    (folder / "sub/new.py").write_text(BAD)
    monkeypatch.chdir(folder / "sub")
    assert found() == [("new.py", 7)]
    assert found("..") == [("../net.py", 10), ("../sub/new.py", 7)]


def test_together_with_a_baseline_and_fixes(folder: Path) -> None:
    auditor("baseline")
    (folder / "net.py").write_text(TWO.replace("0.1", "0.2"))
    result = auditor("check", "--changed-since", "main")
    assert "Found 1 error in 1 file; 1 fixable with `--fix`; 1 known from the baseline." in result.output
    assert auditor("check", "--changed-since", "main", "--fix").exit_code == 0
    assert (folder / "net.py").read_text().count("training=self.training") == 2
    assert (folder / "old.py").read_text() == BAD


def test_an_audit_is_narrowed_too(folder: Path) -> None:
    text = TWO.replace(
        "from torch import nn\n",
        "from torch import nn\n\n\ndef example_inputs():\n    import torch\n\n    return torch.ones(2, 8)\n",
    )
    (folder / "net.py").write_text(text)
    result = auditor("audit", "net.py", "--changed-since", "main", "--select", "MOD004")
    assert result.exit_code == 0, result.output
    assert "2 older findings in the changed files not shown" in result.output


def test_what_git_cannot_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in ("nowhere", "--all", "main..work"):
        result = auditor("check", f"--changed-since={revision}")
        assert result.exit_code == 2
        assert f"git knows no revision {revision!r}" in result.output
    git(folder, "switch", "--quiet", "--orphan", "alone")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=alone")
    assert "have no commit in common" in auditor("check", "--changed-since", "main").output
    assert auditor("check", "-", "--changed-since", "main", stdin=BAD).exit_code == 2
    monkeypatch.setenv("PATH", "")
    missing = auditor("check", "--changed-since", "main")
    assert missing.exit_code == 2
    assert "git cannot be run (No such file or directory)" in missing.output


def test_outside_a_repository(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("plain"))
    result = auditor("check", "--changed-since", "main")
    assert result.exit_code == 2
    assert "--changed-since needs a git repository" in result.output


def test_a_repository_without_commits(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("empty")
    git(folder, "init", "--quiet")
    monkeypatch.chdir(folder)
    assert auditor("check", "--changed-since", "HEAD").exit_code == 2


def test_files_without_a_newline_at_their_end(folder: Path) -> None:
    (folder / "net.py").write_text(TWO.rstrip("\n").replace("0.5", "0.6"))
    changes = since("main")
    assert [(rows.start, rows.stop) for rows in changes.rows[str((folder / "net.py").resolve())]] == [(7, 8), (10, 11)]
