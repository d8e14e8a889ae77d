"""Layers of a probe sorted by the line that gave them their weights, so that one defect is one finding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from auditor.dynamic.observe import LayerProbe
from auditor.finding import Location


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
