"""A LayerNorm over the last axis of a map, with the size of its channels.

## What it finds
A LayerNorm or RMSNorm of `C` features directly behind a convolution of `C` channels: the channels are at axis 1, the
norm works on the last axis. Activations and dropout may stand in between; a `permute` may not.

## Why it matters
Where the last axis has another size than the channels, torch raises an error. Where it has the same size, nothing is
said: each row of pixels is normalised by itself, and the weight meant for the channels scales columns of pixels.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 32, 3, padding=1)
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            return self.norm(self.conv(x))

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 32, 3, padding=1)
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            x = self.conv(x).permute(0, 2, 3, 1)
            return self.norm(x).permute(0, 3, 1, 2)

## When to ignore it
Where the rows are meant, as the frequencies of a spectrogram, and only by chance as many as the channels: give the
size of that axis a name of its own.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html (`normalized_shape` are the last axes)
- Liu et al., "A ConvNet for the 2020s", 2022 (LayerNorm of channels in a convolutional net)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, shapes, state_dict_keys
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule, span
from auditor.static.facts.norm_inputs import norm_inputs, same_number
from auditor.static.facts.replacements import over_axis_one
from auditor.static.layers import CONVS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

rule = Rule(
    __name__,
    code="NRM013",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="`LayerNorm` of channels over the last axis of a map",
    triggers=("LayerNorm", "RMSNorm"),
)

KINDS = ("torch.nn.LayerNorm", "torch.nn.RMSNorm")
FUNCTIONS = ("torch.nn.functional.layer_norm", "torch.nn.functional.rms_norm")
KEEP_AXES = frozenset({"relu", "gelu", "silu", "leaky_relu", "elu", "tanh", "sigmoid", "dropout", "relu6", "mish"})


@rule.static
def channels_behind_a_convolution(source: Source) -> Iterator[Finding]:
    """A norm with the number of channels of the convolution whose output it takes."""
    for found in norm_inputs(source):
        kind = source.layer_kind(found.layers[0])
        if found.norm.kind not in KINDS or kind not in CONVS:
            continue
        channels = source.argument(found.layers[0], "out_channels", 0 if "Lazy" in kind else 1)
        if same_number(source, found.norm.argument(source, "normalized_shape"), channels):
            note = Note(span(found.layers[0]), "its channels are axis 1")
            yield rule.finding(found.norm.call, _message(found.norm.name), notes=[note])


@rule.dynamic
def rows_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A norm over the last axis of a convolution's output, which happens to be as long as there are channels."""
    for call in capture.calls_to("eval", *FUNCTIONS):
        shape, facts = call.shape or (), capture.modules[call.module]
        square = len(shape) >= 3 and shape[1] == shape[-1] and tuple(call.argument("normalized_shape", 1)) == shape[-1:]
        if square and facts.kind in KINDS and _from_convolution(call):
            yield rule.finding(facts, _message(facts.kind.rpartition(".")[2]), modules=[call.module])


def _from_convolution(call: NodeFacts) -> bool:
    node = call
    while node.inputs:
        node = node.inputs[0]
        if node.operation.startswith("conv"):
            return True
        if node.operation not in KEEP_AXES:
            return False
    return False


def _message(name: str) -> str:
    return f"`{name}` works on the last axis, but the channels of this convolution's output are axis 1"


@rule.fix(
    "move the channels last for the norm, and back",
    applicability="display-only",  # where it does not raise, which of two functions was meant cannot be measured
    keeps=[parameters(), state_dict_keys(), shapes(mode="eval")],
)
def channels_last(source: Source, finding: Finding) -> Edit | None:
    norm = source.node_at(finding.location, ast.Call)
    return over_axis_one(source, norm) if isinstance(norm, ast.Call) else None
