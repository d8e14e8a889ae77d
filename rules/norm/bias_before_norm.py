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
from auditor.fix.claims import outputs
from auditor.fix.edit import Edit, replace, set_argument
from auditor.rule import Category, Rule
from auditor.static.followed import Followed, followed_by_norm
from auditor.static.source import HIDDEN, Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

rule = Rule(
    __name__,
    code="NRM004",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="bias that the following norm cancels",
    triggers=("BatchNorm", "InstanceNorm", "GroupNorm"),
)

CONVOLUTIONS = {f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)}


@rule.static
def cancelled_bias(source: Source) -> Iterator[Finding]:
    """A layer built with a bias, every use of which is followed by a norm per channel and nothing else."""
    for pair in followed_by_norm(source):
        bias = source.argument(pair.layer, "bias", pair.bias_position)
        if bias is None or (isinstance(bias, ast.Constant) and bias.value is True):
            yield rule.finding(pair.layer, _message(pair.kind, pair.norm_kind), notes=[pair.note()])


@rule.dynamic
def cancelled_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A layer whose every call is taken by nothing but a norm that computes its statistics from the batch."""
    calls: dict[str, list[NodeFacts]] = {}
    for node in capture.nodes("train"):
        if node.operation in CONVOLUTIONS or node.operation == "linear":
            calls.setdefault(node.module, []).append(node)
    for path, nodes in calls.items():
        facts = capture.modules.get(path)
        if facts is None or not facts.kind.startswith("torch.nn.") or facts.aliases:
            continue
        bias = getattr(facts.module, "bias", None)
        norms = {_cancelling_norm(capture, node) for node in nodes}
        if bias is None or not bias.requires_grad or "" in norms or _used_elsewhere(capture, bias, nodes):
            continue
        message = _message(facts.kind, capture.modules[min(norms)].kind)
        yield rule.finding(facts, message, modules=[path], values=bias.numel())


def _message(layer: str, norm: str) -> str:
    layer, norm = (name.rpartition(".")[2] for name in (layer, norm))
    return (
        f"the `{norm}` behind this `{layer}` subtracts the mean of each channel, and with it the bias: it has no effect"
    )


def _cancelling_norm(capture: Capture, node: NodeFacts) -> str:
    """Path of the norm that is the only user of this output and subtracts each channel's mean; "" if there is none."""
    if len(node.users) != 1 or node.is_output:
        return ""
    (user,) = node.users
    owner = capture.modules.get(user.module)
    if owner is None or not owner.kind.startswith("torch.nn.") or user.inputs[0].name != node.name:
        return ""
    per_channel = node.operation != "linear" or len(node.shape or ()) == 2
    if user.operation == "batch_norm":
        return user.module if per_channel and user.argument("training", 5, False) is True else ""
    if user.operation == "instance_norm":
        return user.module if per_channel and user.argument("use_input_stats", 5, True) is True else ""
    groups = user.argument("num_groups", 1) if user.operation == "group_norm" else None
    return user.module if groups is not None and groups == (node.shape or (0, 0))[1] else ""


def _used_elsewhere(capture: Capture, bias: object, nodes: list[NodeFacts]) -> bool:
    """Whether the bias is shared with another layer, or read by another call."""
    names = [name for name, facts in capture.parameters.items() if facts.tensor is bias]
    own = {node.name for node in nodes}
    reads = [read for node in nodes for read in node.inputs if read.parameter in names]
    return len(names) != 1 or any(user.name not in own for read in reads for user in read.users)


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
    bias = source.argument(pair.layer, "bias", pair.bias_position)
    if bias is None or bias is HIDDEN or any(keyword.arg == "bias" for keyword in pair.layer.keywords):
        return set_argument(pair.layer, "bias", "False") if bias is not HIDDEN else None
    return replace(bias, "False") if isinstance(bias, ast.expr) else None


def _pair_at(source: Source, call: ast.Call) -> Followed | None:
    return next((pair for pair in followed_by_norm(source) if pair.layer is call), None)
