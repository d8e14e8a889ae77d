"""A bias that the norm behind it subtracts again.

## What it finds
A convolution or linear layer with a bias whose output goes into a BatchNorm or InstanceNorm and nowhere else. The norm
subtracts the mean of each channel, and a bias is nothing but a shift of that mean.

## Why it matters
The bias has no effect on the output in training and its gradient is zero up to rounding: it costs memory, optimiser
state and a little precision for nothing, while the β of the norm does its work. Of 1 262 such layers in published code,
410 carry the bias. Nothing is wrong with the results.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)))

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, bias=False)
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)))

## When to ignore it
Where checkpoints with the bias must load, where the norm is folded into the convolution or kept in eval mode while the
convolution trains. LayerNorm, and GroupNorm over several channels, do not cancel a bias per channel: never reported.

## References
- Ioffe and Szegedy, "Batch Normalization", 2015, section 3.2
- https://pytorch.org/tutorials/recipes/recipes/tuning_guide.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs
from auditor.fix.edit import Edit, replace, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.normalised import Followed, bias_position, followed_by_norm, is_plain_bias
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="NRM004",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="bias that the following norm cancels",
    triggers=("BatchNorm", "InstanceNorm", "GroupNorm"),
)


@rule.static
def cancelled_bias(source: Source) -> Iterator[Finding]:
    """A layer built with a bias, every use of which is followed by a norm per channel and nothing else."""
    for pair in followed_by_norm(source):
        if is_plain_bias(source.argument(pair.layer, "bias", bias_position(pair.kind))):
            yield rule.finding(pair.layer, _message(pair.kind, pair.norm_kind), notes=[pair.note()])


@rule.dynamic
def cancelled_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A layer whose every call is taken by nothing but a norm that computes its statistics from the batch."""
    from auditor.dynamic.followed import cancelled_biases

    for layer, norm in cancelled_biases(capture):
        yield rule.finding(layer, _message(layer.kind, norm.kind), modules=[layer.path])


def _message(layer: str, norm: str) -> str:
    layer, norm = (name.rpartition(".")[2] for name in (layer, norm))
    return (
        f"the `{norm}` behind this `{layer}` subtracts the mean of each channel, and with it the bias: it has no effect"
    )


@rule.fix(
    "build the layer with `bias=False`",
    applicability="unsafe",
    keeps=[outputs(mode="train")],
)
def drop_the_bias(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    pair = _pair_at(source, call) if isinstance(call, ast.Call) else None
    if pair is None or pair.bias_is_touched(source):
        return None
    bias = source.argument(pair.layer, "bias", bias_position(pair.kind))
    if not is_plain_bias(bias):
        return None
    return replace(bias, "False") if isinstance(bias, ast.Constant) else set_argument(pair.layer, "bias", "False")


def _pair_at(source: Source, call: ast.Call) -> Followed | None:
    return next((pair for pair in followed_by_norm(source) if pair.layer is call), None)


@rule.rewrite(
    title="remove the bias, and take it out of the norm's running mean",
    # a bias is large against inputs of scale 1e-3: what cancels there leaves rounding in the gradients
    keeps=[outputs(mode="train"), outputs(mode="eval"), gradients(mode="train", rows=("given", "normal", "large"))],
)
def fold_the_bias(surgery: Surgery, finding: Finding) -> None:
    from auditor.dynamic.followed import cancelled_biases

    norms = {layer.path: norm.path for layer, norm in cancelled_biases(surgery.capture)}
    for path in finding.modules:
        if list(norms.values()).count(norms[path]) > 1:
            raise ValueError(f"`{norms[path]}` normalises several layers, whose biases have one running mean")
        surgery.fold_bias(path, norms[path])
