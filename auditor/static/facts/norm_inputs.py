"""Which layer's output each norm of a file normalises, and whether two arguments are the same number."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.batches import whole_number
from auditor.static.facts.norm_calls import POSITIONS, NormCall
from auditor.static.flow import Op, children
from auditor.static.layers import ACTIVATIONS, DROPOUTS, NN

if TYPE_CHECKING:
    from auditor.static.source import Source

_KEEP_SHAPE = (ACTIVATIONS - {NN + "GLU"}) | set(DROPOUTS) | {NN + "Identity"}
_FUNCTIONS = frozenset(
    f"{space}.{name}"
    for space in ("torch", "torch.nn.functional")
    for name in ("relu", "gelu", "silu", "leaky_relu", "elu", "tanh", "sigmoid", "dropout", "relu6", "selu", "mish")
)


class NormInput(NamedTuple):
    """`layers`: the layers whose outputs reach the norm one after the other, the nearest first; those that keep the
    shape are left out, and the list ends where something else than a layer stands between."""

    norm: NormCall
    layers: tuple[ast.Call, ...]

    def kinds(self, source: Source) -> list[str]:
        return [source.layer_kind(layer) for layer in self.layers]


def norm_inputs(source: Source) -> Sequence[NormInput]:
    """Every norm built in the file that is surely fed by one known layer, in the document order of the norms."""
    return source.once(_norm_inputs)


def _norm_inputs(source: Source) -> tuple[NormInput, ...]:
    return tuple(_fed(source))


def _fed(source: Source) -> Iterator[NormInput]:
    norms = source.calls_to(*POSITIONS)
    if not norms:
        return
    found: dict[ast.Call, set[tuple[ast.Call, ...]]] = {}
    for call in source.calls_to("torch.nn.Sequential"):
        chain = children(source, call)
        for index, norm in enumerate(chain):
            if source.layer_kind(norm) in POSITIONS and index:
                found.setdefault(norm, set()).add(tuple(_kept(source, reversed(chain[:index]))))
    for _, flow in source.flows_meeting(norms):
        for op in flow.layer_ops():
            if op.layer is not None and op.layer_kind in POSITIONS:
                found.setdefault(op.layer, set()).add(tuple(_kept(source, _before(op))))
    for norm in sorted(found, key=lambda call: (call.lineno, call.col_offset)):
        chains = {chain for chain in found[norm] if chain}
        if len({chain[0] for chain in chains}) == 1 and not any(len(chain) == 0 for chain in found[norm]):
            yield NormInput(NormCall(norm, source.layer_kind(norm)), min(chains, key=len))


def _kept(source: Source, layers: Iterator[ast.Call]) -> Iterator[ast.Call]:
    return (layer for layer in layers if source.layer_kind(layer) not in _KEEP_SHAPE)


def _before(op: Op) -> Iterator[ast.Call]:
    """The constructions of the layers before `op`, nearest first, as long as each has one producer."""
    seen = {op}
    while (producer := op.only_producer()) is not None and producer not in seen:
        seen.add(producer)
        if producer.kind == "layer" and producer.layer is not None:
            yield producer.layer
        elif not (producer.kind == "call" and producer.target in _FUNCTIONS):
            return
        op = producer


def same_number(source: Source, left: object, right: object) -> bool:
    """Whether two arguments are surely the same number."""
    if not isinstance(left, ast.expr) or not isinstance(right, ast.expr):
        return False
    known = whole_number(source, left)
    if known is not None and known == whole_number(source, right):
        return True
    return ast.dump(left) == ast.dump(right) and not isinstance(left, ast.Call)
