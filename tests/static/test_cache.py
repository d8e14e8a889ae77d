"""Results are kept between runs, and never outlive what they rest on."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from auditor.cli import cli
from auditor.settings import Settings
from auditor.static import cache, check
from auditor.static.check import FileResult, check_files

DROPS = """
import torch.nn.functional as F
from torch import nn

class {name}(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDITOR_CACHE_DIR", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for index in range(3):
        (work / f"net{index}.py").write_text(DROPS.format(name=f"Net{index}"))
    (work / "plain.py").write_text("x = 1\n")
    return work


def told(results: list[FileResult]) -> list[tuple[str, list[object], list[object]]]:
    return [(result.path, list(result.findings), list(result.silenced)) for result in results]


def read_anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are checked from now on, rather than taken from the cache."""
    seen: list[str] = []
    original = check.check_file

    def watched(path: str, *arguments: object) -> FileResult:
        seen.append(path)
        return original(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "check_file", watched)
    return seen


def test_what_has_not_changed_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(path.name for path in folder.iterdir())
    first = check_files(paths, Settings())
    seen = read_anew(monkeypatch)
    assert told(check_files(paths, Settings())) == told(first)
    assert seen == []
    (folder / "net1.py").write_text("import torch\n")
    changed = check_files(paths, Settings())
    assert seen == ["net1.py"]
    assert told(changed) == told(check_files(paths, Settings(cache=False)))
    assert [bool(result.findings) for result in changed] == [True, False, True, False]


@pytest.mark.parametrize("settings", [Settings(ignore=("MOD004",)), Settings(per_file_ignores={"net*": ("MOD004",)})])
def test_other_settings_have_results_of_their_own(folder: Path, settings: Settings) -> None:
    assert check_files(["net0.py"], Settings())[0].findings
    assert not check_files(["net0.py"], settings)[0].findings


def test_a_result_rests_on_the_files_it_was_linked_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "base.py").write_text("from torch import nn\nclass Base(nn.Module): ...\n")
    derived = "import torch.nn.functional as F\nfrom base import Base\nclass Net(Base):\n    def forward(self, x):\n"
    (folder / "derived.py").write_text(derived + "        return F.dropout(x, 0.5)\n")
    assert check_files(["derived.py"], Settings())[0].findings
    seen = read_anew(monkeypatch)
    assert check_files(["derived.py"], Settings())[0].findings
    assert seen == []
    (folder / "base.py").write_text("class Base: ...\n")
    assert not check_files(["derived.py"], Settings())[0].findings
    (folder / "base.py").unlink()
    check_files(["derived.py"], Settings())
    assert seen == ["derived.py", "derived.py"]
    (folder / "base.py").write_text("from torch import nn\nclass Base(nn.Module): ...\n")
    assert check_files(["derived.py"], Settings())[0].findings


def test_every_result_rests_on_all_that_stands_behind_what_it_imports(folder: Path) -> None:
    (folder / "base.py").write_text("from torch import nn\nclass Base(nn.Module): ...\n")
    (folder / "middle.py").write_text("from base import Base\nclass One(Base): ...\nclass Two(Base): ...\n")
    for name in ("One", "Two"):
        text = f"import torch.nn.functional as F\nfrom middle import {name}\nclass Net({name}):\n"
        (folder / f"{name}.py").write_text(text + "    def forward(self, x):\n        return F.dropout(x, 0.5)\n")
    names = ["One.py", "Two.py"]
    assert all(result.findings for result in check_files(names, Settings()))
    (folder / "middle.py").write_text("from base import Base\nclass One(Base): ...\nclass Two(Base): ...\nx = 1\n")
    assert all(result.findings for result in check_files(names, Settings()))
    (folder / "base.py").write_text("class Base: ...\n")
    assert not any(result.findings for result in check_files(names, Settings()))


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
def test_a_report_is_the_same_with_its_fixes(folder: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    command = ["check", "--output-format", form, "."]
    anew = CliRunner().invoke(cli, [*command, "--no-cache"])
    first = CliRunner().invoke(cli, command)
    seen = read_anew(monkeypatch)
    again = CliRunner().invoke(cli, command)
    assert seen == []
    assert "fix" in again.output
    assert anew.output == first.output == again.output
    CliRunner().invoke(cli, ["check", "--fix", "."])
    assert "training=self.training" in (folder / "net0.py").read_text()


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"[1, 2]"])
def test_a_cache_that_cannot_be_read_is_made_anew(folder: Path, damage: bytes) -> None:
    first = check_files(["net0.py"], Settings())
    (file,) = (folder.parent / "cache").glob("checked-*.bin")
    file.write_bytes(damage)
    assert told(check_files(["net0.py"], Settings())) == told(first)
    assert file.read_bytes() != damage


def test_nothing_is_kept_where_that_is_not_wanted_or_not_possible(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(cli, ["check", "--no-cache", "net0.py"]).exit_code == 1
    assert not list((folder.parent / "cache").glob("checked-*.bin"))
    blocked = folder.parent / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("AUDITOR_CACHE_DIR", str(blocked / "below"))
    assert check_files(["net0.py"], Settings())[0].findings


def test_a_syntax_error_is_reported_every_time(folder: Path) -> None:
    (folder / "broken.py").write_text("import torch\nnn.Dropout(\n")
    for _ in range(2):
        assert check_files(["broken.py"], Settings())[0].problems


def test_runs_side_by_side_leave_a_whole_cache(folder: Path) -> None:
    def run(name: str) -> int:
        command = [sys.executable, "-m", "auditor", "check", name]
        return subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, check=False).returncode

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, ["net0.py", "net1.py", "net2.py"])) == [1, 1, 1]
    (file,) = (folder.parent / "cache").glob("checked-*.bin")
    assert set(cache._read(file)) <= {"net0.py", "net1.py", "net2.py"}
    assert cache._read(file)
    assert not list((folder.parent / "cache").glob("*.tmp"))


def test_clean_forgets_everything_and_nothing_else(folder: Path) -> None:
    check_files(["net0.py"], Settings())
    other = folder.parent / "cache" / "mine.txt"
    other.write_text("kept")
    result = CliRunner().invoke(cli, ["clean"])
    assert result.exit_code == 0
    assert "deleted" in result.output
    assert [path.name for path in (folder.parent / "cache").iterdir()] == ["mine.txt"]
    assert CliRunner().invoke(cli, ["clean"]).exit_code == 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_same_findings_whatever_the_order_the_jobs_and_the_cache(folder: Path, jobs: int) -> None:
    for index in range(70):
        (folder / f"many{index:02}.py").write_text(DROPS.format(name=f"Many{index}"))
    paths = sorted(path.name for path in folder.iterdir())
    plain = told(check_files(paths, Settings(cache=False, jobs=1)))
    assert told(check_files(paths, Settings(jobs=jobs))) == plain
    assert told(check_files(paths[::-1], Settings(jobs=jobs)))[::-1] == plain
