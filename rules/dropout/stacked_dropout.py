"""Dropouts one behind the other, with no weights in between.

## What it finds
A dropout whose input comes from another one through nothing but activations, pooling and rearrangement. The message
gives the rate that they amount to together: 1 - (1 - p₁)(1 - p₂). A warning where that is above 0.75.

## Why it matters
Two layers at 0.5 drop 75 % of the units, with three times the signal's power in noise: the rate that acts is nowhere
written, and turning one of the two knobs does not do what it says. Usually one of them is left from an earlier version,
or comes from a part that ends in a dropout of its own.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(16, 64), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
            )

        def forward(self, x):
            return self.layers(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))

        def forward(self, x):
            return self.layers(x)

## When to ignore it
Where the two drop different things on purpose: whole channels, and single units of what is left.

## References
- Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import distribution, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.reference.dropout import effective_rate
from auditor.rule import Category, Rule, span
from auditor.static.facts.dropouts import stacked
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="DRP008",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="dropouts with no weights in between",
    triggers=("ropout",),
    thresholds={"effective rate above (warning)": 0.75},
)


@rule.static
def one_behind_the_other(source: Source) -> Iterator[Finding]:
    """A dropout every use of which gets what one other dropout left."""
    for first, second in stacked(source):
        notes = [Note(span(first.call), "the dropout before it")]
        rates = [first.rate, second.rate]
        known = [rate for rate in rates if rate is not None]
        if len(known) == len(rates):
            lost = effective_rate(known)
            yield rule.finding(
                second.call, _message(known), notes=notes, severity=_severity(lost), effective_rate=round(lost, 6)
            )
        else:
            yield rule.finding(
                second.call, "drops again what another dropout left, with no weights in between", notes=notes
            )


def _message(rates: list[float]) -> str:
    written = " and ".join(f"{rate:g}" for rate in rates)
    return f"dropouts of {written} with no weights in between: together they drop {effective_rate(rates):.0%}"


def _severity(lost: float) -> Severity:
    return Severity.WARNING if lost > 0.75 else Severity.INFO


@rule.dynamic
def one_behind_the_other_in_the_run(capture: Capture) -> Iterator[Finding]:
    """Two calls of the run, from two places, with no weights in between."""
    from auditor.dynamic.dropouts import ACTIVE, POOLS, RESHAPES, before, live_dropouts

    live = {dropout.node.name: dropout for dropout in live_dropouts(capture)}
    for second in live.values():
        node = before(second.node, RESHAPES | ACTIVE | POOLS)
        first = live.get(node.name) if node is not None else None
        if first is not None:
            rates = [first.rate, second.rate]
            lost = effective_rate(rates)
            notes = [Note(first.location, "the dropout before it")]
            modules = [second.module, first.module]
            yield rule.finding(
                second.location, _message(rates), modules=modules, notes=notes, severity=_severity(lost),
                effective_rate=round(lost, 6),
            )  # fmt: skip


@rule.fix(
    "merge the two",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval"), distribution(mode="train")],
)
def merge(source: Source, finding: Finding) -> list[Edit] | None:
    """The effective rate in the second and an `nn.Identity` for the first: for two plain layers, used once each, with
    nothing in between."""
    call = source.node_at(finding.location, ast.Call)
    pair = next((pair for pair in stacked(source) if pair[1].call is call), None)
    if pair is None:
        return None
    first, second = pair
    if second.expression is None or not all(item.is_plain and item.is_written for item in pair):
        return None
    if second.uses[0].only_producer() is not first.uses[0] or first.uses[0].only_user() is None:
        return None
    lost = effective_rate([item.rate for item in pair if item.rate is not None])
    name, edits = spelled(source, "torch.nn.Identity", source.function_of(first.call) or first.call)
    return [replace(first.call, f"{name}()"), replace(second.expression, f"{lost:.6g}"), *edits]
