"""Softmax applied to what goes into a cross-entropy.

## What it finds
A value that is a softmax on every path and reaches `F.cross_entropy` or an `nn.CrossEntropyLoss`: within one function,
or across modules of one file, where a model whose forward ends in softmax is trained with that loss. On the running
model: the same in a forward that computes its own loss.

## Why it matters
`cross_entropy` takes logits and applies log-softmax itself. Given probabilities it squashes them a second time: with
ten classes the loss of a perfect prediction is 1.46 instead of 0, gradients are small, and training is slow or stops
early, without any error. Where this was found in published code, it was a bug each time.

## Example
    def step(model, x, target):
        probabilities = F.softmax(model(x), dim=1)
        return F.cross_entropy(probabilities, target)

## Use instead
    def step(model, x, target):
        return F.cross_entropy(model(x), target)

## When to ignore it
When a soft bound on the loss is wanted (a form of label smoothing), and said so. Log-softmax before cross-entropy
changes nothing and is not reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import loss_floor, parameters, ranking, repeatable
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.endings import Ending
from auditor.static.facts.losses import fed_with, handing_over, loss_calls
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="LOS001",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="softmax before `cross_entropy`, which applies it itself",
    triggers=("cross_entropy", "CrossEntropyLoss"),
)

FUNCTION = "torch.nn.functional.cross_entropy"
SOFTMAX = Ending(
    functions=frozenset({"torch.softmax", "torch.nn.functional.softmax", "torch.special.softmax"}),
    layers=frozenset({"torch.nn.Softmax", "torch.nn.Softmax2d"}),
)
MESSAGE = "`cross_entropy` applies log-softmax itself: fed with probabilities, it stays far from 0 and learns slowly"


@rule.static
def squashed_twice(source: Source) -> Iterator[Finding]:
    """A softmax on every path to the input of a cross-entropy; reported once, with all the losses it reaches."""
    losses = loss_calls(source, FUNCTION, "torch.nn.CrossEntropyLoss")
    for softmax, notes in fed_with(source, losses, SOFTMAX).items():
        yield rule.finding(softmax, MESSAGE, notes=notes)


@rule.dynamic
def squashed_in_forward(capture: Capture) -> Iterator[Finding]:
    """A chain softmax → cross_entropy in the recorded forward, with nothing but rearrangements in between."""
    from auditor.dynamic.losses import fed_in_the_run, place_of

    for loss, given in fed_in_the_run(capture, FUNCTION):
        if given.operation == "softmax":
            where = place_of(capture, given, SOFTMAX.layers)
            yield rule.finding(where, MESSAGE, modules=[given.module], notes=[Note(loss.location, "the loss")])


@rule.fix(
    "remove the softmax",
    applicability="unsafe",
    keeps=[parameters(), ranking(mode="eval")],
    gains=[loss_floor(mode="eval"), repeatable(mode="eval", idempotent=True)],
)
def hand_over_logits(source: Source, finding: Finding) -> Edit | None:
    """The softmax's input in its place; an `nn.Identity` for a layer of a Sequential, so that no layer changes name."""
    call = source.node_at(finding.location, ast.Call)
    return handing_over(source, call, SOFTMAX, finding.notes) if isinstance(call, ast.Call) else None
