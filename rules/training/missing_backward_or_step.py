"""A training loop that lacks its backward or its step.

## What it finds
A loop that zeroes gradients and steps an optimiser, in which nothing ever differentiates; or one that zeroes and
differentiates, while the optimiser built for it is never stepped anywhere in the file.

## Why it matters
The weights never change. The loss is printed, the epochs pass, the checkpoint is saved, and the model is the one that
was initialised.

## Example
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            optimizer.step()

## Use instead
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

## When to ignore it
Where something that cannot be seen differentiates or steps.

## References
- https://pytorch.org/docs/stable/optim.html#taking-an-optimization-step
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.rule import Category, Rule, span
from auditor.static.facts.training_loops import (
    Act,
    Event,
    Round,
    functions_of,
    is_optimizer,
    may_be_done_elsewhere,
    rounds,
    touches_gradients,
)
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="TRN002",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="a training loop in which the weights never change",
    triggers=("zero_grad",),
)

NO_BACKWARD = "`{}` steps in a loop in which nothing calls `backward()`: the weights never change"
NO_STEP = "gradients are computed for `{}`, and nothing ever calls its `step()`: the weights never change"


@rule.static
def never_learns(source: Source) -> Iterator[Finding]:
    """zero_grad and step without backward; zero_grad and backward without step."""
    reported: set[ast.Call] = set()
    for found in rounds(source):
        for event in (*_without_backward(source, found), *_without_step(source, found)):
            if event.call not in reported:
                reported.add(event.call)
                message = NO_BACKWARD if event.act is Act.STEP else NO_STEP
                notes = [Note(span(found.loop), "the loop")]
                yield rule.finding(event.call, message.format(event.thing.text), notes=notes)


def _without_backward(source: Source, found: Round) -> Iterator[Event]:
    """Steps of a loop that zeroes, where no gradient can come from anywhere."""
    steps = [event for event in found.all(Act.STEP) if event.known and not event.loops and not event.scaled]
    if not steps or found.all(Act.BACKWARD) or not found.all(Act.ZERO):
        return
    bodies: list[ast.AST] = [found.loop, *functions_of(source, found.events)]
    text = " ".join(ast.unparse(body) for body in bodies)
    if touches_gradients(bodies) or "autograd" in text or "backward" in text:
        return
    for step in steps:
        zeroed = any(event.thing.is_surely(step.thing) for event in found.all(Act.ZERO))
        alone = zeroed and not step.call.args and not step.call.keywords
        if alone and not may_be_done_elsewhere(source, found.events, step.thing):
            yield step


def _without_step(source: Source, found: Round) -> Iterator[Event]:
    """zero_grad of an optimiser that is built in the file, stays there, and is never stepped."""
    if source.tree.attributes("step") or not found.all(Act.BACKWARD):
        return
    for zero in found.all(Act.ZERO):
        made = zero.thing.made
        if made and all(is_optimizer(source, item) for item in made) and _stays(source, zero.thing.text):
            yield zero


def _stays(source: Source, text: str) -> bool:
    """Whether the optimiser is a local variable that is only used through its methods."""
    for node in source.tree.names(text):
        if isinstance(node.ctx, ast.Load) and not isinstance(source.tree.parent(node), ast.Attribute):
            return False
    return text.isidentifier()
