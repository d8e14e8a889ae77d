"""A GroupNorm with one channel per group on maps of one pixel.

## What it finds
A GroupNorm with as many groups as channels behind a linear layer, or behind a pooling to 1×1 (also with a 1×1
convolution in between): each group is one value.

## Why it matters
One value minus its own mean is zero: the output is the bias, whatever comes in, and nothing before it learns. On larger
maps the same layer is an InstanceNorm and works.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, 32), nn.GroupNorm(32, 32), nn.ReLU())

        def forward(self, x):
            return self.layers(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, 32), nn.GroupNorm(4, 32), nn.ReLU())

        def forward(self, x):
            return self.layers(x)

## When to ignore it
Where the input has further axes that the reading of the source does not show.

## References
- Wu and He, "Group Normalization", 2018
- https://pytorch.org/docs/stable/generated/torch.nn.GroupNorm.html
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import alive, parameters, repeatable, shapes
from auditor.fix.edit import Edit, replace
from auditor.reference.normalization import group_count
from auditor.rule import Category, Rule
from auditor.static.facts.batches import whole_number
from auditor.static.facts.norm_inputs import NormInput, norm_inputs, same_number
from auditor.static.layers import CONVS, NN
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="NRM016",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="`GroupNorm` over groups of one value, whose output is constant",
    triggers=("GroupNorm",),
)

GROUP_NORM = NN + "GroupNorm"
MESSAGE = "each group is one value here: GroupNorm subtracts it from itself, and the output is constant"
POOLS = tuple(f"{NN}Adaptive{kind}Pool{rank}d" for kind in ("Avg", "Max") for rank in (1, 2, 3))


@rule.static
def single_values(source: Source) -> Iterator[Finding]:
    """As many groups as channels, behind what surely gives one value per channel."""
    for found in norm_inputs(source):
        if found.norm.kind != GROUP_NORM:
            continue
        groups, channels = (found.norm.argument(source, name) for name in ("num_groups", "num_channels"))
        if same_number(source, groups, channels) and _single_pixel(source, found, channels):
            yield rule.finding(found.norm.call, MESSAGE)


def _single_pixel(source: Source, found: NormInput, channels: object) -> bool:
    """Whether the norm's input has one value per channel: a linear layer's, or a map pooled to 1×1."""
    kinds = found.kinds(source)
    layers = list(found.layers)
    if kinds[0] == NN + "Linear":
        return same_number(source, source.argument(layers[0], "out_features", 1), channels)
    while kinds and kinds[0] in CONVS and "Transpose" not in kinds[0]:
        if whole_number(source, source.argument(layers[0], "kernel_size", 2) or ast.Constant(0)) != 1:
            return False
        kinds, layers = kinds[1:], layers[1:]
    if not kinds or kinds[0] not in POOLS:
        return False
    size = source.argument(layers[0], "output_size", 0)
    sizes = size.elts if isinstance(size, (ast.Tuple, ast.List)) else [size]
    return all(isinstance(item, ast.Constant) and item.value == 1 for item in sizes)


@rule.dynamic
def single_values_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A GroupNorm that ran on groups of one value, because its input has no pixels or was pooled to one."""
    for call in capture.calls_to("train", "torch.nn.functional.group_norm"):
        shape, groups = call.shape, call.argument("num_groups", 1, 0)
        if shape and groups and len(shape) >= 2 and math.prod(shape[1:]) == groups and _by_design(call):
            facts = capture.modules[call.module]
            where = facts if facts.kind == GROUP_NORM else call
            yield rule.finding(where, MESSAGE, modules=[call.module], groups=groups)


def _by_design(call: NodeFacts) -> bool:
    """Whether the single pixel comes from the model and not from an input that is too small."""
    shape = call.shape or ()
    if len(shape) == 2:
        return True
    node = call
    while node.inputs:
        node = node.inputs[0]
        if "adaptive" in node.operation or node.operation == "mean":
            return True
        if node.shape is None or math.prod(node.shape[2:]) != 1:
            return False
    return False


@rule.fix(
    "put several channels into each group",
    applicability="unsafe",
    keeps=[parameters(), shapes(mode="eval")],
    gains=[alive(), repeatable(mode="eval", idempotent=True)],
)
def fewer_groups(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    for found in norm_inputs(source):
        channels = found.norm.argument(source, "num_channels")
        groups = found.norm.argument(source, "num_groups")
        if found.norm.call is call and found.norm.kind == GROUP_NORM and isinstance(groups, ast.expr):
            count = whole_number(source, channels) if isinstance(channels, ast.expr) else None
            return replace(groups, str(group_count(count) if count else 1))
    return None


@rule.rewrite
def fewer_in_memory(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.set(path, num_groups=group_count(surgery.module(path).num_channels))
