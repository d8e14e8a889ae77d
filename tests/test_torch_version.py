"""The torch a project targets: settings before requirements before the installation; rules outside it are silent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from auditor import torch_version
from auditor.finding import Severity
from auditor.rule import Category, Rule
from auditor.settings import Settings, SettingsError, load
from auditor.torch_version import applies, find, installed, parse, resolve
from tests.cli import auditor

LOAD = "import torch\n\nstate = torch.load('weights.pt')\n"


@pytest.fixture(autouse=True)
def no_memory() -> None:
    find.cache_clear()


@pytest.mark.parametrize(
    ("name", "text", "lowest"),
    [
        ("requirements.txt", "numpy\ntorch>=2.1,<3  # why\n", "2.1"),
        ("requirements.txt", "torchvision>=0.3\ntorch==2.0.1\npytorch-lightning>=2.5\n", "2.0.1"),
        ("requirements-dev.txt", "torch ~= 2.3\n", "2.3"),
        ("setup.py", "setup(install_requires=['numpy', 'torch>=1.13.1,!=2.0.0'])\n", "1.13.1"),
        ("setup.cfg", "[options]\ninstall_requires =\n    torch>1.9\n", "1.9"),
        ("environment.yml", "dependencies:\n  - python=3.11\n  - pytorch::pytorch=2.2.*\n", "2.2"),
        ("pyproject.toml", "[project]\nname='x'\ndependencies=['torch>=2.4', 'torchaudio>=0.1']\n", "2.4"),
        ("pyproject.toml", "[project]\nname='x'\n[project.optional-dependencies]\ngpu=['torch[opt]>=2.5']\n", "2.5"),
        ("pyproject.toml", "[dependency-groups]\ndev=['torch>=2.6', {include-group='x'}]\n", "2.6"),
        ("pyproject.toml", "[tool.poetry.dependencies]\ntorch = {version = '^2.2', source = 'x'}\n", "2.2"),
        ("pyproject.toml", "[project]\ndependencies=['torch>=2.3; python_version<\"3.12\"', 'torch>=2.5']\n", "2.3"),
    ],
)
def test_requirements(tmp_path: Path, name: str, text: str, lowest: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / name).write_text(text)
    (tmp_path / "src").mkdir()
    wanted = find(tmp_path / "src")
    assert wanted.version == lowest
    assert wanted.why == str(tmp_path / name)


@pytest.mark.parametrize("text", ["torch\n", "torch<2.4\n", "# torch>=1.4\n", "my-torch>=1.2\n", "torch!=1.5\n"])
def test_no_lower_bound_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "requirements.txt").write_text(text)
    assert find(tmp_path).version == installed()


def test_order_of_files(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "requirements.txt").write_text("torch==2.9.0\n")
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = ['torch>=2.2']\n")
    assert find(tmp_path).version == "2.2"


def test_files_of_others_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project\ntorch")
    (tmp_path / "requirements.txt").write_bytes(b"torch>=2.1 \xff\n")
    assert find(tmp_path).version == installed()


def test_installed_without_importing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "version.py").write_text("__version__ = '9.8.7+cu999'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert installed() == "9.8.7+cu999"
    assert "torch" not in sys.modules


def test_nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_version, "installed", lambda: "")
    (tmp_path / ".git").mkdir()
    assert find(tmp_path).version == torch_version.NEWEST


def test_versions() -> None:
    assert parse("2.4.1+cpu") == (2, 4, 1)
    with pytest.raises(ValueError, match="no version"):
        parse("newest")
    assert applies("2.4", "", "2.4")
    assert not applies("2.4", "", "2.3.1")
    assert applies("", "2.6", "2.5.1")
    assert not applies("", "2.6", "2.6")
    assert applies("2.10", "", "2.13")
    assert not applies("", "2.6", "")


def test_bounds_of_a_rule() -> None:
    rule = Rule(
        "x.y", code="XXX001", category=Category.ROBUSTNESS, severity=Severity.INFO, summary="x", since="1.2", until="2"
    )
    assert (rule.since, rule.until) == ("1.2", "2")


def test_settings_come_first(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch>=2.1\n")
    (tmp_path / "pyproject.toml").write_text("[tool.auditor]\ntarget-torch = '1.12'\n")
    settings = resolve(load(tmp_path), tmp_path)
    assert (settings.target_torch, settings.target_torch_from) == ("1.12", str(tmp_path / "pyproject.toml"))
    assert resolve(Settings(), tmp_path).target_torch == "2.1"


def test_nonsense_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.auditor]\ntarget-torch = 'latest'\n")
    with pytest.raises(SettingsError, match=r"target-torch: 'latest' is no version"):
        load(tmp_path)
    result = auditor("check", "--isolated", "--target-torch", "soon", str(tmp_path))
    assert result.exit_code == 2
    assert "'soon' is no version of torch" in result.output


def test_config_says_which_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "requirements.txt").write_text("torch>=2.1\n")
    monkeypatch.chdir(tmp_path)
    line = f'target-torch = "2.1"  # from {tmp_path / "requirements.txt"}'
    assert line in auditor("config").output.splitlines()


def test_rules_outside_the_target_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(LOAD)
    assert "API" not in auditor("check", "net.py", "--target-torch", "2.6", "-q").output
    assert auditor("check", "net.py", "--target-torch", "2.5", "-q").output.count("load-without-weights-only") == 0
    assert "torch.load" in auditor("check", "net.py", "--target-torch", "2.5", "-q").output
