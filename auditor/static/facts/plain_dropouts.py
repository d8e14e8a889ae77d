"""Module classes that are nothing but dropout of single elements, written by hand and scaled as torch scales it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.gating import gated
from auditor.static.facts.mask_scaling import CORRUPTS
from auditor.static.facts.mask_shapes import data_name, drawn_per
from auditor.static.facts.masks import Mask, masks
from auditor.static.facts.values import reaching
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Function, Source

# Names that say that whole branches, channels or weights are dropped, or that data is corrupted.
_OTHER = re.compile(rf"{CORRUPTS.pattern}|path|depth|connect|channel|spatial|weight")
# All that such a forward calls, besides the draw.
_HELPERS = frozenset({
    "to", "type", "type_as", "float", "bool", "div", "div_", "mul", "mul_", "bernoulli", "bernoulli_", "full_like",
    "empty_like", "new_empty", "ones_like", "size", "rand_like", "rand", "full", "empty", "isinstance",
})  # fmt: skip


class PlainDropout(NamedTuple):
    """`tensor`: the name of what forward is given; `rate`: code of the probability to drop."""

    facts: ModuleClass
    forward: Function
    tensor: str
    rate: str


def plain_dropouts(source: Source) -> Iterator[PlainDropout]:
    """Those classes: forward of one tensor, gated by the mode, one mask of the tensor's shape, one division by the
    probability to keep, and no other layer or parameter."""
    found: dict[Function, list[Mask]] = {}
    for mask in masks(source):
        found.setdefault(mask.function, []).append(mask)
    for facts in source.module_classes:
        forward = facts.forward
        made = found.get(forward, []) if forward is not None else []
        if forward is None or len(made) != 1 or len(forward.args.args) != 2 or _OTHER.search(facts.name):
            continue
        tensor, mask = forward.args.args[1].arg, made[0]
        keep = _meaning(source, mask, tensor)
        whole = keep and _is_all(source, facts, forward, tensor) and gated(source, mask.draw)
        if whole and _is_per_element(source, mask, tensor) and _divides_once(source, forward, mask.keep, keep):
            yield PlainDropout(facts, forward, tensor, _complement(keep))


def _meaning(source: Source, mask: Mask, tensor: str) -> str:
    """The probability to keep in terms of attributes, not of local variables; "" if there is none."""
    keep = ast.parse(mask.keep, mode="eval").body
    if not isinstance(keep, ast.Name):
        return "" if any(isinstance(node, ast.Name) and node.id == tensor for node in walk(keep)) else mask.keep
    uses = [name for name in source.tree.names(keep.id) if source.function_of(name) is mask.function]
    values = reaching(source, uses[-1]) if uses else []
    return ast.unparse(values[0]) if len(values) == 1 else ""


def _is_all(source: Source, facts: ModuleClass, forward: Function, tensor: str) -> bool:
    flow = source.flow(facts)
    if flow is None or flow.layer_ops() or any(facts.layers(name) for name in facts.attributes):
        return False
    calls = [node for node in walk(forward) if isinstance(node, ast.Call)]
    tails = {node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "") for node in calls}
    returned = [node.value for node in walk(forward) if isinstance(node, ast.Return)]
    unchanged = [value for value in returned if isinstance(value, ast.Name) and value.id == tensor]
    return tails <= _HELPERS and bool(unchanged) and None not in returned


def _is_per_element(source: Source, mask: Mask, tensor: str) -> bool:
    if data_name(mask.data) != tensor:
        return False
    shaped = ast.unparse(mask.draw)
    alike = any(f"{name}({tensor}" in shaped for name in ("full_like", "empty_like", "ones_like"))
    sized = any(f"({shape}" in shaped for shape in (f"{tensor}.shape)", f"{tensor}.size())", f"{tensor}.shape,"))
    return drawn_per(source, mask) == "element" or alike or sized


def _divides_once(source: Source, forward: Function, *keeps: str) -> bool:
    """Whether the one division of the forward is by the probability to keep."""
    nodes = list(walk(forward))
    divisors = [node.right for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    divisors += [
        node.value for node in walk(forward) if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div)
    ]
    divisors += [call.args[0] for call in source.calls_named("div", "div_") if source.function_of(call) is forward]
    products = [node for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)]
    products = [node for node in products if not isinstance(node.left, (ast.Tuple, ast.List))]
    return len(divisors) == 1 and ast.unparse(divisors[0]) in keeps and len(products) <= 1


def _complement(keep: str) -> str:
    match ast.parse(keep, mode="eval").body:
        case ast.BinOp(left=ast.Constant(value=1 | 1.0), op=ast.Sub(), right=rate):
            return ast.unparse(rate)
    return f"1 - {keep}"
