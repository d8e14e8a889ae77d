"""The package list, the tree and the documentation agree."""

from __future__ import annotations

import tomllib

from tests.fixtures import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders(top: str, package: str) -> set[str]:
    paths = [path for path in (ROOT / top).rglob("*.py") if "__pycache__" not in path.parts]
    return {".".join((package, *path.parent.relative_to(ROOT / top).parts)) for path in paths}


def test_every_folder_with_code_is_packaged() -> None:
    packaged = set(PROJECT["tool"]["setuptools"]["packages"])
    assert packaged == folders("auditor", "auditor") | folders("rules", "auditor.rules")


def test_the_wheel_maps_the_rules() -> None:
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"auditor.rules": "rules"}


def test_torch_is_pinned_for_make() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("torch==") for line in lines)
