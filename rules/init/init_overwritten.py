"""Initialisation in the wrong order.

## What it finds
Weights that are loaded and then initialised in the same function; a branch of an `isinstance` chain that an earlier one
takes everything from; an initialiser applied to a model that has no layers yet.

## Why it matters
Only the last write to a weight counts. A loaded model that is initialised afterwards is an untrained one, a shadowed
branch never runs, and what is applied before the layers exist does nothing: in each case the code reads as if it did.

## Example
    def build(path):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        model.load_state_dict(torch.load(path))
        model.apply(init_weights)
        return model

    def init_weights(module):
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

## Use instead
    def build(path):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        model.apply(init_weights)
        model.load_state_dict(torch.load(path))
        return model

    def init_weights(module):
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

## When to ignore it
Where a part of the loaded weights is meant to be replaced, and the initialiser keeps to it.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html (apply, load_state_dict)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable
from auditor.fix.edit import Edit, insert_after, remove
from auditor.rule import Category, Rule, span
from auditor.static.facts.order import applied_too_early, loaded_then_initialised, shadowed_branches
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="INI012",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="initialisation that is shadowed, comes too early, or destroys loaded weights",
    triggers=("load_state_dict", ".apply(", "isinstance("),
)


@rule.static
def overwritten(source: Source) -> Iterator[Finding]:
    """The three wrong orders."""
    for loading, filling in loaded_then_initialised(source):
        yield rule.finding(
            filling,
            "this initialises the model after its weights were loaded: the loaded ones are lost",
            notes=[Note(span(loading), "loaded here")],
        )
    for first, later in shadowed_branches(source):
        yield rule.finding(
            later,
            f"this never runs: `{ast.unparse(first)}` has taken all of these already",
            notes=[Note(span(first), "the test that takes them")],
        )
    for early in applied_too_early(source):
        yield rule.finding(early.statement, "no layer exists yet: this initialises nothing", kind="early")


@rule.fix(
    "apply it after the last layer",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
)
def at_the_end(source: Source, finding: Finding) -> Sequence[Edit]:
    """Only what comes too early is moved: of the other two, the author alone knows which order was meant."""
    early = next((item for item in applied_too_early(source) if item.statement.lineno == finding.location.row), None)
    if early is None:
        return ()
    return [remove(early.statement), insert_after(early.last, ast.unparse(early.statement))]
