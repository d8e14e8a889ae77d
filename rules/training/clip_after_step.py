"""Gradient clipping that clips nothing the optimiser uses.

## What it finds
`clip_grad_norm_` or `clip_grad_value_` after the last `step()` of a round or before its `backward()`, where the
gradients are zeroed before the next step; and clipping of gradients that a `GradScaler` has scaled and nothing has
unscaled yet.

## Why it matters
Clipped after the step, gradients are thrown away: training runs unclipped, and one bad batch can destroy the weights.
Scaled gradients are 65 536 times too large at first: clipping cuts every one of them to the bound, and after the scaler
divides again nearly nothing is left of the step.

## Example
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)

## Use instead
    def train(model, loader):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

## When to ignore it
Where the call only measures the norm. An infinite bound is not reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html
- https://pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_before, remove
from auditor.rule import Category, Rule, span
from auditor.static.facts.training_loops import Act, Event, Round, is_scaler, rounds
from auditor.static.facts.values import held
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="TRN006",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="gradient clipping outside `backward` … `step`, or of scaled gradients",
    triggers=("clip_grad_",),
)

LATE = "clips after `{}.step()`, and the gradients are zeroed before the next step: training runs unclipped"
EARLY = "clips before `backward()`, when the gradients are zero: training runs unclipped"
SCALED = "clips gradients that are still multiplied by the loss scale: call `unscale_` first"


@rule.static
def clips_nothing(source: Source) -> Iterator[Finding]:
    """Follows each clipping to the step or the zero_grad that comes next in the loop."""
    reported: set[ast.Call] = set()
    for found in rounds(source):
        for clip in found.all(Act.CLIP):
            if not clip.known or clip.loops or clip.call in reported or _only_measures(clip.call):
                continue
            wrong = _misplaced(found, clip) or _scaled(source, found, clip)
            if wrong is not None:
                message, other = wrong
                reported.add(clip.call)
                yield rule.finding(clip.call, message, notes=[Note(span(other.call), "the call that it must precede")])


def _only_measures(call: ast.Call) -> bool:
    return any("inf" in ast.unparse(argument) for argument in [*call.args[1:], *(item.value for item in call.keywords)])


def _misplaced(found: Round, clip: Event) -> tuple[str, Event] | None:
    steps, zeros, backwards = found.all(Act.STEP), found.all(Act.ZERO), found.all(Act.BACKWARD)
    straight = not clip.branches and len(backwards) == 1 and backwards[0].certain
    if not (straight and len(steps) == 1 and len(zeros) == 1 and steps[0].certain and zeros[0].certain):
        return None
    order = [event.act for event in found.events if event.act in (Act.CLIP, Act.STEP, Act.ZERO, Act.BACKWARD)]
    start = order.index(Act.BACKWARD)
    cycle = [*order[start:], *order[:start]]
    if cycle.count(Act.CLIP) != 1:
        return None
    place = cycle.index(Act.CLIP)
    if cycle.index(Act.STEP) < place:
        late = found.events.index(clip) > found.events.index(steps[0])
        return (LATE.format(steps[0].thing.text), steps[0]) if late else (EARLY, backwards[0])
    return None


def _scaled(source: Source, found: Round, clip: Event) -> tuple[str, Event] | None:
    """backward of a scaled loss → clip → `scaler.step`, and no unscale_ anywhere in the round."""
    steps = [event for event in found.all(Act.STEP) if event.scaled]
    if found.all(Act.UNSCALE) or len(steps) != 1 or not found.events.index(clip) < found.events.index(steps[0]):
        return None
    scaler = steps[0].call.func
    for backward in found.all(Act.BACKWARD):
        loss = backward.call.func.value if isinstance(backward.call.func, ast.Attribute) else None
        scales = isinstance(loss, ast.Call) and isinstance(loss.func, ast.Attribute) and loss.func.attr == "scale"
        before = found.events.index(backward) < found.events.index(clip)
        if scales and before and isinstance(scaler, ast.Attribute) and backward.happens_with(clip):
            made = held(source, scaler.value)
            if made and all(is_scaler(source, item) for item in made):
                return SCALED, steps[0]
    return None


@rule.fix(
    "clip between `backward()` and `step()`",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def clip_in_time(source: Source, finding: Finding) -> list[Edit] | Edit | None:
    """Moves the clipping before the step, or unscales first."""
    clip = source.node_at(finding.location, ast.Call)
    found = next((item for item in rounds(source) for event in item.all(Act.CLIP) if event.call is clip), None)
    if clip is None or found is None or not isinstance(source.statement_of(clip), ast.Expr):
        return None
    statement, step = source.statement_of(clip), found.all(Act.STEP)[0]
    if finding.message == SCALED:
        scaler = ast.unparse(step.call.func).rpartition(".")[0]
        return insert_before(statement, f"{scaler}.unscale_({step.thing.text})")
    target = source.statement_of(step.call)
    if source.tree.parent(target) is not source.tree.parent(statement):
        return None
    return [insert_before(target, ast.unparse(statement)), remove(statement)]
