"""A norm of another size than the layer before it.

## What it finds
A BatchNorm, InstanceNorm, GroupNorm, LayerNorm or RMSNorm directly behind a convolution or linear layer whose number
of outputs is another one, both being known; and a GroupNorm whose groups do not divide its channels.

## Why it matters
torch raises an error as soon as the model runs, in a part of it that may be the last to be reached.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)
            self.norm = nn.BatchNorm2d(32)

        def forward(self, x):
            return self.norm(self.conv(x))

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)
            self.norm = nn.BatchNorm2d(64)

        def forward(self, x):
            return self.norm(self.conv(x))

## When to ignore it
Where the layer before it is replaced before the model runs. BatchNorm1d and InstanceNorm1d behind a linear layer may
normalise the positions of (N, L, C), LayerNorm behind a convolution the pixels: never reported.

## References
- https://pytorch.org/docs/stable/nn.html#normalization-layers
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import runs
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.batches import whole_number
from auditor.static.facts.norm_calls import TRACKING, NormCall, norm_calls
from auditor.static.facts.norm_inputs import NormInput, norm_inputs
from auditor.static.layers import CONVS, NN
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="NRM006",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="norm of another size than what reaches it",
    triggers=("Norm",),
)

LINEAR = NN + "Linear"


@rule.static
def other_size(source: Source) -> Iterator[Finding]:
    """A norm whose size is not that of the layer before it; groups that do not divide the channels."""
    for found in norm_inputs(source):
        sizes = _sizes(source, found)
        if sizes is not None and sizes[0] != sizes[1]:
            note = Note(span(found.layers[0]), f"this gives {sizes[1]}")
            message = _message(found.norm.name, *sizes)
            yield rule.finding(found.norm.call, message, notes=[note], features=sizes[0], arriving=sizes[1])
    for norm in norm_calls(source, NN + "GroupNorm"):
        groups, channels = (_number(source, norm, name) for name in ("num_groups", "num_channels"))
        if groups and channels and channels % groups:
            yield rule.finding(norm.call, f"{channels} channels cannot be divided into {groups} groups")


@rule.dynamic
def other_size_in_the_run(capture: Capture) -> Iterator[Finding]:
    """The norm at which the run stopped; a BatchNorm of positions of which there happen to be as many as features."""
    from auditor.dynamic.misfits import misfits, swapped_axes

    for found in misfits(capture):
        message = _message(found.norm.kind.rpartition(".")[2], found.features, found.arriving)
        note = Note(found.layer.location, f"this gives {found.arriving}")
        yield rule.finding(found.norm, message, modules=[found.norm.path], notes=[note], raises=True)
    for facts, size in swapped_axes(capture):
        message = f"its {size} channels are the positions of (N, L, C), not the {size} features of the layer before it"
        yield rule.finding(facts, message, modules=[facts.path], features=size)


def _message(name: str, features: int, arriving: int) -> str:
    return f"`{name}` is built for {features} features, but {arriving} reach it: torch raises an error"


def _number(source: Source, norm: NormCall, name: str) -> int | None:
    argument = norm.argument(source, name)
    return whole_number(source, argument) if isinstance(argument, ast.expr) else None


def _sizes(source: Source, found: NormInput) -> tuple[int, int] | None:
    """The norm's features and those that reach it; None where they are unknown or may be those of different axes."""
    kind, norm = source.layer_kind(found.layers[0]), found.norm
    own = {NN + "GroupNorm": "num_channels", NN + "LayerNorm": "normalized_shape", NN + "RMSNorm": "normalized_shape"}
    if kind in CONVS and (norm.kind in TRACKING or norm.kind == NN + "GroupNorm") and "Instance" not in norm.kind:
        given = source.argument(found.layers[0], "out_channels", 0 if "Lazy" in kind else 1)
    elif kind == LINEAR and norm.kind in (NN + "LayerNorm", NN + "RMSNorm"):
        given = source.argument(found.layers[0], "out_features", 1)
    else:
        return None
    size = _number(source, norm, own.get(norm.kind, "num_features"))
    arriving = whole_number(source, given) if isinstance(given, ast.expr) else None
    return (size, arriving) if size is not None and arriving is not None else None


@rule.fix(
    "build the norm for what reaches it",
    applicability="display-only",  # nothing to compare with: the model has never run
    gains=[runs(mode="eval")],
)
def right_size(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    for found in norm_inputs(source):
        sizes = _sizes(source, found)
        if found.norm.call is call and sizes is not None and sizes[0] != sizes[1]:
            name = "num_channels" if found.norm.kind == NN + "GroupNorm" else "num_features"
            name = "normalized_shape" if found.layers and source.layer_kind(found.layers[0]) == LINEAR else name
            size = found.norm.argument(source, name)
            return replace(size, str(sizes[1])) if isinstance(size, ast.Constant) else None
    return None
