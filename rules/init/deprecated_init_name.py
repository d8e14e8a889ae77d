"""Initialisers under the names they had before torch 0.4.

## What it finds
Calls of `torch.nn.init` functions without the trailing underscore, such as `nn.init.xavier_uniform`.

## Why it matters
All initialisers work in place, which torch says with an underscore since 0.4. The old names still work: they warn and
call the new ones. A reader takes `xavier_normal(w)` for a function that returns a new tensor.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)
            nn.init.xavier_uniform(self.head.weight)

        def forward(self, x):
            return self.head(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)
            nn.init.xavier_uniform_(self.head.weight)

        def forward(self, x):
            return self.head(x)

## When to ignore it
Code that must run with torch 0.3.

## References
- https://pytorch.org/docs/stable/nn.init.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.initialisers import INIT
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

OLD = (
    "uniform", "normal", "constant", "eye", "dirac", "xavier_uniform", "xavier_normal", "kaiming_uniform",
    "kaiming_normal", "orthogonal", "sparse",
)  # fmt: skip
rule = Rule(
    __name__,
    code="INI013",
    category=Category.SIMPLICITY,
    severity=Severity.WARNING,
    summary="initialisers under their deprecated names",
    triggers=(
        "avier_uniform(",
        "avier_normal(",
        "kaiming_uniform(",
        "kaiming_normal(",
        "orthogonal(",
        "init.",
        "nn.init",
    ),
)


@rule.static
def without_underscore(source: Source) -> Iterator[Finding]:
    """Calls of the old names."""
    for call in source.calls_to(*[INIT + name for name in OLD]):
        name = _name(source, call)
        yield rule.finding(call, f"`{name}` works in place and is called `{name}_` since torch 0.4: the old name warns")


def _name(source: Source, call: ast.Call) -> str:
    return min(source.resolve(call.func)).removeprefix(INIT)


@rule.fix("call it by its name with an underscore", keeps=[parameters(), outputs()])
def with_underscore(source: Source, finding: Finding) -> Sequence[Edit]:
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return ()
    if isinstance(call.func, ast.Attribute):
        owner = ast.get_source_segment(source.text, call.func.value) or ast.unparse(call.func.value)
        return [replace(call.func, f"{owner}.{call.func.attr}_")]
    code, edits = spelled(source, f"{INIT}{_name(source, call)}_", source.function_of(call) or call)
    return [replace(call.func, code), *edits]
