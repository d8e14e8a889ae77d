"""`auditor.reference` stands on torch alone, and its formulas on nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from auditor import reference

FOLDER = Path(reference.__file__).parent
ALLOWED = {"torch", "auditor.reference", *sys.stdlib_module_names}


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: file.name)
def test_imports_nothing_else(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative"
            names = [node.module or ""]
        for name in names:
            root = name.split(".")[0]
            assert (".".join(name.split(".")[:2]) if root == "auditor" else root) in ALLOWED, name


def test_formulas_do_not_load_torch() -> None:
    program = (
        "import sys; from auditor import reference; from auditor.reference import dropout, normalization, propagation\n"
        "from auditor.reference import effective_rate, group_count, propagate, start_share; dir(reference)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_exists_once() -> None:
    names = [name for names in reference._MODULES.values() for name in names]
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(reference, name).__doc__ if callable(getattr(reference, name)) else getattr(reference, name)
    # A name that is also a module would be one or the other, depending on what was imported first
    assert not set(names) & {file.stem for file in FOLDER.glob("*.py")}
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = reference.no_such_name
