"""The dropouts of a file where values flow: each with its rate, its uses, and what stands before and behind them."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from auditor.static.facts.rates import FUNCTIONS, LAYERS, is_literal
from auditor.static.facts.values import RESHAPING
from auditor.static.flow import Op, children
from auditor.static.layers import (
    ACTIVATIONS,
    CONVS,
    DROPOUTS,
    EMBEDDINGS,
    LINEARS,
    NN,
    NORMS,
    RECURRENT,
    SHAPE_ONLY,
)
from auditor.static.source import HIDDEN

if TYPE_CHECKING:
    from auditor.static.source import Source

_DROPPING = {name: where for name, where in FUNCTIONS.items() if name.rpartition(".")[2].endswith("dropout")} | {
    name: where for name, where in FUNCTIONS.items() if name[:-2].endswith("dropout")
}
_SOFTMAX = {"softmax", "log_softmax", "Softmax", "LogSoftmax", "Softmax2d", "softmin", "Softmin"}
_ACTIVE = {name.rpartition(".")[2] for name in ACTIVATIONS} - _SOFTMAX
_ACTIVE |= {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "tanh_", "sigmoid",
    "sigmoid_", "hardswish", "hardtanh", "hardsigmoid", "softplus", "softsign", "prelu", "rrelu", "logsigmoid", "glu",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Dropout:
    """One dropout above rate 0. `call`: the construction of the layer, or the call of the function.

    `kind`: dotted name. `rate`: None where it is unknown. `uses`: where it is applied.
    """

    call: ast.Call
    kind: str
    rate: float | None
    expression: ast.expr | None
    uses: list[Op] = field(default_factory=list)

    @property
    def tail(self) -> str:
        return self.kind.rpartition(".")[2]

    @property
    def is_elementwise(self) -> bool:
        """`nn.Dropout` or a function that does the same."""
        return self.tail in ("Dropout", "dropout")

    @property
    def is_plain(self) -> bool:
        """An `nn.Dropout` that is used once."""
        return self.kind == NN + "Dropout" and len(self.uses) == 1

    @property
    def is_written(self) -> bool:
        """Whether the rate is a number in the call, or its default."""
        return self.rate is not None and (self.expression is None or is_literal(self.expression))

    @property
    def is_layer(self) -> bool:
        return self.kind in DROPOUTS


def dropouts(source: Source) -> list[Dropout]:
    """Torch's dropouts that are applied in the forward of a module class, or stand in a Sequential, in document
    order; those whose rate is surely 0, or that are surely switched off, are left out."""
    return source.once(_dropouts)


def _dropouts(source: Source) -> list[Dropout]:
    found: dict[ast.Call, Dropout] = {}
    for op in _ops(source):
        if op.kind == "layer" and op.layer is not None and op.layer_kind in DROPOUTS:
            _add(source, found, op.layer, op.layer_kind, LAYERS[op.layer_kind], op)
        elif op.kind == "call" and op.target in _DROPPING and isinstance(op.node, ast.Call):
            name, position, switch, at = _DROPPING[op.target]
            if source.constant(source.argument(op.node, switch, at)) is not False:
                _add(source, found, op.node, op.target, (name, position), op)
    dropping = [dropout for dropout in found.values() if dropout.rate != 0]
    return sorted(dropping, key=lambda item: (item.call.lineno, item.call.col_offset))


def _add(
    source: Source, found: dict[ast.Call, Dropout], call: ast.Call, kind: str, where: tuple[str, int], op: Op
) -> None:
    if call not in found:
        given = source.argument(call, *where)
        value = 0.5 if given is None else source.constant(given)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        rate = float(value) if number and given is not HIDDEN else None
        found[call] = Dropout(call, kind, rate, given if isinstance(given, ast.expr) else None)
    found[call].uses.append(op)


def _ops(source: Source) -> Iterator[Op]:
    dropping = source.calls_to(*DROPOUTS, *_DROPPING)
    if not dropping:
        return
    opened: set[ast.Call] = set()
    for _, flow in source.flows_meeting(dropping):
        for op in flow.ops:
            if op.layer is not None:
                opened.add(op.layer)
            yield op
    for call in source.calls_to(NN + "Sequential"):
        chain = _opened(source, call)
        if not any(layer in opened for layer in chain) and not _is_inside(source, call):
            yield from _linked(source, chain)


def _opened(source: Source, call: ast.Call) -> list[ast.Call]:
    """A Sequential as the list of its layers, nested ones too."""
    inner = children(source, call) if source.layer_kind(call) == NN + "Sequential" else []
    return [layer for child in inner for layer in _opened(source, child)] if inner else [call]


def _is_inside(source: Source, call: ast.Call) -> bool:
    return any(
        isinstance(above, ast.Call) and source.layer_kind(above) == NN + "Sequential"
        for above in source.tree.ancestors(call)
    )


def _linked(source: Source, chain: list[ast.Call]) -> list[Op]:
    """Layers one behind the other as operations."""
    ops = [Op("layer", layer, "", layer, source.layer_kind(layer)) for layer in chain]
    for before, after in itertools.pairwise(ops):
        after.inputs.append({before})
        before.users.append(after)
    return ops


# What an operation does -----------------------------------------------------------------------------------------------


def name_of(op: Op) -> str:
    """The last part of the name of the layer, function or method."""
    return (op.layer_kind or op.target if op.kind == "layer" else op.target).rpartition(".")[2]


def role(op: Op) -> str:
    """What an operation does to a value: "linear", "conv", "recurrent", "embedding", "norm", "activation", "softmax",
    "pool", "dropout", "shape" (rearranges or selects), "output", or "" for anything else."""
    tail, kind = name_of(op), op.layer_kind
    if op.kind == "output":
        return "output"
    if op.kind == "layer":
        for name, kinds in _LAYER_ROLES.items():
            if kind in kinds:
                return name
        return "pool" if kind.startswith(NN) and "Pool" in tail and "Unpool" not in tail else ""
    if op.kind == "index":
        return "shape"
    if op.kind == "method" or (op.kind == "call" and op.target.startswith(("torch.nn.functional.", "torch."))):
        if op.target in _DROPPING:
            return "dropout"
        if tail in _SOFTMAX:
            return "softmax"
        if tail in _ACTIVE:
            return "activation"
        return "shape" if tail in RESHAPING else "pool" if "_pool" in tail else ""
    return ""


_LAYER_ROLES = {
    "linear": LINEARS,
    "conv": CONVS,
    "recurrent": RECURRENT,
    "embedding": EMBEDDINGS,
    "norm": NORMS,
    "softmax": frozenset({NN + "Softmax", NN + "LogSoftmax", NN + "Softmax2d", NN + "Softmin"}),
    "activation": ACTIVATIONS,
    "dropout": frozenset(DROPOUTS),
    "shape": SHAPE_ONLY,
}


def before(op: Op, *through: str) -> Op | None:
    """The operation that surely gives `op` its input, past those with one of the roles `through`; None where
    several may."""
    for _ in range(32):
        producer = op.only_producer()
        if producer is None or role(producer) not in through or any(producer.inputs[1:]):
            return producer
        op = producer
    return None


def behind(op: Op, *through: str) -> Op | None:
    """The one operation that uses the result of `op`, past those with one of the roles `through`; None if several do,
    or if that operation takes it only on some paths."""
    for _ in range(32):
        user = op.only_user()
        if user is None or user.only_producer() is not op or any(user.inputs[1:]):
            return None
        if role(user) not in through:
            return user
        op = user
    return None


def stacked(source: Source) -> Iterator[tuple[Dropout, Dropout]]:
    """Each dropout with the other one that surely is before it at every use, with no weights in between."""
    found = dropouts(source)
    of = {op: dropout for dropout in found for op in dropout.uses}
    for second in found:
        befores = [before(op, "shape", "activation", "pool") for op in second.uses]
        firsts = {of.get(op) if op is not None else None for op in befores}
        first = firsts.pop() if len(firsts) == 1 else None
        if first is not None and first is not second:
            yield first, second
