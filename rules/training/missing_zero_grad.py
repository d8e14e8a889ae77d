"""Gradients that are never zeroed between optimiser steps.

## What it finds
A training loop that differentiates and steps in every round, in which no `zero_grad` stands on any path: not in the
loop, not in the functions of the file that it calls, not in a closure. A warning where the optimiser comes from
elsewhere.

## Why it matters
`backward()` adds to `.grad`. Without `zero_grad()` each step uses the sum of all gradients since the start: the
direction is that of old batches, and the step grows with every round until training diverges. Nothing raises.

## Example
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
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
Where gradients are summed on purpose over all rounds (a momentum written by hand).

## References
- https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_before
from auditor.rule import Category, Rule, span
from auditor.static.facts.training_loops import (
    Act,
    Event,
    Round,
    functions_of,
    may_be_done_elsewhere,
    rounds,
    touches_gradients,
)
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="TRN001",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="gradients are never zeroed between optimiser steps",
    triggers=(".step(",),
)

MESSAGE = "nothing zeroes the gradients of `{}` in this loop: each step uses the sum of all gradients since the start"


@rule.static
def gradients_add_up(source: Source) -> Iterator[Finding]:
    """A step with a backward before it in the same round, and no zero_grad anywhere in the round."""
    if "dist_autograd" in source.text or "DistributedOptimizer" in source.text:
        return
    reported: set[ast.Call] = set()
    for found in rounds(source):
        for step in found.all(Act.STEP):
            if step.call not in reported and _adds_up(source, found, step):
                reported.add(step.call)
                severity = Severity.ERROR if step.known else Severity.WARNING
                message = MESSAGE.format(step.thing.text)
                yield rule.finding(step.call, message, severity=severity, notes=list(_notes(found, step)))


def _adds_up(source: Source, found: Round, step: Event) -> bool:
    if step.loops or (not step.known and step.thing.made) or found.all(Act.ZERO):
        return False
    backwards = [event for event in found.all(Act.BACKWARD) if event.happens_with(step) or event.loops]
    if not backwards or may_be_done_elsewhere(source, found.events, step.thing):
        return False
    bodies: list[ast.AST] = [found.loop, *functions_of(source, [event for event in found.events if event.chain])]
    fresh = any(node in step.thing.made for body in bodies for node in walk(body))
    return not fresh and not touches_gradients(bodies) and not _is_single(found, step)


def _is_single(found: Round, step: Event) -> bool:
    """Whether the loop steps once only."""
    match found.loop:
        case ast.For(iter=ast.Call(func=ast.Name(id="range"), args=[ast.Constant(value=1)])):
            return True
    return any(isinstance(node, (ast.Break, ast.Return)) and node.lineno > step.call.lineno for node in found.loop.body)


def _notes(found: Round, step: Event) -> Iterator[Note]:
    yield Note(span(found.loop), "the loop whose rounds add up")
    for event in found.all(Act.BACKWARD)[:1]:
        yield Note(span(event.call), "adds to the gradients")
    for call in step.chain:
        yield Note(span(call), "the step is reached through this call")


@rule.fix(
    "zero the gradients before `backward()`",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def zero_first(source: Source, finding: Finding) -> Edit | None:
    """`optimizer.zero_grad()` before the one backward, where both stand in one function."""
    step = source.node_at(finding.location, ast.Call)
    for found in rounds(source):
        event = next((item for item in found.all(Act.STEP) if item.call is step), None)
        backwards = found.all(Act.BACKWARD)
        if event is not None and len(backwards) == 1 and not event.loops and not backwards[0].loops:
            before = source.statement_of(backwards[0].call)
            if source.function_of(before) is source.function_of(event.call):
                return insert_before(before, f"{event.thing.text}.zero_grad()")
    return None
