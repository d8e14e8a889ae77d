"""The value of an expression, where it can be known without running anything. Unknown is unknown."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.static.source import Source

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNKNOWN = object()
_DEPTH = 8


def evaluate(source: Source, expression: ast.expr, default: Any = None) -> Any:
    """The constant `expression` stands for, or `default`.

    Follows a variable that its scope binds exactly once, a parameter's default (what the code does when nobody says
    otherwise), `self.x = …` bound once in a class, and class attributes.
    """
    value = _evaluate(source, expression, _DEPTH)
    return default if value is _UNKNOWN else value


def _evaluate(source: Source, node: ast.expr, depth: int) -> Any:
    if depth == 0:
        return _UNKNOWN
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _evaluate(source, operand, depth - 1)
            return -value if isinstance(value, (int, float)) else _UNKNOWN
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            value = _evaluate(source, operand, depth - 1)
            return _UNKNOWN if value is _UNKNOWN else not value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            values = [_evaluate(source, element, depth - 1) for element in elements]
            return _UNKNOWN if any(value is _UNKNOWN for value in values) else tuple(values)
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(op, _evaluate(source, left, depth - 1), _evaluate(source, right, depth - 1))
        case ast.Name():
            bound = binding(source, node)
            return _UNKNOWN if bound is None else _evaluate(source, bound, depth - 1)
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            return _attribute(source, node, attr, depth)
    return _UNKNOWN


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    compute = _ARITHMETIC.get(type(op))
    numbers = all(isinstance(side, (int, float)) for side in (left, right))
    if compute is None or not numbers:
        return _UNKNOWN
    try:
        return compute(left, right)
    except (ArithmeticError, ValueError):
        return _UNKNOWN


def _attribute(source: Source, node: ast.Attribute, attr: str, depth: int) -> Any:
    owner = source.class_of(node)
    facts = source.module_class(owner) if owner else None
    if facts is None:
        return _UNKNOWN
    assignments = facts.attributes.get(attr, [])
    if len(assignments) == 1 and not assignments[0].conditional:
        return _evaluate(source, assignments[0].value, depth - 1)
    if not assignments and attr in facts.constants:
        return _evaluate(source, facts.constants[attr], depth - 1)
    return _UNKNOWN


def binding(source: Source, name: ast.Name) -> ast.expr | None:
    """The expression that `name` surely holds: its only assignment in the innermost scope that binds it, or the
    default of a parameter that is never assigned; None when there is no such thing."""
    stored = source.once(_stores_by_scope, name.id)
    for scope in source.tree.ancestors(name):
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            is_parameter, default = parameter_default(scope, name.id)
            if is_parameter:
                return None if scope in stored else default
            if scope in stored:
                return _assigned_value(source, stored[scope])
        elif isinstance(scope, ast.Module):
            return _assigned_value(source, stored.get(scope, []))
    return None


def _stores_by_scope(source: Source, name: str) -> dict[ast.AST | None, list[ast.Name]]:
    """Where `name` is assigned, by the innermost function, class or module around it."""
    found: dict[ast.AST | None, list[ast.Name]] = {}
    for store in source.names.stores(name):
        found.setdefault(enclosing_scope(source, store), []).append(store)
    return found


def enclosing_scope(source: Source, node: ast.AST) -> ast.AST | None:
    """The innermost function, class or module around `node`."""
    for above in source.tree.ancestors(node):
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module, ast.ClassDef)):
            return above
    return None


def parameter_default(
    function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, name: str
) -> tuple[bool, ast.expr | None]:
    """Whether `function` has a parameter called `name`, and its default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for parameter, default in zip(positional, defaults, strict=True):
        if parameter.arg == name:
            return True, default
    for parameter, keyword_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if parameter.arg == name:
            return True, keyword_default
    special = [argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument]
    return name in special, None


def _assigned_value(source: Source, stores: list[ast.Name]) -> ast.expr | None:
    if len(stores) != 1:
        return None
    statement = source.tree.parent(stores[0])
    if isinstance(statement, ast.Assign) and stores[0] in statement.targets:
        value: ast.expr | None = statement.value
    elif isinstance(statement, ast.AnnAssign):
        value = statement.value
    else:
        return None
    inside = (ast.If, ast.For, ast.While, ast.Try, ast.AsyncFor)
    return None if isinstance(source.tree.parent(statement), inside) else value
