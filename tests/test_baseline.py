"""`auditor baseline` and `--baseline`: what is known stays known, what is new is shown, what is gone is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from auditor.baseline import apply, record
from auditor.finding import RUN, Finding, Location, Severity
from auditor.report import Report
from tests.cli import BAD, FIXED, ZEROS, auditor
from tests.fixtures import BY_CODE, RULES

FILE = ".auditor-baseline.json"
RUN_ONLY = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("noise", torch.zeros(8))

    def forward(self, x):
        return self.fc(x) + torch.empty_like(self.noise).uniform_()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(BAD)
    Path("zeros.py").write_text(ZEROS)
    return tmp_path


def recorded(file: str = FILE) -> list[dict[str, object]]:
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    assert document["version"] == 1
    return list(document["findings"])


def test_what_is_recorded_is_not_shown_again() -> None:
    result = auditor("baseline")
    assert (result.exit_code, result.output) == (0, f"{FILE}: 2 findings recorded.\n")
    assert auditor("check").exit_code == 0
    assert auditor("check").output == "All checks passed in 2 files; 2 known from the baseline.\n"
    assert json.loads(auditor("check", "--output-format", "json").output) == []
    assert auditor("check", "--no-baseline").exit_code == 1
    assert auditor("check", "--isolated").exit_code == 1
    assert auditor("check", "--isolated", "--baseline", FILE).exit_code == 0
    assert f"net.py:7:16: MOD004 known from {FILE}" in auditor("check", "-v").output


def test_the_file_can_be_read_and_repeats() -> None:
    auditor("baseline")
    before = Path(FILE).read_bytes()
    first, second = recorded()
    assert (first["path"], first["code"], first["context"]) == ("net.py", "MOD004", "Net.forward")
    assert first["line"] == "return F.dropout(x, 0.5)"
    assert second["path"] == "zeros.py"
    auditor("baseline")
    assert Path(FILE).read_bytes() == before
    assert len(before.splitlines()) == 4  # one line per finding, so that two branches merge


def test_moved_lines_stay_known(folder: Path) -> None:
    auditor("baseline")
    (folder / "net.py").write_text("import os\n\n" + BAD.replace("0.5)", "0.5)  # moved"))
    assert auditor("check").exit_code == 0
    (folder / "src").mkdir()
    (folder / "net.py").rename(folder / "src/model.py")
    result = auditor("check")
    assert result.output == "All checks passed in 2 files; 2 known from the baseline.\n"


def test_a_copy_and_a_second_equal_line_are_new(folder: Path) -> None:
    auditor("baseline")
    (folder / "copy.py").write_text(BAD)
    result = auditor("check", "--output-format", "concise")
    assert result.exit_code == 1
    assert result.output.startswith("copy.py:7:16: MOD004")
    assert result.output.count("MOD004") == 1
    (folder / "copy.py").unlink()
    (folder / "net.py").write_text(
        BAD.replace("        return", "        if x.numel() > 9:\n            return F.dropout(x, 0.5)\n        return")
    )
    result = auditor("check", "--output-format", "concise")
    assert result.output.startswith("net.py:9:16: MOD004")
    assert result.output.count("MOD004") == 1


def test_what_is_gone_is_counted_and_pruned(folder: Path) -> None:
    auditor("baseline")
    (folder / "net.py").write_text(FIXED)
    (folder / "new.py").write_text(BAD.replace("Net", "New"))
    result = auditor("check")
    assert result.exit_code == 1
    assert f"1 finding of {FILE} is gone; `auditor baseline --prune` forgets it." in result.output
    assert f"net.py: MOD004 of {FILE} is gone: return F.dropout(x, 0.5)" in auditor("check", "-v").output
    assert "is gone" not in auditor("check", "-q").output
    assert auditor("baseline", "--prune").output == f"{FILE}: 1 finding recorded; 1 forgotten.\n"
    assert [entry["path"] for entry in recorded()] == ["zeros.py"]
    assert "is gone" not in auditor("check").output
    assert "new.py:7:16" in auditor("check").output  # pruning accepts nothing


def test_only_what_was_looked_at_can_be_gone(folder: Path) -> None:
    auditor("baseline")
    (folder / "net.py").write_text(FIXED)
    assert "gone" not in auditor("check", "zeros.py").output
    assert "gone" not in auditor("check", "--select", "INI").output
    assert "gone" in auditor("check", "net.py").output
    (folder / "net.py").write_text("import torch  # dropout\ndef f(:\n")
    assert "gone" not in auditor("check").output
    (folder / "net.py").unlink()
    assert "gone" in auditor("check").output


def test_recording_some_files_keeps_the_others(folder: Path) -> None:
    auditor("baseline")
    (folder / "net.py").write_text(FIXED)
    (folder / "zeros.py").write_text("")
    auditor("baseline", "zeros.py")
    assert [entry["path"] for entry in recorded()] == ["net.py"]
    auditor("baseline")
    assert recorded() == []


def test_fixed_while_known(folder: Path) -> None:
    auditor("baseline")
    result = auditor("check", "--fix")
    assert result.exit_code == 0
    assert (folder / "net.py").read_text() == FIXED
    assert "1 finding of .auditor-baseline.json is gone" in result.output


def test_settings_and_options_name_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyproject.toml").write_text('[tool.auditor]\nbaseline = "ci/known.json"\n')
    missing = auditor("check")
    assert missing.exit_code == 2
    assert "no such baseline; `auditor baseline` records one" in missing.output
    assert auditor("baseline").exit_code == 0
    assert [entry["path"] for entry in recorded("ci/known.json")] == ["../net.py", "../zeros.py"]
    assert auditor("check").exit_code == 0
    assert auditor("baseline", "--baseline", "other.json", "net.py").exit_code == 0
    assert len(recorded("other.json")) == 1
    assert auditor("check", "--baseline", "other.json").exit_code == 1
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    assert auditor("check", "..").exit_code == 0
    assert auditor("check", "--baseline", "x", "--no-baseline").exit_code == 2


def test_from_a_folder_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyproject.toml").write_text("[tool.auditor]\n")
    (folder / "sub").mkdir()
    (folder / "net.py").rename(folder / "sub/net.py")
    auditor("baseline")
    monkeypatch.chdir(folder / "sub")
    assert auditor("check").output == "All checks passed in 1 file; 1 known from the baseline.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the baseline cannot be read"),
        ("[]", "no baseline of version 1"),
        ('{"version": 2, "findings": []}', "no baseline of version 1"),
        ('{"version": 1}', "the baseline is damaged"),
        ('{"version": 1, "findings": [{"path": "net.py"}]}', "the baseline is damaged"),
    ],
)
def test_damaged_files_are_named(folder: Path, content: str, message: str) -> None:
    (folder / FILE).write_text(content)
    result = auditor("check")
    assert result.exit_code == 2
    assert f"{FILE}: {message}" in result.output
    assert "Traceback" not in result.output


def test_problems_are_told_and_the_rest_is_recorded(folder: Path) -> None:
    (folder / "broken.py").write_text("import torch  # dropout\ndef f(:\n")
    result = auditor("baseline")
    assert result.exit_code == 2
    assert "broken.py:2: could not be checked" in result.stderr
    assert len(recorded()) == 2


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    result = auditor("baseline", "--baseline", "file/known.json")
    assert result.exit_code == 2
    assert "the baseline cannot be written" in result.output


def test_standard_input() -> None:
    auditor("baseline")
    assert auditor("check", "-", "--stdin-filename", "net.py", stdin="\n" + BAD).exit_code == 0
    assert auditor("check", "-", "--stdin-filename", "net2.py", stdin="\n" + BAD).exit_code == 1


def test_what_only_a_run_shows(folder: Path) -> None:
    """Recorded by `--audit`, known to `audit`, kept by a later `auditor baseline`, never gone for `check`."""
    (folder / "net.py").write_text(RUN_ONLY)
    (folder / "zeros.py").unlink()
    assert auditor("baseline", "--audit").exit_code == 2
    assert auditor("baseline", "--audit", "net.py").exit_code == 0
    before = recorded()
    assert before
    assert all(entry["only_in_run"] for entry in before)
    assert "gone" not in auditor("check").output
    auditor("baseline")
    assert recorded() == before
    known = auditor("audit", "net.py")
    assert known.exit_code == 0, known.output
    assert f"{len(before)} known from the baseline" in known.output


def test_only_a_run_can_say_that_what_a_run_showed_is_gone(folder: Path) -> None:
    rule = BY_CODE["MOD004"]
    seen = Finding(rule.code, rule.name, "said", Location("net.py", 7), Severity.ERROR, (RUN,))
    record(Report(findings=[seen], rules=RULES, checked=["net.py"]), FILE)
    for audits, gone in (([], 0), ([{"name": "Net"}], 1)):
        report = Report(rules=RULES, checked=["net.py"], audits=audits)
        apply(report, FILE)
        assert len(report.vanished) == gone


def test_paths_that_are_absolute(folder: Path) -> None:
    auditor("baseline", str(folder))
    assert [entry["path"] for entry in recorded()] == ["net.py", "zeros.py"]
    assert auditor("check", str(folder)).exit_code == 0
    assert oct(os.stat(FILE).st_mode & 0o777) == "0o644"
