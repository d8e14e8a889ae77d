"""A BatchNorm whose running statistics are never updated.

## What it finds
A BatchNorm of the running model with `momentum=0`, and one that counts training batches, or was loaded with trained
weights, while its running mean and variance still are 0 and 1.

## Why it matters
In training it normalises by the batch, in evaluation by a mean of 0 and a variance of 1 that have nothing to do with
the data: two different functions. In torch, momentum is the weight of the new batch; 0 means that nothing is learned
from it, where "never forget" was `momentum=None`, the average over all batches.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64, momentum=0.0)

        def forward(self, x):
            return self.norm(x)

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64, momentum=None)

        def forward(self, x):
            return self.norm(x)

## When to ignore it
Where pretrained statistics are loaded and meant to stay: a layer whose statistics are not those it was built with is
never reported, nor is a freshly built model that nobody has trained.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (the note on momentum)
- Ioffe and Szegedy, "Batch Normalization", 2015
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, statistics_error
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.norm_calls import norm_calls
from auditor.static.layers import BATCH_NORMS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

rule = Rule(
    __name__,
    code="NRM012",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="running statistics of a `BatchNorm` that training never updates",
)


@rule.dynamic
def never_updated(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm that normalises by the batch in training and keeps the statistics it was built with."""
    for path, facts in capture.modules.items():
        norm: Any = facts.module
        if facts.kind not in BATCH_NORMS or norm.running_mean is None or norm.running_var is None:
            continue
        untouched = not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())
        if not untouched or not any(_uses_batch(node) for node in capture.nodes("train") if node.module == path):
            continue
        if norm.momentum == 0:
            yield rule.finding(facts, _message("`momentum=0` gives a new batch no weight"), modules=[path])
        elif norm.num_batches_tracked is not None and int(norm.num_batches_tracked) > 0:
            batches = int(norm.num_batches_tracked)
            message = _message(f"after {batches} training batches they still are those of construction")
            yield rule.finding(facts, message, modules=[path], batches=batches)
        elif capture.weights:
            yield rule.finding(facts, _message(f"in {capture.weights} they are those of construction"), modules=[path])


def _uses_batch(node: NodeFacts) -> bool:
    return node.operation == "batch_norm" and node.argument("training", 5, False) is True


def _message(reason: str) -> str:
    return f"the running statistics are never updated, and evaluation normalises by mean 0 and variance 1: {reason}"


@rule.fix(
    "average over all training batches",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="train")],
    gains=[statistics_error()],
)
def average(source: Source, finding: Finding) -> Edit | None:
    for norm in norm_calls(source, *BATCH_NORMS):
        momentum = norm.argument(source, "momentum")
        if norm.call.lineno == finding.location.row and isinstance(momentum, ast.Constant) and momentum.value == 0:
            return replace(momentum, "None")
    return None
