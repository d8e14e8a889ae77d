"""Where a value of any function comes from: the assignment that reaches a use, the object that a name holds.

`Flow` follows one module's forward; this follows training code: through variables, attributes, parameters (to all
calls of the function in the file) and calls of the file's own models. What is not sure on every path is unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.static.classes import ModuleClass
from auditor.static.modes.libraries import CHAINING, is_wrapper
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Function, Source

# Calls that rearrange or convert a tensor and leave what its entries mean as it is.
RESHAPING = frozenset(
    {
        "view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "swapaxes", "movedim", "t",
        "contiguous", "clone", "squeeze", "unsqueeze", "expand", "to", "float", "double", "half", "bfloat16", "type",
        "cuda", "cpu", "type_as", "requires_grad_",
    }
)  # fmt: skip
_DEPTH = 8


def producers(source: Source, expression: ast.expr, depth: int = _DEPTH) -> list[ast.Call]:
    """The calls one of which surely gave the value of `expression`, with rearrangements taken off; empty if any path
    is unknown."""
    if depth == 0:
        return []
    match expression:
        case ast.Name():
            return _through_name(source, expression, depth, producers, reaching)
        case ast.IfExp(body=body, orelse=orelse):
            return _all(producers(source, part, depth - 1) for part in (body, orelse))
        case ast.Subscript(value=value):
            return producers(source, value, depth - 1)
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=args) if attr in RESHAPING:
            if source.resolve(expression.func):
                return producers(source, args[0], depth - 1) if args else []
            return producers(source, value, depth - 1)
        case ast.Call():
            return [expression]
    return []


def held(source: Source, expression: ast.expr, depth: int = _DEPTH) -> list[ast.Call]:
    """The constructions one of which surely made the object `expression`, whatever wraps or moves it (`.to(device)`,
    `DataParallel`): of a name, all that are ever bound to it. Empty if any is unknown."""
    if depth == 0:
        return []
    match expression:
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in CHAINING | {"train", "eval"}:
            return held(source, value, depth - 1)
        case ast.Call(func=function, args=[first, *_]) if _wraps(source, function):
            return held(source, first, depth - 1)
        case ast.Call():
            return [expression]
        case ast.IfExp(body=body, orelse=orelse):
            return _all(held(source, part, depth - 1) for part in (body, orelse))
        case ast.Name():
            return _through_name(source, expression, depth, held, _all_bindings)
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            owner = source.class_of(expression)
            values = _attribute_values(source, owner, attr) if owner is not None else []
            return _all(held(source, value, depth - 1) for value in values)
    return []


def _wraps(source: Source, function: ast.expr) -> bool:
    names = source.resolve(function)
    tail = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return is_wrapper(names, tail)


def _attribute_values(source: Source, owner: ast.ClassDef, attr: str) -> list[ast.expr]:
    facts = source.module_class(owner) or ModuleClass(source, owner)
    return [assigned.value for assigned in facts.attributes.get(attr, [])]


def _all(parts: Iterator[list[ast.Call]]) -> list[ast.Call]:
    """The union of the parts, empty if one of them is."""
    found: list[ast.Call] = []
    for part in parts:
        if not part:
            return []
        found += part
    return list(dict.fromkeys(found))


Follow = Callable[["Source", ast.expr, int], list[ast.Call]]
Bindings = Callable[["Source", ast.Name], Sequence[ast.expr]]


def _through_name(source: Source, name: ast.Name, depth: int, follow: Follow, bindings: Bindings) -> list[ast.Call]:
    """What `follow` finds behind a name: its bindings in its own function, the arguments of all calls for a parameter,
    otherwise all bindings in the function or module around."""
    scope = source.function_of(name)
    while True:
        if _stores(source, name.id, scope):
            local = scope is source.function_of(name)
            values = bindings(source, name) if local else _bindings_in(source, name.id, scope)
            return _all(follow(source, value, depth - 1) for value in values)
        if scope is None:
            return []
        if any(parameter.arg == name.id for parameter in _parameters(scope)):
            return _all(follow(source, value, depth - 1) for value in arguments_for(source, scope, name.id))
        scope = source.function_of(scope)


def _stores(source: Source, name: str, scope: Function | None) -> list[ast.Name]:
    return [store for store in source.names.stores(name) if source.function_of(store) is scope]


def _all_bindings(source: Source, name: ast.Name) -> list[ast.expr]:
    return _bindings_in(source, name.id, source.function_of(name))


def _bindings_in(source: Source, name: str, scope: Function | None) -> list[ast.expr]:
    """Everything assigned to a name in a scope; empty if one of the bindings is no plain assignment."""
    values = [_assigned(source.tree.parent(store), name) for store in _stores(source, name, scope)]
    return [value for value in values if value is not None] if None not in values else []


def _assigned(statement: ast.AST | None, name: str) -> ast.expr | None:
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
            return value
        case ast.AnnAssign(target=ast.Name(id=target), value=value) if target == name:
            return value
    return None


def _parameters(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def arguments_for(source: Source, function: Function, parameter: str) -> list[ast.expr]:
    """What all calls of `function` in this file pass for a parameter (its default, where they leave it out); empty if
    there are none, or one of them cannot be read."""
    positional = [item.arg for item in (*function.args.posonlyargs, *function.args.args)]
    owner = source.tree.parent(function)
    bound = isinstance(owner, ast.ClassDef)
    values = []
    for call in _calls_of(source, function, owner.name if isinstance(owner, ast.ClassDef) else ""):
        position = positional.index(parameter) - bound if parameter in positional else None
        argument = source.argument(call, parameter, position)
        argument = _default(function, parameter) if argument is None else argument
        if not isinstance(argument, ast.expr):
            return []
        values.append(argument)
    return values


def _calls_of(source: Source, function: Function, owner: str) -> list[ast.Call]:
    if not owner:
        return source.calls_to(function.name)
    if function.name == "__init__":
        return [call for call in source.calls_named(owner) if isinstance(call.func, ast.Name)]
    calls = source.calls_named(function.name)
    return [call for call in calls if isinstance(call.func, ast.Attribute) and _is_own(source, call, owner)]


def _is_own(source: Source, call: ast.Call, owner: str) -> bool:
    """Whether `self.method(…)` stands in the class called `owner`."""
    around = source.class_of(call)
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(receiver, ast.Name) and receiver.id == "self" and around is not None and around.name == owner


def _default(function: Function, parameter: str) -> ast.expr | None:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip([item.arg for item in positional][::-1], arguments.defaults[::-1], strict=False))
    keyword_only = zip([item.arg for item in arguments.kwonlyargs], arguments.kw_defaults, strict=True)
    defaults |= {name: default for name, default in keyword_only if default is not None}
    return defaults.get(parameter)


def reaching(source: Source, name: ast.Name) -> list[ast.expr]:
    """The expression of the one assignment that gave `name` the value it has where it is used, as a list; empty if
    a branch, a loop or anything but a plain assignment may have given it another."""
    node: ast.AST = source.statement_of(name)
    while not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
        above = source.tree.parent(node)
        if above is None:
            return []
        for earlier in reversed(_before(above, node)):
            value = _assigned(earlier, name.id)
            if value is not None:
                return [value]
            if _binds(earlier, name.id):
                return []
        changes = isinstance(above, (ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith))
        if changes and _binds(above, name.id) and not _binds_only_after(above, name):
            return []
        node = above
    return []


def _before(above: ast.AST, node: ast.AST) -> list[ast.stmt]:
    """The statements before `node` in the body that holds it."""
    for body in (getattr(above, field, None) for field in ("body", "orelse", "finalbody")):
        if isinstance(body, list) and node in body:
            return body[: body.index(node)]
    return []


def _binds(node: ast.AST, name: str) -> bool:
    return any(
        (isinstance(item, ast.Name) and item.id == name and not isinstance(item.ctx, ast.Load))
        or (isinstance(item, ast.ExceptHandler) and item.name == name)
        for item in walk(node)
    )


def _binds_only_after(above: ast.AST, name: ast.Name) -> bool:
    """Whether a `with` binds the name only on later lines than its use (in a loop that is no help)."""
    if not isinstance(above, (ast.With, ast.AsyncWith)):
        return False
    stores = [item for item in walk(above) if isinstance(item, ast.Name) and item.id == name.id]
    return all(item.lineno > name.lineno for item in stores if not isinstance(item.ctx, ast.Load))
