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
from auditor.rule import Category, Rule, span
from auditor.static.flow import Flow, Op
from auditor.static.layers import BATCH_NORMS, WEIGHTED
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
    for _, flow in source.flows_meeting(source.calls_to(*BATCH_NORMS)):
        norms = dict.fromkeys(op.layer for op in flow.layer_ops() if op.layer_kind in BATCH_NORMS)
        for norm in norms:
            places = _places(source, flow, norm) if norm is not None else []
            if norm is not None and len(places) > 1:
                notes = [Note(span(place), "called here") for place in places if isinstance(place, ast.expr)]
                yield rule.finding(norm, _message(len(places), "different layers"), notes=notes)


def _places(source: Source, flow: Flow, norm: ast.Call) -> list[ast.AST]:
    """The calls of the norm that may follow each other, each behind a weight layer of its own."""
    found: list[Op] = []
    for op in flow.layer_ops():
        before = op.only_producer()
        if op.layer is not norm or before is None or before.layer is None or before.layer_kind not in WEIGHTED:
            continue
        known = any(other.only_producer().layer is before.layer for other in found if other.only_producer())  # type: ignore[union-attr]
        if not known and all(_follows(other, op) for other in found):
            found.append(op)
    return [op.node for op in found]


def _follows(first: Op, then: Op) -> bool:
    """Whether the input of `then` is computed from the output of `first`, so that both happen in one run."""
    todo, seen = [then], {then}
    while todo:
        op = todo.pop()
        if op is first:
            return True
        todo += [producer for producer in op.producers if producer not in seen]
        seen |= op.producers
    return False


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
