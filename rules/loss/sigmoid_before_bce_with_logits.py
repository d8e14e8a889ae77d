"""Sigmoid applied to what goes into a binary cross-entropy with logits.

## What it finds
A value that is a sigmoid on every path and reaches `F.binary_cross_entropy_with_logits` or an `nn.BCEWithLogitsLoss`:
within one function, or across modules of one file. On the running model: the same in a forward that computes its own
loss.

## Why it matters
The loss takes logits and applies the sigmoid itself. Given probabilities it squashes them a second time into
[0.5, 0.73]: the loss of a perfect prediction is 0.31 for a positive and 0.69 for a negative instead of 0, and gradients
are at most a quarter of what they should be.

## Example
    def step(model, x, target):
        probabilities = torch.sigmoid(model(x))
        return F.binary_cross_entropy_with_logits(probabilities, target)

## Use instead
    def step(model, x, target):
        return F.binary_cross_entropy_with_logits(model(x), target)

## When to ignore it
When a soft bound on the loss is wanted, and said so.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
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
    code="LOS002",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="sigmoid before a loss that applies it itself",
    triggers=("binary_cross_entropy_with_logits", "BCEWithLogitsLoss"),
)

FUNCTION = "torch.nn.functional.binary_cross_entropy_with_logits"
SIGMOID = Ending(
    functions=frozenset({"torch.sigmoid", "torch.nn.functional.sigmoid", "torch.special.expit"}),
    layers=frozenset({"torch.nn.Sigmoid"}),
)
MESSAGE = "the loss applies the sigmoid itself: fed with probabilities, it stays far from 0 and learns slowly"


@rule.static
def squashed_twice(source: Source) -> Iterator[Finding]:
    """A sigmoid on every path to the input of the loss; reported once, with all the losses it reaches."""
    losses = loss_calls(source, FUNCTION, "torch.nn.BCEWithLogitsLoss")
    for sigmoid, notes in fed_with(source, losses, SIGMOID).items():
        yield rule.finding(sigmoid, MESSAGE, notes=notes)


@rule.dynamic
def squashed_in_forward(capture: Capture) -> Iterator[Finding]:
    """A chain sigmoid → loss in the recorded forward, with nothing but rearrangements in between."""
    from auditor.dynamic.losses import fed_in_the_run, place_of

    for loss, given in fed_in_the_run(capture, FUNCTION):
        if given.operation == "sigmoid":
            where = place_of(capture, given, SIGMOID.layers)
            yield rule.finding(where, MESSAGE, modules=[given.module], notes=[Note(loss.location, "the loss")])


@rule.fix(
    "remove the sigmoid",
    applicability="unsafe",  # thresholds of 0.5 elsewhere become thresholds of 0
    keeps=[parameters(), ranking(mode="eval")],
    gains=[loss_floor(mode="eval"), repeatable(mode="eval", idempotent=True)],
)
def hand_over_logits(source: Source, finding: Finding) -> Edit | None:
    """The sigmoid's input in its place; an `nn.Identity` for a layer of a Sequential, so that no layer changes name."""
    call = source.node_at(finding.location, ast.Call)
    return handing_over(source, call, SIGMOID, finding.notes) if isinstance(call, ast.Call) else None
