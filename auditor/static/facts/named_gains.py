"""Initialisers that name a nonlinearity, and the nonlinearity that really follows the weights they fill."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.chains import Link, chains
from auditor.static.facts.initialisers import INIT, Initialisers, Write, weight_kinds

if TYPE_CHECKING:
    from auditor.static.source import Source

# Names of `calculate_gain` and of activations → those that want the same gain.
_FAMILIES = {
    **dict.fromkeys(("relu", "leaky_relu", "gelu", "silu", "elu", "softplus"), "rectifier"),
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "selu": "selu",
}
_GAINED = {"kaiming", "xavier", "orthogonal"}


class Contradiction(NamedTuple):
    """`write` names the gain of `named`; every layer it fills that has a nonlinearity behind it has `activation`."""

    write: Write
    named: str
    activation: str
    link: Link


def contradictions(source: Source) -> Iterator[Contradiction]:
    """One for each write that names another kind of nonlinearity than all those that follow, with no norm between."""
    if not source.once(weight_kinds) & _GAINED:
        return
    followed: dict[ast.AST, list[tuple[Write, Link]]] = {}
    for facts in source.module_classes:
        starts = source.once(Initialisers, facts)
        for chain in chains(source, facts):
            for link in chain.links:
                start, write = starts.start(link.layer)
                if write is not None and start.kind in _GAINED and link.activation != "linear":
                    followed.setdefault(write.node, []).append((write, link))
    for reached in followed.values():
        write, link = reached[0]
        named = _named(source, write.node)
        family = _FAMILIES.get(named)
        others = {_FAMILIES.get(each.activation) for _, each in reached}
        plain = len(others) == 1 and None not in others and not any(each.normed for _, each in reached)
        if plain and family is not None and family not in others:
            yield Contradiction(write, named, link.activation, link)


def _named(source: Source, node: ast.AST) -> str:
    """The nonlinearity that a call of an initialiser names: `nonlinearity="relu"`, `gain=calculate_gain("tanh")`."""
    if not isinstance(node, ast.Call):
        return ""
    word = source.argument(node, "nonlinearity", 3)
    gain = source.argument(node, "gain", 1)
    if isinstance(gain, ast.Call) and source.is_any(gain.func, INIT + "calculate_gain"):
        word = source.argument(gain, "nonlinearity", 0)
    return word.value if isinstance(word, ast.Constant) and isinstance(word.value, str) else ""
