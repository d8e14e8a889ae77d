"""`verbose`, which learning-rate schedulers no longer take.

## What it finds
`verbose=` in the construction of a scheduler of `torch.optim.lr_scheduler`.

## Why it matters
It is deprecated since torch 2.2 and gone since 2.7: the construction raises `TypeError`, and the training does not
start.

## Example
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3, verbose=True)

## Use instead
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)

## When to ignore it
Code that must log the rate with an old torch; `scheduler.get_last_lr()` tells it with all.

## References
- https://github.com/pytorch/pytorch/pull/147301
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, remove_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API017",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="`verbose`, which learning-rate schedulers no longer take",
    triggers=("verbose",),
    since="2.2",
)

HOME = "torch.optim.lr_scheduler."


@rule.static
def passed(source: Source) -> Iterator[Finding]:
    for call in source.tree.all(ast.Call):
        if any(keyword.arg == "verbose" for keyword in call.keywords):
            names = source.resolve(call.func)
            if names and all(name.startswith(HOME) for name in names) and not guarded(source, call):
                yield rule.finding(call, "schedulers take no `verbose` since torch 2.7: this raises `TypeError`")


@rule.fix("leave it out", keeps=[parameters(), outputs()])
def left_out(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    return remove_argument(call, "verbose") if isinstance(call, ast.Call) else None
