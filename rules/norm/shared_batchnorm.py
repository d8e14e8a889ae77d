"""One BatchNorm used at several places of a forward.

## What it finds
A BatchNorm that one forward calls behind different layers: `self.norm(self.first(x))`, then
`self.norm(self.second(x))`. In a run, one that was called several times in one forward.

## Why it matters
Its running statistics become a mixture of those of all places. In training each call normalises by its own batch; in
evaluation all use the mixture, which fits none of them. The learned scale and shift are shared too.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            x = F.relu(self.norm(self.first(x)))
            return F.relu(self.norm(self.second(x)))

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(8)
            self.norm2 = nn.BatchNorm2d(8)

        def forward(self, x):
            x = F.relu(self.norm1(self.first(x)))
            return F.relu(self.norm2(self.second(x)))

## When to ignore it
Where all places see the same distribution. A siamese net, whose whole branch is called on several inputs, gets advice
only (info), and only for a run: there the shared statistics are those of both inputs together.

## References
- Ioffe and Szegedy, "Batch Normalization", 2015
- Cooijmans et al., "Recurrent Batch Normalization", 2017 (statistics of their own for each step)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable, shapes, statistics_error
from auditor.fix.edit import Edit, insert_after, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.shared_norms import places
from auditor.static.layers import BATCH_NORMS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

rule = Rule(
    __name__,
    code="NRM010",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="one `BatchNorm` at several places of a forward",
    triggers=("BatchNorm",),
)


@rule.static
def behind_several_layers(source: Source) -> Iterator[Finding]:
    """A BatchNorm that one run of a forward calls directly behind different weight layers."""
    for norm, calls in places(source):
        notes = [Note(span(call), "called here") for call in calls]
        yield rule.finding(norm, _message(len(calls), "different layers"), notes=notes)


@rule.dynamic
def called_several_times(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm that computed statistics several times in one forward; advice where the same layer came before."""
    for path, facts in capture.modules.items():
        if facts.kind not in BATCH_NORMS:
            continue
        calls = [node for node in capture.nodes("train") if node.module == path and node.operation == "batch_norm"]
        calls = [node for node in calls if node.argument("training", 5, False) is True]
        if len(calls) < 2:
            continue
        weights = {_weight_before(node) for node in calls}
        if len(weights - {""}) == len(calls):
            message = _message(len(calls), "different layers")
            yield rule.finding(facts, message, modules=[path], calls=len(calls))
        else:
            message = _message(len(calls), "the same branch on several inputs")
            yield rule.finding(facts, message, severity=Severity.INFO, modules=[path], calls=len(calls))


def _weight_before(call: NodeFacts) -> str:
    """The name of the weight of the layer directly before a call; empty if there is none."""
    for node in call.inputs[:1]:
        return next((item.parameter for item in node.inputs if item.parameter.endswith("weight")), "")
    return ""


def _message(calls: int, places: str) -> str:
    return (
        f"one BatchNorm is called {calls} times in a forward, behind {places}: its running statistics are a mixture "
        "of all of them"
    )


@rule.fix(
    "give each place a norm of its own",
    applicability="unsafe",
    keeps=[parameters(added=True), shapes(mode="eval")],
    gains=[statistics_error(), repeatable(mode="eval", idempotent=True)],
)
def own_norms(source: Source, finding: Finding) -> list[Edit] | None:
    """A copy of the construction for every place but the first, under the name with a number behind it."""
    norm = source.node_at(finding.location, ast.Call)
    calls = next((calls for shared, calls in places(source) if shared is norm), [])
    statement = source.statement_of(norm) if norm is not None else None
    match statement:
        case ast.Assign(targets=[ast.Attribute(attr=attr)], value=value) if value is norm and calls:
            edits = []
            for number, call in enumerate(calls[1:], 2):
                edits.append(replace(call.func, f"self.{attr}_{number}"))
                edits.append(insert_after(statement, f"self.{attr}_{number} = {ast.unparse(value)}"))
            return edits
    return None
