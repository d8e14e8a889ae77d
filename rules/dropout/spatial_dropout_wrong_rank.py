"""Dropout of whole channels, given a tensor that has its channels elsewhere or none at all.

## What it finds
`Dropout1d`, `Dropout2d` or `Dropout3d` (or their functions) on a tensor whose second axis is not the channel axis of a
map, as far as the layers before it prove:

| layer | on | what it drops |
|---|---|---|
| `Dropout1d` | (N, C) | whole samples |
| `Dropout2d` | (N, C) | single features, as `Dropout` does |
| `Dropout2d` | (N, L, C) | whole positions |
| `Dropout3d` | (N, C, H, W) | whole samples |
| `Dropout3d` | (N, C) or (N, L, C) | whole samples |

## Why it matters
All of these run, most with no more than a deprecation warning. A model whose samples are erased at random sees all-zero
inputs with their labels; one whose positions are erased loses context instead of co-adapted features.

## Example
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(100, 32)
            self.drop = nn.Dropout2d(0.2)

        def forward(self, tokens):
            return self.drop(self.embed(tokens))

## Use instead
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(100, 32)
            self.drop = nn.Dropout(0.2)

        def forward(self, tokens):
            return self.drop(self.embed(tokens))

## When to ignore it
Where whole positions or samples are dropped on purpose: then say so. `Dropout1d` on (N, L, C) is never reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Dropout2d.html (shapes, and the warning about 3-D inputs)
- Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.dropouts import dropouts
from auditor.static.facts.ranks import Axes, axes_of
from auditor.static.facts.spelling import spelled
from auditor.static.layers import NN
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP010",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="dropout of channels on a tensor that is no map of channels",
    triggers=("ropout1d", "ropout2d", "ropout3d"),
)

SAMPLES, POSITIONS, FEATURES = "whole samples", "whole positions", "single features"
# Axes and rank of the layer → what it drops, and which layer drops what was meant.
WRONG = {
    (Axes.FLAT, 1): (SAMPLES, "Dropout"),
    (Axes.FLAT, 2): (FEATURES, "Dropout"),
    (Axes.FLAT, 3): (SAMPLES, "Dropout"),
    (Axes.FEATURES_LAST, 2): (POSITIONS, "Dropout"),
    (Axes.FEATURES_LAST, 3): (SAMPLES, "Dropout"),
    (Axes.MAP_1D, 3): (SAMPLES, "Dropout1d"),
    (Axes.MAP_2D, 3): (SAMPLES, "Dropout2d"),
}


@rule.static
def wrong_axis(source: Source) -> Iterator[Finding]:
    """A dropout of channels every use of which gets a tensor of one known kind, that has them elsewhere."""
    for dropout in dropouts(source):
        rank = _rank(dropout.tail)
        found = {axes_of(source, op) for op in dropout.uses} if rank else set()
        if len(found) == 1 and (axes := found.pop()) is not None and (axes, rank) in WRONG:
            yield rule.finding(dropout.call, _message(dropout.tail, axes, rank), variant=WRONG[axes, rank][1])


def _rank(tail: str) -> int:
    """1, 2 or 3 for `Dropout1d` … `dropout3d`; 0 for other dropouts."""
    return int(tail[-2]) if tail.lower().startswith("dropout") and tail.endswith("d") else 0


def _message(tail: str, axes: Axes, rank: int) -> str:
    dropped, variant = WRONG[axes, rank]
    name = variant if tail[0].isupper() else variant.lower()
    message = f"`{tail}` on a tensor of shape {axes.value} drops {dropped}"
    return f"{message}, and warns: `{name}` does that" if dropped == FEATURES else f"{message}; use `{name}`"


@rule.dynamic
def wrong_axis_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A call on a tensor of such a shape."""
    from auditor.dynamic.dropouts import layout_of, live_dropouts

    for dropout in live_dropouts(capture):
        rank = _rank(dropout.node.operation)
        axes = layout_of(dropout.node) if rank else None
        if axes is not None and (axes, rank) in WRONG:
            layer = capture.modules[dropout.module].kind.rpartition(".")[2]
            tail = layer if _rank(layer) else dropout.node.operation
            message = _message(tail, axes, rank)
            yield rule.finding(dropout.location, message, modules=[dropout.module], variant=WRONG[axes, rank][1])


@rule.fix("use the variant that fits", applicability="unsafe", keeps=[parameters(), outputs(mode="eval")])
def exchange(source: Source, finding: Finding) -> list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    dropout = next((item for item in dropouts(source) if item.call is call), None)
    if dropout is None or not _rank(dropout.tail):
        return None
    variant = str(finding.facts["variant"])
    wanted = NN + variant if dropout.is_layer else f"torch.nn.functional.{variant.lower()}"
    name, edits = spelled(source, wanted, source.function_of(dropout.call) or dropout.call)
    return [replace(dropout.call.func, name), *edits]


@rule.rewrite
def exchange_layers(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.exchange_dropout(path, finding.facts["variant"])
