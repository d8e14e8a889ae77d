"""What the syntax of a file says of the models in it: where they are defined, which functions make one, which tensors
the file makes."""

from __future__ import annotations

import ast
import inspect
import re
import types
from typing import Any


def syntax_of(module: types.ModuleType) -> ast.Module | None:
    try:
        return ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return None


def row_of(value: Any) -> int:
    """The line of a class or function, decorators left out."""
    try:
        lines, row = inspect.getsourcelines(value)
    except (OSError, TypeError):
        return 0
    skipped = next((i for i, line in enumerate(lines) if re.match(r"\s*(async\s+def|def|class)\b", line)), 0)
    return row + skipped


def assignment_row(tree: ast.Module | None, name: str) -> int:
    for node in tree.body if tree is not None else ():
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.lineno
    return 0


def needs_nothing(node: ast.FunctionDef) -> bool:
    arguments = node.args
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional <= 0 and all(default is not None for default in arguments.kw_defaults)


def returns_one_of(node: ast.FunctionDef, makers: set[str]) -> bool:
    """Whether a function returns what one of `makers` (classes, functions) makes, or is annotated to."""
    annotation = ast.unparse(node.returns) if node.returns else ""
    if annotation.strip("'\"") in makers or annotation.endswith("nn.Module"):
        return True
    made = {
        target.id
        for statement in ast.walk(node)
        if isinstance(statement, ast.Assign) and _makes(statement.value, makers)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    returned = [statement.value for statement in ast.walk(node) if isinstance(statement, ast.Return)]
    return any(_makes(value, makers) or (isinstance(value, ast.Name) and value.id in made) for value in returned)


def _makes(value: ast.expr | None, makers: set[str]) -> bool:
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Name):
        return value.func.id in makers
    return ast.unparse(value.func) in ("nn.Sequential", "torch.nn.Sequential")


def shapes_made(module: types.ModuleType) -> list[tuple[int, ...]]:
    """Shapes of tensors that the file makes outside its functions and classes, as in its `__main__` block."""
    tree, found = syntax_of(module), []
    for statement in tree.body if tree is not None else ():
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.randn",
                "torch.rand",
                "torch.zeros",
                "torch.ones",
            ):
                sizes = node.args[0].elts if len(node.args) == 1 and isinstance(node.args[0], ast.Tuple) else node.args
                values = [
                    size.value for size in sizes if isinstance(size, ast.Constant) and isinstance(size.value, int)
                ]
                if values and len(values) == len(sizes):
                    found.append(tuple(values))
    return found
