"""Logarithms that a run took of what a fused function computes exactly: softmax, sigmoid, sums of exponentials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

_ONE = (1, 1.0)
_BOUNDED = frozenset({"sub", "neg", "clamp", "clip", "clamp_max", "abs", "logsigmoid", "log_softmax"})


def unfused_logarithms(capture: Capture) -> Iterator[tuple[NodeFacts, str]]:
    """Each such call of `log` or `log1p` with the kind of what it is taken of: "softmax", "sigmoid", "sum" (of
    exponentials) or "softplus" (one and an exponential). One of a table of fixed numbers is none."""
    mode = "train" if capture.nodes("train") else "eval"
    for node in capture.nodes(mode):
        if node.operation not in ("log", "log1p") or not node.inputs or not node.location.path:
            continue
        kind = _kind_of(node)
        if kind and not any(user.operation == "where" for user in node.users):
            yield node, kind


def _kind_of(node: NodeFacts) -> str:
    inner = node.inputs[0]
    if node.operation == "log1p":
        return "softplus" if _is_open_exponential(inner) else ""
    if inner.operation in ("softmax", "sigmoid"):
        return inner.operation if any(given.inputs or given.op != "call_function" for given in inner.inputs) else ""
    if inner.operation == "sum" and inner.inputs and _is_open_exponential(inner.inputs[0]):
        return "sum"
    if inner.operation == "add" and len(inner.inputs) == 1 and _is_open_exponential(inner.inputs[0]):
        numbers = [inner.argument("input", 0), inner.argument("other", 1)]
        return "softplus" if any(isinstance(item, (int, float)) and item in _ONE for item in numbers) else ""
    return ""


def _is_open_exponential(node: NodeFacts) -> bool:
    """Whether a call is `exp` of something that is neither a difference (`x - x.max()`) nor bounded above."""
    if node.operation != "exp" or not node.inputs:
        return False
    return node.inputs[0].operation not in _BOUNDED
