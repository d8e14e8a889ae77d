"""Layers at the same place of several members of one stack that start with the same random weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.dynamic.observe import LayerProbe
    from auditor.finding import Location


def twins(capture: Capture) -> list[tuple[Location, list[LayerProbe]]]:
    """Those layers, by the line that built their stack."""
    groups: dict[tuple[str, tuple[int, ...]], list[LayerProbe]] = {}
    for layer in capture.probe.executed:
        place = re.sub(r"\.\d+\.|\.\d+$|^\d+\.", ".#.", f"{layer.path}.{layer.weight}", count=1)
        if "#" in place and layer.requires_grad and not layer.zero and layer.dup_before < 0.5:
            groups.setdefault((place, layer.shape), []).append(layer)
    found: dict[Location, list[LayerProbe]] = {}
    for layers in groups.values():
        first = layers[0].facts.tensor
        if len(layers) > 1 and all(bool((layer.facts.tensor == first).all()) for layer in layers[1:]):
            found.setdefault(_stack(capture, layers[0]), []).extend(layers)
    return list(found.items())


def _stack(capture: Capture, layer: LayerProbe) -> Location:
    """Where the container that numbers its layers, or torch's stack around it, was constructed."""
    path = re.split(r"\.\d+\b", layer.path, maxsplit=1)[0]
    known = capture.modules.get(path)
    while known is not None and not known.location.path and known.path:
        known = capture.modules.get(known.parent)
    return known.location if known is not None else layer.location
