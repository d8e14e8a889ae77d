"""The dropouts that a run went through: each with its rate, and what stands before and behind it in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditor.dynamic.flow import ACTIVATIONS, WEIGHT_FUNCTIONS
from auditor.finding import Location
from auditor.static.facts.ranks import Axes
from auditor.static.facts.rates import FUNCTIONS
from auditor.static.layers import DROPOUTS

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

RESHAPES = frozenset(
    {"view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "swapaxes", "movedim", "contiguous"}
    | {"unsqueeze", "squeeze", "getitem", "select", "narrow", "t", "T", "mT", "to", "float", "clone", "type_as"}
)
POOLS = frozenset(
    f"{adaptive}{kind}_pool{n}d" for adaptive in ("", "adaptive_") for kind in ("max", "avg") for n in (1, 2, 3)
)
ACTIVE = ACTIVATIONS - {"softmax", "log_softmax", "softmin", "glu"}
SOFTMAX = frozenset({"softmax", "log_softmax"})
WEIGHTED = WEIGHT_FUNCTIONS


@dataclass(frozen=True, slots=True)
class LiveDropout:
    """One call in train mode that drops at a rate above 0. `location`: where the layer is built, or the function is
    called; `module`: path of the layer, or of the module that makes the call."""

    node: NodeFacts
    rate: float
    module: str
    location: Location

    @property
    def is_elementwise(self) -> bool:
        return self.node.operation == "dropout"


def live_dropouts(capture: Capture) -> Iterator[LiveDropout]:
    """All of them, in the order of the run; attention with a rate of its own is none."""
    for node in capture.nodes("train"):
        if "dropout" not in node.operation:
            continue
        name, position, switch, at = FUNCTIONS.get(node.function, ("", -1, "", -1))
        if not name or not node.argument(switch, at, "alpha" not in node.operation):
            continue
        rate = node.argument(name, position, 0.5)
        if isinstance(rate, (int, float)) and rate > 0:
            owner = capture.modules[node.module]
            where = owner.location if owner.kind in DROPOUTS else node.location
            yield LiveDropout(node, float(rate), node.module, where)


def before(node: NodeFacts, through: Set[str]) -> NodeFacts | None:
    """The call that gives `node` its data, past calls of the operations `through`; None at the start of the graph."""
    for _ in range(64):
        if not node.inputs:
            return None
        node = node.inputs[0]
        if node.op not in ("call_function", "call_module") or node.operation not in through:
            return node
    return None


def behind(node: NodeFacts, through: Set[str]) -> NodeFacts | None:
    """The one call that takes the result of `node`, past calls of the operations `through`; None if several take it,
    or if the model returns it."""
    for _ in range(64):
        if len(node.users) != 1 or node.is_output:
            return None
        (user,) = node.users
        if user.operation not in through or not user.inputs or user.inputs[0].name != node.name:
            return user
        node = user
    return None


_TRANSPOSES = {"transpose", "permute", "swapaxes", "movedim", "t", "T", "mT"}
_STARTS_FEATURES = {"embedding", "lstm", "gru", "rnn_tanh", "rnn_relu"}


def layout_of(node: NodeFacts) -> Axes | None:
    """The axes of the tensor that a call is given, where its rank and the calls before it tell."""
    given = node.inputs[0] if node.inputs else None
    rank = len(given.shape or ()) if given is not None else 0
    if rank == 2:
        return Axes.FLAT
    kept = ACTIVE | {"dropout", "layer_norm", "rms_norm", "getitem"}
    maker = before(node, kept | {"linear"})
    by_linear = before(node, kept)
    if maker is None:
        return None
    if rank == 3 and maker.operation in _STARTS_FEATURES:
        return Axes.FEATURES_LAST
    plain_linear = by_linear is not None and by_linear.operation == "linear" and maker.operation not in _TRANSPOSES
    if rank == 3 and plain_linear and maker.op == "placeholder":
        return Axes.FEATURES_LAST
    through = before(node, ACTIVE | {"dropout", "batch_norm", "instance_norm", "group_norm"} | POOLS)
    made_by = through.operation if through is not None else ""
    maps = {3: ("conv1d", Axes.MAP_1D), 4: ("conv2d", Axes.MAP_2D), 5: ("conv3d", Axes.MAP_3D)}
    return maps[rank][1] if rank in maps and made_by == maps[rank][0] else None
