"""Layers of a probe sorted by the line that gave them their weights, so that one defect is one finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from auditor.dynamic.observe import LayerProbe, Probe
from auditor.dynamic.probe import run_probe
from auditor.finding import Location
from auditor.static.layers import NORMS

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture


def by_line(layers: Iterable[LayerProbe]) -> list[tuple[Location, list[LayerProbe]]]:
    """The layers by the user's line that last wrote their weights, in order of first appearance."""
    groups: dict[Location, list[LayerProbe]] = {}
    for layer in layers:
        groups.setdefault(layer.facts.location, []).append(layer)
    return list(groups.items())


def listed(layers: Sequence[LayerProbe], limit: int = 3) -> str:
    """The layers' names for a message: "`a`, `b` and 5 more"."""
    names = [f"`{layer.path or layer.weight}`" for layer in layers]
    if len(names) <= limit:
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(names[: limit - 1])} and {len(names) - limit + 1} more"


def log_gain(layer: LayerProbe) -> float:
    """Decades of rms that a layer adds to its signal (negative: takes from it)."""
    if not layer.in_rms or not layer.out_rms:
        return 0.0
    return math.log10(layer.out_rms / layer.in_rms)


def is_cause(layer: LayerProbe) -> bool:
    """Whether a layer is stuck at equal or missing weights: what a signal does after it is no defect of its own."""
    return not layer.facts.initialised or layer.symmetric or (layer.zero and layer.dead)


class Blame(NamedTuple):
    """The line whose layers change a signal most, with those layers."""

    location: Location
    layers: list[LayerProbe]

    @property
    def activation(self) -> str:
        """The first nonlinearity behind one of the layers; "" if there is none."""
        return next((layer.activation for layer in self.layers if layer.activation), "")

    def modules(self, capture: Capture) -> list[str]:
        """The layers, and the norms of the model: a rule that blames one of those names the cause."""
        norms = [path for path, facts in capture.modules.items() if facts.kind in NORMS and capture.executed(path)]
        return list(dict.fromkeys([*[layer.path for layer in self.layers], *norms]))


def blamed(layers: Iterable[LayerProbe], pick: Callable[..., Any]) -> Blame:
    """The line that adds most to the signal (`pick` is `max`), or takes most from it (`min`)."""
    return Blame(*pick(by_line(layers), key=lambda group: sum(map(log_gain, group[1]))))


def has_cause(probe: Probe) -> bool:
    """Whether a layer of the model is stuck (see `is_cause`)."""
    return any(is_cause(layer) for layer in probe.layers)


def holds_again(capture: Capture, judge: Callable[[Probe], object]) -> bool:
    """Whether two other draws of the inputs give a verdict too."""
    return all(judge(run_probe(capture, seed=capture.seed + offset)) for offset in (1, 2))
