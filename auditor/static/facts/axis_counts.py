"""How many axes a tensor surely has, by the last calls that made it, in any function (`ranks` follows a forward)."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.facts.values import held, reaching

if TYPE_CHECKING:
    from auditor.static.source import Source

_FUNCTIONS = {"torch.bmm": 3, "torch.baddbmm": 3, "torch.mm": 2, "torch.addmm": 2}
_METHODS = {"bmm": 3, "mm": 2}
_LAYERS = {f"torch.nn.Conv{n}d": n + 2 for n in (1, 2, 3)} | {f"torch.nn.ConvTranspose{n}d": n + 2 for n in (1, 2, 3)}
_SHAPES = frozenset({"view", "reshape", "permute"})
# The result has as many axes as the tensor they are applied to.
_KEEP = frozenset(
    {
        "relu", "tanh", "sigmoid", "gelu", "elu", "leaky_relu", "dropout", "transpose", "permute", "contiguous",
        "float", "half", "double", "to", "masked_fill", "masked_fill_", "clone", "detach", "div", "mul", "exp", "div_",
        "cuda", "cpu", "clamp",
    }
)  # fmt: skip
_KEEPING_LAYERS = frozenset(
    f"torch.nn.{name}" for name in ("Linear", "ReLU", "Tanh", "Sigmoid", "GELU", "Dropout", "LayerNorm", "Identity")
)


def axis_count(source: Source, expression: ast.expr, depth: int = 8) -> int | None:
    """The number of axes that `expression` has on every path; None if that is not sure."""
    if depth == 0:
        return None
    match expression:
        case ast.Name():
            values = reaching(source, expression)
            return axis_count(source, values[0], depth - 1) if len(values) == 1 else None
        case ast.BinOp(left=left, op=ast.Div() | ast.Mult() | ast.Add() | ast.Sub(), right=ast.Constant()):
            return axis_count(source, left, depth - 1)
        case ast.Call(func=function, args=args):
            names = source.resolve(function)
            if names:
                counts = {_FUNCTIONS.get(name) for name in names}
                if None not in counts:
                    return counts.pop() if len(counts) == 1 else None
                keeps = all(name.startswith("torch.") and name.rpartition(".")[2] in _KEEP for name in names)
                return axis_count(source, args[0], depth - 1) if keeps and args else None
            return _of_layer(source, expression, depth - 1)
    return None


def _of_layer(source: Source, call: ast.Call, depth: int) -> int | None:
    """The axes of what a layer or a method of a tensor gives."""
    kinds = {source.layer_kind(item) for item in held(source, call.func)}
    if kinds:
        if len(kinds) != 1 or not call.args:
            return None
        kind = kinds.pop()
        return _LAYERS.get(kind) or (axis_count(source, call.args[0], depth) if kind in _KEEPING_LAYERS else None)
    return _of_method(source, call, depth) if isinstance(call.func, ast.Attribute) else None


def _of_method(source: Source, call: ast.Call, depth: int) -> int | None:
    method, receiver = call.func.attr, call.func.value  # type: ignore[attr-defined]
    if method in _SHAPES and call.args:
        sizes = call.args[0].elts if isinstance(call.args[0], (ast.Tuple, ast.List)) else call.args
        starred = any(isinstance(item, ast.Starred) for item in sizes)
        one = len(sizes) == 1 and sizes is call.args and not isinstance(sizes[0], ast.Constant)
        return None if starred or one else len(sizes)
    if method == "unsqueeze" and len(call.args) == 1:
        inner = axis_count(source, receiver, depth)
        return None if inner is None else inner + 1
    return _METHODS.get(method) or (axis_count(source, receiver, depth) if method in _KEEP else None)
