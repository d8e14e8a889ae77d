"""An initialisation method that nothing calls.

## What it finds
A module class with a method such as `_init_weights` that nothing in the file refers to, while another class of the file
calls its own method of that name when it is constructed.

## Why it matters
The layers keep torch's default initialisation, whatever the method says. Nothing is raised, and the model trains from
another start than its siblings and than its author believes.

## Example
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self._init_weights()

        def _init_weights(self):
            nn.init.xavier_uniform_(self.proj.weight)

        def forward(self, x):
            return self.proj(x)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def _init_weights(self):
            nn.init.xavier_uniform_(self.proj.weight)

        def forward(self, x):
            return self.proj(x)

## Use instead
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self._init_weights()

        def _init_weights(self):
            nn.init.xavier_uniform_(self.proj.weight)

        def forward(self, x):
            return self.proj(x)

## When to ignore it
Where other files call the method on objects of this class.

## References
- https://pytorch.org/docs/stable/nn.init.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable
from auditor.fix.edit import Edit, insert_after
from auditor.rule import Category, Rule, span
from auditor.static.facts.uncalled import uncalled_initialisers
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="INI011",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="initialisation methods that nothing calls, unlike those of sibling classes",
    triggers=("def _init", "def init", "def _reset", "def reset", "def weight_init", "def weights_init"),
)


@rule.static
def forgotten(source: Source) -> Iterator[Finding]:
    """Methods of that kind without a caller, next to ones that have one."""
    for facts, method, sibling in uncalled_initialisers(source):
        yield rule.finding(
            method,
            f"nothing calls `{facts.name}.{method.name}`, although `{sibling.name}` calls its own:"
            " the layers keep torch's default weights",
            notes=[Note(span(sibling.methods[method.name]), f"`{sibling.name}` calls this one when it is constructed")],
        )


@rule.fix(
    "call it at the end of the constructor",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
)
def call_it(source: Source, finding: Finding) -> Sequence[Edit]:
    method = source.node_at(finding.location, ast.FunctionDef)
    place = source.class_of(method) if method is not None else None
    facts = source.module_class(place) if place is not None else None
    start = facts.methods.get("__init__") if facts is not None else None
    if start is None or not isinstance(method, ast.FunctionDef) or isinstance(start.body[-1], (ast.Return, ast.Raise)):
        return ()
    return [insert_after(start.body[-1], f"self.{method.name}()")]
