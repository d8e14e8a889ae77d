"""The wheel, as a user installs it: in an environment without torch, light, and whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import BAD, git
from tests.fixtures import ROOT

pytestmark = pytest.mark.slow
LIMIT = 12 * 10**6
"""Bytes of dependencies that pip may download."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by `python -m build` from what a commit of this working tree would hold."""
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def downloads(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip downloads for the wheel, with the wheel."""
    folder = tmp_path_factory.mktemp("downloads")
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), str(wheel)], check=True)
    return folder


@pytest.fixture(scope="module")
def environment(wheel: Path, downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--no-index", "--find-links", str(downloads), str(wheel)], check=True)
    return folder


def auditor(environment: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {"AUDITOR_CACHE_DIR": str(folder / "cache"), "NO_COLOR": "1"}
    command = [str(environment / "bin/auditor"), *arguments]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_checking_works_without_torch(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BAD)
    done = auditor(environment, tmp_path, "check", "--isolated")
    assert (done.returncode, done.stderr) == (1, "")
    assert "net.py:7:16: MOD004" in done.stdout
    done = auditor(environment, tmp_path, "check", "--isolated", "--fix")
    assert done.returncode == 0, done.stdout
    assert "training=self.training" in (tmp_path / "net.py").read_text()
    listed = auditor(environment, tmp_path, "rules").stdout
    count = sum(1 for path in (ROOT / "rules").rglob("*.py") if not path.name.startswith("_"))
    assert sum(line[:3].isupper() and line[3:6].isdigit() for line in listed.splitlines()) == count
    assert '"fail-on"' in auditor(environment, tmp_path, "config", "--schema").stdout


def test_what_needs_more_says_what_to_install(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BAD)
    done = auditor(environment, tmp_path, "audit", "net.py")
    assert done.returncode == 2
    assert "torch-auditor[torch]" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    done = auditor(environment, tmp_path, "server")
    assert (done.returncode, "torch-auditor[server]" in done.stderr) == (2, True)
    assert auditor(environment, tmp_path, "new-rule", "print-in-forward").returncode == 0
    done = auditor(environment, tmp_path, "test-rules", "auditor_rules")
    assert done.returncode == 2
    assert "2 checks need torch" in done.stdout
    assert "torch-auditor[torch]" in done.stdout


def test_dependencies_are_light(downloads: Path) -> None:
    sizes = {path.name.split("-")[0].lower(): path.stat().st_size for path in downloads.iterdir()}
    del sizes["torch_auditor"]
    assert {"click", "libcst", "pathspec"} <= sizes.keys()
    assert not {"torch", "numpy", "pygls"} & sizes.keys()
    assert sum(sizes.values()) <= LIMIT, sizes
