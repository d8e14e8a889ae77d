"""Carries a source fix out on live objects: the methods that its edits change are compiled anew for one model.

The layer gets a class of the same name, derived from its own, with the new methods; the user's class and module stay as
they are. As with `torch.nn.utils.parametrize`, such a model is saved through its state dict, not pickled whole.
"""

from __future__ import annotations

import ast
import copy
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from auditor.dynamic.capture import class_location

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Code that has run when the layer exists: compiling it anew changes nothing.
_CONSTRUCTION = ("__init__", "__new__", "__init_subclass__", "__setstate__")
_ORIGINAL = "_class_before_the_edit"


class Change(NamedTuple):
    """What an edit changes: `methods` and `functions` by qualified name as they are in the new text, imports it adds.

    `methods` are all that have to be compiled anew, also those that only call a changed function.
    """

    methods: Mapping[str, Function]
    functions: Mapping[str, Function]
    imports: Sequence[ast.stmt]


def edit_methods(model: nn.Module, path: str, text: str, new_text: str) -> list[str]:
    """Give the layers of `model` whose classes `path` defines the methods of `new_text`; returns what was changed.

    `text` is what the file contained when it was imported. ValueError, and nothing is changed, where the difference is
    not one of methods alone (what a constructor does has been done), the file has changed since, or no layer has them.
    """
    change = difference(text, new_text)
    codes = dict(_codes(compile(text, path, "exec", dont_inherit=True)))
    classes = dict.fromkeys(type(module) for module in model.modules())
    edited = {cls: new for cls in classes if (new := _edited(cls, path, codes, change)) is not None}
    if not edited:
        raise ValueError("no layer of the model runs the code that this edit changes")
    done = []
    for name, module in model.named_modules():
        cls = type(module)
        if cls in edited:
            methods = ", ".join(key for key in vars(edited[cls]) if key != _ORIGINAL and not key.startswith("__"))
            done.append(f"{name or 'the model'}: {methods} of {cls.__name__} edited")
            module.__class__ = edited[cls]
    return done


def difference(text: str, new_text: str) -> Change:
    """The methods and functions in which two texts of a file differ; ValueError if they differ anywhere else."""
    old, new = ast.parse(text), ast.parse(new_text)
    methods, functions = dict(_methods(new)), {node.name: node for node in new.body if isinstance(node, Function)}
    changed = _differing(dict(_methods(old)), methods)
    blank_old, blank_new = _without(old, changed), _without(new, changed)
    helpers = _differing(_top(blank_old), _top(blank_new))
    blank_old, blank_new = _without(blank_old, helpers), _without(blank_new, helpers)
    imports = [node for node in new.body if _is_import(node) and ast.dump(node) not in map(ast.dump, old.body)]
    if ast.dump(blank_old) != ast.dump(blank_new) or not changed | helpers:
        raise ValueError("its edit changes more than methods: it can be made in the source only")
    if any(name.rpartition(".")[2] in _CONSTRUCTION for name in changed):
        raise ValueError("its edit changes how layers are built: it can be made in the source only")
    helpers = _callers(helpers, functions)
    changed |= {name for name, node in methods.items() if helpers & _names(node)}
    return Change({n: methods[n] for n in sorted(changed)}, {n: functions[n] for n in sorted(helpers)}, imports)


def _differing(old: Mapping[str, Function], new: Mapping[str, Function]) -> set[str]:
    return {name for name in new if name in old and ast.dump(old[name]) != ast.dump(new[name])}


def _methods(tree: ast.AST, prefix: str = "", of_class: bool = False) -> Iterator[tuple[str, Function]]:
    """All methods by qualified name, those of classes inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            if of_class:
                yield f"{prefix}{node.name}", node
            else:
                yield from _methods(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.ClassDef):
            yield from _methods(node, f"{prefix}{node.name}.", of_class=True)
        else:
            yield from _methods(node, prefix, of_class)


def _top(tree: ast.Module) -> dict[str, Function]:
    return {node.name: node for node in tree.body if isinstance(node, Function)}


def _without(tree: ast.Module, names: set[str]) -> ast.Module:
    """A copy in which these methods and functions are empty, without imports."""
    tree = copy.deepcopy(tree)
    for name, node in [*_methods(tree), *_top(tree).items()]:
        if name in names:
            node.body, node.decorator_list, node.returns = [ast.Pass()], [], None
            node.args = ast.arguments([], [], None, [], [], None, [])
    tree.body = [node for node in tree.body if not _is_import(node)]
    return tree


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _callers(names: set[str], functions: Mapping[str, Function]) -> set[str]:
    """These functions and all that name one of them."""
    found = set(names)
    while more := {name for name, node in functions.items() if name not in found and found & _names(node)}:
        found |= more
    return found


# Classes -------------------------------------------------------------------------------------------------------------


def _edited(
    cls: type[nn.Module], path: str, codes: Mapping[str, types.CodeType], change: Change
) -> type[nn.Module] | None:
    """A class derived from `cls` with the methods that it or a base of it has in the file at `path`; None for none."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        base = vars(base).get(_ORIGINAL, base)
        if class_location(base).path != path:
            for name in vars(base):
                found.pop(name, None)  # defined nearer to `cls` than what was changed
            continue
        wanted = {name: f"{base.__qualname__}.{name}" for name in vars(base)}
        for name in wanted:
            found.pop(name, None)
        changed = {name: change.methods[full] for name, full in wanted.items() if full in change.methods}
        if changed:
            if any(not _same_code(vars(base)[name], codes.get(wanted[name])) for name in changed):
                raise ValueError(f"{path} has changed since it was imported")
            found |= _compiled(base, changed, change)
    if not found:
        return None
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    make: Any = type(cls)
    edited: type[nn.Module] = make(cls.__name__, (cls,), {**own, **found, _ORIGINAL: vars(cls).get(_ORIGINAL, cls)})
    return edited


def _compiled(base: type, methods: Mapping[str, Function], change: Change) -> dict[str, Any]:
    """The methods as functions of `base`: its globals, its enclosing variables, its `super()`."""
    outer = {
        name: cell
        for method in methods
        if isinstance(function := _function(vars(base)[method]), types.FunctionType)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    }
    parameters = [ast.arg(name) for name in outer if name != "__class__"]
    name = base.__name__
    tree = ast.parse(f"from __future__ import annotations\ndef scope():\n class {name}: ...\n return {name}")
    scope = tree.body[1]
    assert isinstance(scope, ast.FunctionDef)
    assert isinstance(scope.body[0], ast.ClassDef)
    scope.args.args = parameters
    scope.body[0].body = list(methods.values())
    scope.body[:0] = [*change.imports, *change.functions.values()]
    ast.fix_missing_locations(tree)
    place: dict[str, Any] = {}
    exec(compile(tree, class_location(base).path, "exec"), sys.modules[base.__module__].__dict__, place)
    made = vars(place["scope"](*[None] * len(parameters)))
    return {name: _rebound(made[name], base, outer) for name in methods}


def _rebound(made: Any, base: type, outer: Mapping[str, types.CellType]) -> Any:
    function = _function(made)
    if not isinstance(function, types.FunctionType):
        return made
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    known = {**outer, "__class__": types.CellType(base)}
    closure = tuple(known.get(name, cell) for name, cell in cells)
    rebound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    rebound.__kwdefaults__, rebound.__doc__ = function.__kwdefaults__, function.__doc__
    rebound.__qualname__, rebound.__module__ = f"{base.__qualname__}.{function.__name__}", base.__module__
    if made is function:
        return rebound
    if isinstance(made, (staticmethod, classmethod)):
        return type(made)(rebound)
    if "__class__" in function.__code__.co_freevars:
        raise ValueError(f"`{function.__name__}` is decorated and calls super(): it can be edited in the source only")
    return made


def _function(attribute: Any) -> Any:
    """The plain function behind a method, a static or class method, or one decorated with functools.wraps."""
    return getattr(attribute, "__func__", getattr(attribute, "__wrapped__", attribute))


def _codes(code: types.CodeType) -> Iterator[tuple[str, types.CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


def _same_code(live: Any, compiled: types.CodeType | None) -> bool:
    code = getattr(_function(live), "__code__", None)
    return code is None or (compiled is not None and code.co_code == compiled.co_code)
