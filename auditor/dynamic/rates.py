"""The dropout rates that a running model really has, with what each acts on and where it was chosen."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditor.finding import Location
from auditor.static.facts import rates as written
from auditor.static.layers import ATTENTION, DROPOUTS, NN, RECURRENT
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts, NodeFacts

# Calls with weights of their own, by operation → what a dropout behind them acts on.
_WEIGHTED = {
    "linear": "linear",
    "bilinear": "linear",
    "embedding": "an embedding",
    "embedding_bag": "an embedding",
    "softmax": "attention weights",
    **{f"conv{kind}{rank}d": "a convolution" for kind in ("", "_transpose") for rank in (1, 2, 3)},
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "a recurrent layer"),
}
_MIXING = {"add", "cat", "stack", "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
_STEPS = 16  # calls followed backwards before giving up


@dataclass(frozen=True, slots=True)
class LiveRate:
    """One rate of the model. `module`: path of the layer, or of the module that makes the functional call.

    `acts_on` and `width`: as `advised_range` takes them. `before`: the rates of the dropouts that lie before it with
    no weights in between.
    """

    value: float
    module: str
    location: Location
    acts_on: str = "a hidden layer"
    width: int | None = None
    before: tuple[float, ...] = ()


def live_rates(capture: Capture) -> Iterator[LiveRate]:
    """Rates of the layers that ran in train mode (of all layers, if the model could not be run), then of functional
    calls."""
    calls = {node.module: node for node in reversed(capture.nodes("train")) if _rate_of(node) is not None}
    ran = capture.rungs["train"].name != "none"
    for path, facts in capture.modules.items():
        rate = _layer_rate(facts)
        if rate is None and path not in calls:
            rate = _own_rate(capture, facts)
        if rate is not None and (facts.calls.get("train") or not ran):
            yield LiveRate(rate, path, facts.location, *_surroundings(facts.kind, calls.get(path)))
    for node in capture.nodes("train"):
        rate, owner = _rate_of(node), capture.modules[node.module]
        if rate is not None and _layer_rate(owner) is None:
            yield LiveRate(rate, node.module, node.location, *_surroundings("", node))


def _layer_rate(facts: ModuleFacts) -> float | None:
    """The rate of one of torch's layers, None for others and for recurrent layers that ignore it."""
    if facts.kind in DROPOUTS:
        return float(facts.module.p)  # type: ignore[arg-type]
    if facts.kind in ATTENTION or (facts.kind in RECURRENT and facts.module.num_layers > 1):  # type: ignore[operator]
        return float(facts.module.dropout)  # type: ignore[arg-type]
    return None


def _own_rate(capture: Capture, facts: ModuleFacts) -> float | None:
    """The rate of a dropout layer of the user's own: an attribute whose value agrees with the zeros it makes."""
    if "drop" not in facts.kind.rpartition(".")[2].lower() or facts.kind.startswith("torch."):
        return None
    zeros = [node.stats.zeros for node in capture.nodes("train") if node.module == facts.path and node.stats]
    for name in ("p", "drop_prob", "drop_rate"):
        value = getattr(facts.module, name, None)
        if isinstance(value, float) and zeros and zeros[-1] > value - 0.15:
            return value
    return None


def _rate_of(node: NodeFacts) -> float | None:
    """The rate of a functional call that drops, None for other calls and those switched off."""
    name, position, switch, at = written.FUNCTIONS.get(node.function, ("", -1, "", -1))
    if not name or (switch and not node.argument(switch, at, True)):
        return None
    default = 0.5 if name == "p" else 0.0
    value = node.argument(name, position, default)
    return float(value) if isinstance(value, (int, float)) else None


def _surroundings(kind: str, node: NodeFacts | None) -> tuple[str, int | None, tuple[float, ...]]:
    if kind in RECURRENT:
        return "a recurrent layer", None, ()
    if kind in ATTENTION or (node is not None and "attention" in node.operation):
        return "attention weights", None, ()
    if node is None:
        return "a convolution" if kind in (NN + "Dropout2d", NN + "Dropout3d") else "a hidden layer", None, ()
    acts_on, width, before = _behind(node)
    if len(node.users) == 1 and node.users[0].operation == "add" and len(node.users[0].inputs) == 2:
        acts_on = "a residual branch"
    return acts_on, width, before


def _behind(node: NodeFacts) -> tuple[str, int | None, tuple[float, ...]]:
    """What lies before a dropout: the kind of the nearest weights, their width, and the dropouts passed on the way."""
    before: list[float] = []
    flattened = False
    current = node
    for _ in range(_STEPS):
        if not current.inputs:
            break
        current = current.inputs[0]
        acts_on = _WEIGHTED.get(current.operation)
        if current.op == "placeholder":
            return "the input", None, tuple(before)
        if acts_on == "a convolution" and flattened:
            return "pooled features", None, tuple(before)
        if acts_on is not None:
            return acts_on, current.shape[-1] if acts_on == "linear" and current.shape else None, tuple(before)
        if current.operation in _MIXING:
            break
        rate = _rate_of(current)
        before += [rate] if rate else []
        flattened = flattened or (current.shape is not None and len(current.shape) == 2)
    return "a hidden layer", None, tuple(before)


def chosen_at(capture: Capture, rate: LiveRate) -> Location:
    """The line that chose the rate, as far as it is written there: the layer's or call's own, or that of a module
    around it which was handed the rate as an argument; otherwise `rate.location`."""
    modules = capture.modules
    candidates = [rate.location]
    path = rate.module
    while path:
        candidates.append(modules[path].location)
        path = modules[path].parent
    for place in candidates:
        if any(call.value == rate.value for _, call in written_at(place)):
            return place
    return rate.location


def written_at(place: Location) -> Iterator[tuple[Source, written.Rate]]:
    """The rates that the source hands over in calls on this line; none for a file that cannot be read."""
    source = _source(place.path)
    if source is None:
        return
    for rate in written.rates(source):
        if rate.call.lineno <= place.row <= (rate.call.end_lineno or rate.call.lineno):
            yield source, rate


def _source(path: str) -> Source | None:
    # linecache knows the text of a file that was loaded with its text replaced.
    try:
        return Source(path, "".join(linecache.getlines(path)))
    except (SyntaxError, ValueError):
        return None
