"""Dropout written by hand, where torch has it built in.

## What it finds
A module class that is nothing but dropout of single elements: in training it multiplies its input with a random mask of
the same shape and divides by the probability to keep, in evaluation it returns its input.

## Why it matters
It computes the right thing, with three tensors where the built-in function fuses them into one, and nothing that looks
for dropout finds it: Monte-Carlo dropout, exporters, and tools that set rates look for `nn.Dropout`.

## Example
    class Drop(nn.Module):
        def __init__(self, p=0.1):
            super().__init__()
            self.p = p

        def forward(self, x):
            if not self.training:
                return x
            mask = torch.rand_like(x) > self.p
            return x * mask / (1 - self.p)

## Use instead
    class Drop(nn.Module):
        def __init__(self, p=0.1):
            super().__init__()
            self.p = p

        def forward(self, x):
            return F.dropout(x, self.p, self.training)

## When to ignore it
Where the random numbers must stay what they were. Stochastic depth, dropout of channels or tokens, shared masks and
noise are other functions and are never reported.

## References
- Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014
- https://pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import distribution, outputs, parameters
from auditor.fix.edit import Edit, remove, replace
from auditor.rule import Category, Rule
from auditor.static.facts.plain_dropouts import plain_dropouts
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="DRP007",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="hand-written dropout of single elements",
    triggers=("bernoulli", "torch.rand", "rand_like"),
    yields_to=("DRP006", "DRP011"),
)


@rule.static
def written_out(source: Source) -> Iterator[Finding]:
    """A class whose forward has no other step than these."""
    for found in plain_dropouts(source):
        name = found.facts.name
        message = f"`{name}` writes out dropout of single elements; `F.dropout` does the same in one call"
        yield rule.finding(found.facts.node, message)


@rule.fix(
    "call the built-in function",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval"), distribution(mode="train")],
)
def call_the_built_in(source: Source, finding: Finding) -> list[Edit] | None:
    """Forward becomes one call; the class stays, with its arguments and attributes."""
    node = source.node_at(finding.location, ast.ClassDef)
    found = next((found for found in plain_dropouts(source) if found.facts.node is node), None)
    if found is None:
        return None
    functional, imports = spelled(source, "torch.nn.functional", found.forward)
    body = list(found.forward.body)
    if isinstance(body[0], ast.Expr):  # its docstring
        body = body[1:]
    receiver = found.forward.args.args[0].arg
    call = f"return {functional}.dropout({found.tensor}, {found.rate}, {receiver}.training)"
    return [replace(body[0], call), *map(remove, body[1:]), *imports]
