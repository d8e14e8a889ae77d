"""Random masks written by hand: what draws them, with which probability they keep, and where they are multiplied in."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.values import RESHAPING

if TYPE_CHECKING:
    from auditor.static.source import Function, Source

_UNIFORM = ("torch.rand", "torch.rand_like")
_MULTIPLICATIONS = {"mul", "mul_", "multiply", "multiply_"}
_CONVERSIONS = RESHAPING | {"bool", "int", "long", "detach", "expand_as", "ceil", "floor", "floor_"}


class Mask(NamedTuple):
    """A mask of zeros and ones. `draw`: the call that draws; `keep`: source of the probability of a one; `product`:
    the multiplication (an operator, `*=` or a method call) that applies it to `data`, where `factor` stands for it."""

    function: Function
    draw: ast.Call
    keep: str
    product: ast.BinOp | ast.AugAssign | ast.Call
    data: ast.expr
    factor: ast.expr


def masks(source: Source) -> Sequence[Mask]:
    """The random masks that a function draws and multiplies once with something else, in document order."""
    return source.once(_masks)


def _masks(source: Source) -> tuple[Mask, ...]:
    return tuple(_drawn(source))


def _drawn(source: Source) -> Iterator[Mask]:
    for draw in _draws(source):
        function = source.function_of(draw)
        if function is None:
            continue
        mask, keep = _made_of(source, draw, function)
        if mask is None or not keep:
            continue
        products = list(_products(source, function, mask))
        if len(products) == 1:
            product, data, factor = products[0]
            yield Mask(function, draw, keep, product, data, factor)


def _draws(source: Source) -> list[ast.Call]:
    calls = source.calls_to(*_UNIFORM, "torch.bernoulli")
    calls += [
        call for call in source.calls_named("bernoulli", "bernoulli_", "uniform_") if not source.resolve(call.func)
    ]
    return sorted(set(calls), key=lambda call: (call.lineno, call.col_offset))


def _made_of(source: Source, draw: ast.Call, function: Function) -> tuple[ast.expr | None, str]:
    """The expression that is the mask made of a draw (a name stands for what it is assigned), and what it keeps."""
    tail = draw.func.attr if isinstance(draw.func, ast.Attribute) else ""
    if tail.startswith("bernoulli"):
        return _outermost(source, draw), _bernoulli_rate(source, draw)
    uniform = _named(source, _outermost(source, draw), function)
    for use in uniform:
        above = source.tree.parent(use)
        match above:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                rate = _comparison_rate(op, right) if left is use else _comparison_rate(_mirrored(op), left)
                return (_outermost(source, above), rate) if rate else (None, "")
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                rate = ast.unparse(right if left is use else left)
                return (_outermost(source, above), rate) if _is_floored(source, above, function) else (None, "")
    return None, ""


def _outermost(source: Source, node: ast.expr) -> ast.expr:
    """`node` with the conversions that are called on it."""
    while True:
        method = source.tree.parent(node)
        call = source.tree.parent(method) if method is not None else None
        above: ast.AST | None = None
        if isinstance(method, ast.Attribute) and method.attr in _CONVERSIONS and isinstance(call, ast.Call):
            above = call
        elif isinstance(method, ast.Call) and source.is_any(method.func, "torch.floor", "torch.ceil"):
            above = method
        if not isinstance(above, ast.Call):
            return node
        node = above


def _named(source: Source, expression: ast.expr, function: Function) -> list[ast.expr]:
    """The uses of an expression: itself, or the later reads of the name that alone holds it."""
    statement = source.tree.parent(expression)
    if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
        return [expression]
    name = statement.targets[0].id
    names = [item for item in source.tree.names(name) if source.function_of(item) is function]
    bound = [item for item in names if isinstance(item.ctx, ast.Store)]
    if any(not _keeps_name(source, item, name) for item in bound if item.lineno > statement.lineno):
        return []
    return [item for item in names if isinstance(item.ctx, ast.Load) and item.lineno > statement.lineno]


def _keeps_name(source: Source, store: ast.Name, name: str) -> bool:
    """Whether an assignment only converts or reshapes what the name holds: `mask = mask.unsqueeze(1)`."""
    statement = source.tree.parent(store)
    value = statement.value if isinstance(statement, ast.Assign) else None
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _CONVERSIONS:
        value = value.func.value
    return isinstance(value, ast.Name) and value.id == name


def _comparison_rate(op: ast.cmpop, threshold: ast.expr) -> str:
    """The probability that a uniform draw compares so."""
    if isinstance(op, (ast.Lt, ast.LtE)):
        return ast.unparse(threshold)
    return _complement(threshold) if isinstance(op, (ast.Gt, ast.GtE)) else ""


def _mirrored(op: ast.cmpop) -> ast.cmpop:
    pairs = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
    return pairs.get(type(op), type(op))()


def _complement(rate: ast.expr) -> str:
    match rate:
        case ast.BinOp(left=ast.Constant(value=1 | 1.0), op=ast.Sub(), right=right):
            return ast.unparse(right)
        case ast.Name() | ast.Attribute() | ast.Constant() | ast.Call() | ast.Subscript():
            return f"1 - {ast.unparse(rate)}"
    return f"1 - ({ast.unparse(rate)})"


def _is_floored(source: Source, total: ast.BinOp, function: Function) -> bool:
    """Whether `keep + torch.rand(…)` is rounded down, at once or by a later `floor_()` on its name."""
    mask = _outermost(source, total)
    if mask is not total and "floor" in ast.unparse(mask):
        return True
    return any(
        isinstance(attribute := source.tree.parent(use), ast.Attribute) and attribute.attr in ("floor", "floor_")
        for use in _named(source, mask, function)
    )


def _bernoulli_rate(source: Source, draw: ast.Call) -> str:
    """The probability of a one: an argument, or what fills the tensor that is given."""
    if isinstance(draw.func, ast.Attribute) and not source.resolve(draw.func):
        argument = source.argument(draw, "p", 0)
        if isinstance(argument, ast.expr):
            return ast.unparse(argument)
        filled: object = draw.func.value
    else:
        filled = source.argument(draw, "input", 0)
    if isinstance(filled, ast.Call) and source.is_any(filled.func, "torch.full", "torch.full_like"):
        value = source.argument(filled, "fill_value", 1)
        return ast.unparse(value) if isinstance(value, ast.expr) else ""
    if isinstance(filled, ast.BinOp) and isinstance(filled.op, ast.Mult):
        for side, other in ((filled.left, filled.right), (filled.right, filled.left)):
            if isinstance(side, ast.Call) and source.is_any(side.func, "torch.ones", "torch.ones_like"):
                return ast.unparse(other)
    return ""


def _products(
    source: Source, function: Function, mask: ast.expr
) -> Iterator[tuple[ast.BinOp | ast.AugAssign | ast.Call, ast.expr, ast.expr]]:
    """The multiplications of a mask with something else: node, the other factor, the mask's own expression."""
    for use in _named(source, mask, function):
        factor = _outermost(source, use)
        above = source.tree.parent(factor)
        match above:
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                yield above, right if left is factor else left, factor
            case ast.AugAssign(op=ast.Mult(), target=target, value=value) if value is factor:
                yield above, target, factor
            case ast.Call(func=ast.Attribute(value=data, attr=attr), args=[first]) if (
                attr in _MULTIPLICATIONS and first is factor
            ):
                yield above, data, factor
            case ast.Call(args=[first, second]) if source.is_any(above.func, "torch.mul"):
                yield above, second if first is factor else first, factor
