"""The learning-rate scheduler steps before the optimiser.

## What it finds
A loop in which every round calls `scheduler.step()` first and the optimiser's `step()` after it.

## Why it matters
Since PyTorch 1.1 the scheduler is to be stepped after the optimiser. Stepped first, it skips the first value of the
schedule: a warm-up or a milestone comes one epoch early, and the initial learning rate is never used.

## Example
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
        for epoch in range(90):
            scheduler.step()
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

## Use instead
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
        for epoch in range(90):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            scheduler.step()

## When to ignore it
Where the first value of the schedule is to be skipped. A `step` that is told the epoch is not reported.

## References
- https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_after, remove
from auditor.rule import Category, Rule, span
from auditor.static.facts.training_loops import LOOPS, Act, Event, rounds
from auditor.static.facts.values import held
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="TRN004",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="the scheduler steps before the optimiser and skips the first learning rate",
    triggers=("lr_scheduler",),
)

MESSAGE = "`{}` steps before `{}`: the first value of the schedule is skipped, and every later one comes a round early"


@rule.static
def scheduled_too_early(source: Source) -> Iterator[Finding]:
    """The first scheduler step of a round comes before every step of its optimiser, and no step precedes the loop."""
    reported: set[ast.Call] = set()
    for found in rounds(source):
        for schedule in found.all(Act.SCHEDULE):
            if schedule.known and schedule.certain and schedule.call not in reported and not schedule.call.args:
                steps = [event for event in found.all(Act.STEP) if _moves(source, schedule, event)]
                if steps and all(found.events.index(schedule) < found.events.index(step) for step in steps):
                    if _stepped_before(source, found.loop) or schedule.call.keywords:
                        continue
                    reported.add(schedule.call)
                    message = MESSAGE.format(schedule.thing.text, steps[0].thing.text)
                    notes = [Note(span(steps[0].call), "the optimiser's step")]
                    yield rule.finding(schedule.call, message, notes=notes)


def _moves(source: Source, schedule: Event, step: Event) -> bool:
    """Whether `step` is that of the scheduler's own optimiser."""
    for construction in schedule.thing.made:
        optimizer = source.argument(construction, "optimizer", 0)
        if not isinstance(optimizer, ast.expr):
            return False
        made = frozenset(held(source, optimizer))
        same = made == step.thing.made if made and step.thing.made else ast.unparse(optimizer) == step.thing.text
        if not same:
            return False
    return True


def _stepped_before(source: Source, loop: ast.stmt) -> bool:
    """Whether the optimiser or the scheduler may have been stepped before the loop, or the loop is in another one."""
    scope = source.function_of(loop)
    if any(isinstance(above, LOOPS) for above in source.tree.ancestors(loop)):
        return True
    return any(source.function_of(call) is scope and call.lineno < loop.lineno for call in source.calls_named("step"))


@rule.fix(
    "step the scheduler at the end of the round",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def schedule_last(source: Source, finding: Finding) -> list[Edit] | None:
    """Moves the statement to the end of the body of the same loop."""
    call = source.node_at(finding.location, ast.Call)
    statement = source.statement_of(call) if call is not None else None
    loop = source.tree.parent(statement) if statement is not None else None
    if not isinstance(statement, ast.Expr) or not isinstance(loop, LOOPS) or statement not in loop.body:
        return None
    leaves = any(isinstance(node, (ast.Continue, ast.Break, ast.Return)) for node in walk(loop))
    last = loop.body[-1]
    others = [ast.unparse(node).lower() for node in loop.body if node is not statement]
    used = any("lr" in text and "sched" in text for text in others)
    if leaves or last is statement or used:
        return None
    return [remove(statement), insert_after(last, ast.unparse(statement))]
