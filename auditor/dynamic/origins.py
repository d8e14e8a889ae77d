"""Where the modules of a model come from: the line that constructed each, as recorded or as the source says."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from auditor.dynamic.record import is_user_file
from auditor.finding import Location

if TYPE_CHECKING:
    from auditor.dynamic.build import BuildLog


def module_locations(model: torch.nn.Module, build_log: BuildLog | None) -> dict[str, Location]:
    locations = {}
    for path, module in model.named_modules(remove_duplicate=False):
        known = build_log.location_of(module) if build_log is not None else None
        locations[path] = known or _guessed_location(model, path)
    return locations


def _guessed_location(model: torch.nn.Module, path: str) -> Location:
    """The line `self.name = …` in the user's class that holds the module, or that class's own line."""
    parts = path.split(".") if path else []
    chain = [model]
    for part in parts:
        chain.append(chain[-1]._modules[part])  # type: ignore[arg-type]
    for depth in range(len(parts) - 1, -1, -1):
        location = class_location(type(chain[depth]))
        if location.path:
            holder: Any = type(chain[depth])
            return _attribute_location(holder, parts[depth]) or location
    return class_location(type(chain[-1]))


def class_location(cls: type) -> Location:
    """Where a user's class is defined; `Location("")` for torch's classes and those without source."""
    key: Any = cls
    return _class_location(key)


@functools.cache
def _class_location(cls: Any) -> Location:
    path = _file_of(cls)
    if path is None or not is_user_file(path):
        return Location("")
    node = _classes_in(path).get(cls.__qualname__.replace("<locals>.", ""))
    return Location(path, node.lineno if node is not None else 0)


def _file_of(cls: type) -> str | None:
    """The file a class is defined in; for one from the cell of a notebook, which `inspect` cannot find, that of the
    code of its methods."""
    try:
        return inspect.getsourcefile(cls)
    except (TypeError, OSError):
        codes = (getattr(value, "__code__", None) for value in vars(cls).values())
        return next((code.co_filename for code in codes if code is not None), None)


@functools.cache
def _classes_in(path: str) -> dict[str, ast.ClassDef]:
    """Classes of a file by qualified name, without `<locals>`. `inspect` would parse the file once per class."""
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except SyntaxError:
        return {}
    return dict(_named_classes(tree, ""))


def _named_classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        scope = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        name = f"{prefix}{child.name}" if scope else ""  # type: ignore[attr-defined]
        if isinstance(child, ast.ClassDef):
            yield name, child
        yield from _named_classes(child, f"{name}." if scope else prefix)


@functools.cache
def _attribute_location(cls: Any, attribute: str) -> Location | None:
    """The first assignment to `self.<attribute>` in the class's source."""
    location = class_location(cls)
    node = _classes_in(location.path).get(cls.__qualname__.replace("<locals>.", ""))
    for part in ast.walk(node) if node is not None else ():
        if attribute in _assigned(part):
            return Location(location.path, part.lineno)  # type: ignore[attr-defined]
    return None


def _assigned(node: ast.AST) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            yield target.attr
