"""Gradients zeroed before the optimiser uses them.

## What it finds
`zero_grad()` between `backward()` and the `step()` of the same optimiser, with no other `backward()` in between.

## Why it matters
The step finds gradients that are zero or None: the weights do not move (with momentum or weight decay they drift), the
loss stays where it was, and nothing raises.

## Example
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.zero_grad()
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
Where gradients are written by hand between the two calls in a way that cannot be seen.

## References
- https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_before, remove
from auditor.rule import Category, Rule, span
from auditor.static.facts.training_loops import Act, Event, Round, functions_of, rounds, touches_gradients
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="TRN005",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="gradients zeroed between `backward` and `step`",
    triggers=("zero_grad",),
)

MESSAGE = "this discards the gradients that `backward` has just computed: `{}.step()` below finds none"


@rule.static
def zeroed_before_use(source: Source) -> Iterator[Finding]:
    """backward → zero_grad → step of one optimiser, with nothing in between that could give it gradients again."""
    reported: set[ast.Call] = set()
    for found in rounds(source):
        for step in found.all(Act.STEP):
            zero = _discarded(source, found, step)
            if zero is not None and zero[1].call not in reported:
                backward, zeroed = zero
                reported.add(zeroed.call)
                notes = [
                    Note(span(backward.call), "computes the gradients"),
                    Note(span(step.call), "finds none"),
                ]
                yield rule.finding(zeroed.call, MESSAGE.format(step.thing.text), notes=notes)


def _discarded(source: Source, found: Round, step: Event) -> tuple[Event, Event] | None:
    """The backward and the zero_grad that make `step` useless."""
    before = found.events[: found.events.index(step)]
    for index in range(len(before) - 1, -1, -1):
        event = before[index]
        if event.act is Act.BACKWARD or (event.act is Act.UNSEEN and not _only_reports(event)):
            return None
        if event.act is Act.ZERO:
            same = event.thing.is_surely(step.thing) and event.happens_with(step)
            if not same or touches_gradients([*functions_of(source, [event, step]), found.loop]):
                return None
            earlier = [item for item in before[:index] if item.act in (Act.BACKWARD, Act.STEP, Act.ZERO)]
            backward = earlier[-1] if earlier and earlier[-1].act is Act.BACKWARD else None
            return (backward, event) if backward is not None and backward.happens_with(step) else None
        if event.act is Act.STEP and event.thing.is_surely(step.thing):
            return None
    return None


_REPORTS = frozenset(
    {"print", "info", "debug", "warning", "item", "append", "set_postfix", "add_scalar", "log", "write"}
)


def _only_reports(event: Event) -> bool:
    function = event.call.func
    return (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")) in _REPORTS


@rule.fix(
    "zero the gradients before `backward()`",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def zero_before(source: Source, finding: Finding) -> list[Edit] | None:
    """Moves the `zero_grad()` statement before the backward of the same function."""
    zero = source.node_at(finding.location, ast.Call)
    backward = source.node_at(finding.notes[0].location, ast.Call)
    if zero is None or backward is None:
        return None
    moved, before = source.statement_of(zero), source.statement_of(backward)
    if source.tree.parent(moved) is not source.tree.parent(before) or not isinstance(moved, ast.Expr):
        return None
    return [insert_before(before, ast.unparse(moved)), remove(moved)]
