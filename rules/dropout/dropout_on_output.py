"""Dropout on the output of the last layer.

## What it finds
A dropout between the last linear or convolutional layer and what makes the loss of its output: a softmax that ends the
model, or a cross-entropy. Dropout at the end of a block, of a projection or of attention is none.

## Why it matters
The target's own logit is set to zero with probability p, whatever the model has learnt, so that the training loss
cannot fall below about p · ln C for C classes (p = 0.1 and 1000 classes: 0.69). Behind the last layer there is nothing
left that could learn to do without the missing units.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return F.log_softmax(self.drop(self.fc(x)), dim=1)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return F.log_softmax(self.fc(self.drop(x)), dim=1)

## When to ignore it
Where the outputs are no class scores but weights of a mixture of many, which are meant to be dropped.

## References
- Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014 (input and hidden units)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import loss_floor, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.class_scores import CLASSIFIES, WEIGHS, dropped_scores
from auditor.static.facts.dropouts import dropouts
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP003",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="dropout between the last layer and the loss",
    triggers=("ropout",),
)

MESSAGE = "zeroes class scores in training: the loss cannot fall below about p · ln C, and no layer behind it can adapt"


@rule.static
def on_scores(source: Source) -> Iterator[Finding]:
    """A dropout behind a weight layer whose every use ends in a softmax that is returned, or in a classifier's loss."""
    for dropout in dropped_scores(source):
        yield rule.finding(dropout.call, MESSAGE, rate=dropout.rate)


@rule.dynamic
def on_scores_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A call behind a weight layer whose result is returned as class scores: through log-softmax, or by its name."""
    from auditor.dynamic.dropouts import RESHAPES, SOFTMAX, WEIGHTED, before, behind, live_dropouts

    for dropout in live_dropouts(capture):
        producer = before(dropout.node, RESHAPES)
        user = behind(dropout.node, RESHAPES)
        if producer is None or producer.operation not in WEIGHTED or user is None:
            continue
        ends = user.operation in SOFTMAX and (user.is_output or not user.users)
        owner = type(capture.model).__name__
        layer = producer.module.rpartition(".")[2]
        said = user.operation == "log_softmax" or CLASSIFIES.search(owner) or CLASSIFIES.search(layer)
        lossy = user.operation in ("cross_entropy", "nll_loss")
        if (lossy or (ends and said)) and not any(WEIGHS.search(name) for name in (owner, producer.module)):
            yield rule.finding(dropout.location, MESSAGE, modules=[dropout.module], rate=dropout.rate)


@rule.fix(
    "remove the dropout",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[loss_floor(mode="train")],
)
def remove(source: Source, finding: Finding) -> Edit | list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    dropout = next((item for item in dropouts(source) if item.call is call), None)
    if dropout is None:
        return None
    if dropout.is_layer:  # the layer keeps its name, and others in its container their numbers
        name, edits = spelled(source, "torch.nn.Identity", dropout.call)
        return [replace(dropout.call, f"{name}()"), *edits]
    given = dropout.call.args[0] if dropout.call.args else None
    text = ast.get_source_segment(source.text, given) if given is not None else None
    return replace(dropout.call, text) if text else None


@rule.rewrite
def remove_layers(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.exchange_dropout(path, "Identity")
