"""Whether a random mask is there to drop activations, and whether something makes up for what it takes away."""

from __future__ import annotations

import ast
import re
from collections.abc import Set
from typing import TYPE_CHECKING

from auditor.static.facts.masks import Mask
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Source

# Names that say dropout, and names that say that what is dropped is no activation.
DROPS = re.compile(r"(?i)drop|surviv|stochastic|shake|keep_?(prob|rate)")
CORRUPTS = re.compile(
    r"(?i)mask|augment|nois[ey]|corrupt|perturb|eras|cutout|token|word|label|class(?!ifier)|cond|guid|cfg|edge|node|graph"
    r"|modal|caption|text|prompt|frame|spec"
)


def drops_activations(source: Source, mask: Mask) -> bool:
    """Whether the names around a mask say dropout, and none says that it corrupts data on purpose."""
    owner = source.class_of(mask.function)
    said = [mask.function.name, owner.name if owner is not None else "", mask.keep]
    return any(DROPS.search(name) for name in said) and not any(CORRUPTS.search(name) for name in said)


def is_scaled(source: Source, mask: Mask) -> bool:
    """Whether anything in the function or its class may be the scaling: a division, or a product with the rate."""
    rate = {getattr(node, "id", getattr(node, "attr", "")) for node in walk(ast.parse(mask.keep))} - {"self", ""}
    drawn = {*walk(mask.draw), mask.product}
    for node in walk(source.class_of(mask.function) or mask.function):
        match node:
            case ast.BinOp(op=ast.Div() | ast.FloorDiv()) | ast.AugAssign(op=ast.Div()):
                return True
            case ast.Attribute(attr=attr) if attr.startswith(("div", "true_divide", "reciprocal", "dropout")):
                return True
            case ast.BinOp(left=ast.Tuple() | ast.List()):  # `(1,) * (x.ndim - 1)`
                continue
            case (
                ast.BinOp(op=ast.Mult())
                | ast.AugAssign(op=ast.Mult())
                | ast.Call(func=ast.Attribute(attr="mul" | "mul_" | "multiply"))
            ) if node not in drawn and _mentions(node, rate):
                return True
    return False


def _mentions(node: ast.AST, names: Set[str]) -> bool:
    """Whether a product has one of these names, or a number, in it."""
    return any(
        isinstance(item, ast.Constant) or getattr(item, "id", getattr(item, "attr", "")) in names for item in walk(node)
    )
