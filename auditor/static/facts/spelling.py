"""How a file can write a dotted torch name with the imports that it has."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.fix.edit import Edit, add_import
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Source


def spelled(source: Source, name: str, where: ast.AST) -> tuple[str, list[Edit]]:
    """Code for `name` (`torch.nn.functional.rms_norm`) in the function or class `where`, by the shortest import that
    the file has, and the edits that it needs: `import torch` where there is none."""
    hidden = {argument.arg for argument in walk(where) if isinstance(argument, ast.arg)}
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        meaning = ".".join(parts[:length])
        for alias, meanings in source.names.aliases.items():
            if meanings == {meaning} and alias not in hidden:
                return ".".join((alias, *parts[length:])), []
    return name, [add_import("torch")]
