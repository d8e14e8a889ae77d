"""Logarithms of softmaxes, sigmoids and sums of exponentials that are written in two steps."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.facts.losses import operand
from auditor.static.facts.values import reaching

if TYPE_CHECKING:
    from auditor.static.source import Source

NN = "torch.nn.functional."
SOFTMAX = {"torch.softmax", NN + "softmax", "torch.special.softmax"}
SIGMOID = {"torch.sigmoid", NN + "sigmoid", "torch.special.expit"}


def is_guarded(source: Source, call: ast.Call) -> bool:
    """Whether the logarithm is one branch of a `where`, taken of a fixed range of numbers, or of whole numbers."""
    parent = source.tree.parent(call)
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "where":
        return True
    inside = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
    return not inside.isdisjoint({"arange", "linspace", "floor", "clamp", "clip", "clamp_min"})


def argument_of(source: Source, node: ast.expr, function: str) -> ast.expr | None:
    """What `torch.<function>` (or the method of that name, of something computed here) is applied to."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != function:
        return None
    names = source.resolve(node.func)
    if names:
        return node.args[0] if names == {f"torch.{function}"} and len(node.args) == 1 else None
    return node.func.value if not node.args and not node.keywords else None


def kind_of(source: Source, inner: ast.expr) -> str:
    if isinstance(inner, ast.Name):
        values = reaching(source, inner)
        inner = values[0] if len(values) == 1 else inner
    match inner:
        case ast.Call(func=function) if source.is_any(function, *SOFTMAX) or _method(source, inner, "softmax"):
            return "softmax"
        case ast.Call(func=function) if source.is_any(function, *SIGMOID) or _method(source, inner, "sigmoid"):
            return "sigmoid"
        case ast.Call(func=ast.Attribute(attr="sum")) if _sum_of_exponentials(source, inner):
            return "sum"
        case ast.BinOp(left=left, op=ast.Add(), right=right) if is_one(left) or is_one(right):
            other = right if is_one(left) else left
            exponent = argument_of(source, other, "exp")
            if exponent is not None:
                return "softplus" if not _is_bounded(exponent) else "log1p"
            return "log1p" if not isinstance(other, ast.Constant) else ""
    return ""


def overflows(source: Source, call: ast.Call) -> bool:
    """Whether a call is `log1p(exp(x))` of an `x` that nothing bounds."""
    inner = argument_of(source, call, "log1p")
    exponent = argument_of(source, inner, "exp") if inner is not None else None
    open_ended = exponent is not None and not _is_bounded(exponent) and not is_guarded(source, call)
    # The parameter of a lambda holds whatever the code around it hands over, often only what is small enough.
    return open_ended and not any(isinstance(above, ast.Lambda) for above in source.tree.ancestors(call))


def _method(source: Source, call: ast.Call, name: str) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr != name or source.resolve(call.func):
        return False
    return not isinstance(call.func.value, ast.Name) or call.func.value.id != "self"


def _sum_of_exponentials(source: Source, call: ast.Call) -> bool:
    """`exp(x).sum(…)` or `torch.sum(exp(x), …)`, where nothing was subtracted from `x` before."""
    names = source.resolve(call.func)
    given = (call.args[0] if call.args else None) if names else call.func.value  # type: ignore[attr-defined]
    if given is None or (names and names != {"torch.sum"}):
        return False
    exponent = argument_of(source, given, "exp")
    return exponent is not None and not _is_bounded(exponent) and not _is_shifted(source, exponent)


def _is_shifted(source: Source, exponent: ast.expr) -> bool:
    """Whether the exponent is a difference or comes from one (`x - x.max()`), on one of several paths at least."""
    if isinstance(exponent, ast.Name):
        function = source.function_of(exponent)
        stores = [store for store in source.names.stores(exponent.id) if source.function_of(store) is function]
        values: list[ast.AST] = [*reaching(source, exponent)] or [source.statement_of(store) for store in stores]
        return any(isinstance(node, ast.Sub) for value in values for node in ast.walk(value))
    return any(isinstance(node, ast.Sub) for node in ast.walk(exponent))


def _is_bounded(exponent: ast.expr) -> bool:
    """Whether the exponent is negative by the way it is written: `-x.abs()`, `-x ** 2`."""
    text = ast.unparse(exponent)
    return isinstance(exponent, ast.UnaryOp) and ("abs" in text or "**" in text or "square" in text)


def is_one(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in (1, 1.0) and not isinstance(node.value, bool)


def fused(source: Source, node: ast.expr, kind: str) -> str:
    """The arguments of the fused function that stands for `node`; "" where the pattern is not one expression."""
    if kind == "expm1":
        given = argument_of(source, node.left, "exp") if isinstance(node, ast.BinOp) else None
        return ast.unparse(given) if given is not None else ""
    inner = argument_of(source, node, "log")
    match inner:
        case ast.BinOp(left=left, right=right) if kind == "log1p":
            return ast.unparse(right if is_one(left) else left)
        case ast.Call() if kind in ("softmax", "sigmoid"):
            return _with_axis(source, inner, operand(source, inner), kind == "softmax")
        case ast.Call() if kind == "sum":
            summed = operand(source, inner)
            exponent = argument_of(source, summed, "exp") if summed is not None else None
            code = _with_axis(source, inner, exponent, True)
            return code if "," in code else ""  # logsumexp needs an axis
    return ""


def _with_axis(source: Source, call: ast.Call, given: ast.expr | None, axis: bool) -> str:
    """The operand, and with `axis` the other arguments of the call that was applied to it."""
    if given is None or any(word.arg in ("input", None) for word in call.keywords):
        return ""
    arguments = [ast.unparse(given)]
    if axis:
        arguments += [ast.unparse(item) for item in call.args[bool(source.resolve(call.func)) :]]
        arguments += [f"{word.arg}={ast.unparse(word.value)}" for word in call.keywords]
    return ", ".join(arguments)
