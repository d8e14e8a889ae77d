"""Softmax without a `dim`.

## What it finds
`F.softmax`, `F.log_softmax`, `F.softmin` and their layers without `dim`. An error where the input has three axes, by
the source or in a run, advice otherwise.

## Why it matters
Without `dim`, torch guesses from the number of axes: axis 0 for one or three axes, axis 1 otherwise. A tensor of shape
(batch, length, classes) is so normalised over the batch: the probabilities of a sample depend on its neighbours, and
those of a batch of one are all 1. torch warns once and goes on.

## Example
    def weights(queries, keys):
        return F.softmax(torch.bmm(queries, keys))

## Use instead
    def weights(queries, keys):
        return F.softmax(torch.bmm(queries, keys), dim=-1)

## When to ignore it
Never for long: name the axis.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, repeatable, samples_independent, shapes
from auditor.fix.edit import Applicability, Fix, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.axis_counts import axis_count
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="LOS004",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="softmax over an axis that torch guesses",
    triggers=("oftmax", "oftmin"),
)

FUNCTIONS = tuple(f"torch.nn.functional.{name}" for name in ("softmax", "log_softmax", "softmin"))
LAYERS = tuple(f"torch.nn.{name}" for name in ("Softmax", "LogSoftmax", "Softmin"))
WRONG = "without `dim`, three axes are normalised over the first one, the batch: samples mix"
GUESSED = "without `dim`, the axis depends on the number of axes of the input: 0 for one or three, otherwise 1"


@rule.static
def axis_left_out(source: Source) -> Iterator[Finding]:
    """Calls and layers whose `dim` surely is not given."""
    for call in source.calls_to(*FUNCTIONS, *LAYERS):
        if source.argument(call, "dim", 0 if source.is_any(call.func, *LAYERS) else 1) is None:
            certain = _axes(source, call) == 3
            severity = Severity.ERROR if certain else Severity.INFO
            yield rule.finding(call, WRONG if certain else GUESSED, severity=severity)


@rule.dynamic
def guessed_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A call whose `dim` was None, with the number of axes that its input had."""
    mode = "eval" if capture.nodes("eval") else "train"
    for call in capture.calls_to(mode, *FUNCTIONS):
        if call.argument("dim", 1) is None and call.shape is not None and call.location.path:
            layer = capture.modules[call.module]
            where = layer if layer.kind in LAYERS else call
            certain = len(call.shape) == 3
            severity = Severity.ERROR if certain else Severity.INFO
            message = WRONG if certain else GUESSED
            yield rule.finding(where, message, severity=severity, modules=[call.module], axes=len(call.shape))


def _axes(source: Source, call: ast.Call) -> int | None:
    """The number of axes that a functional softmax surely gets."""
    if not source.is_any(call.func, *FUNCTIONS):
        return None
    given = call.args[0] if call.args else source.argument(call, "input")
    return axis_count(source, given) if isinstance(given, ast.expr) else None


KEPT = (parameters(), shapes(mode="eval"))
GAINED = (samples_independent(mode="eval"), repeatable(mode="eval", idempotent=True))


@rule.fix("normalise the last axis", applicability="unsafe", keeps=KEPT, gains=GAINED)
def name_the_axis(source: Source, finding: Finding) -> Fix | None:
    """The last axis in place of the batch; the axis that torch takes already where the input has two."""
    call = source.node_at(finding.location, ast.Call)
    axes = _axes(source, call) if isinstance(call, ast.Call) else None
    axes = finding.facts.get("axes", axes)
    if not isinstance(call, ast.Call) or axes not in (2, 3):
        return None
    edits = (set_argument(call, "dim", "1" if axes == 2 else "-1"),)
    if axes == 2:
        return Fix("name the axis", edits, Applicability.SAFE, (parameters(), outputs(mode="eval")))
    return Fix("normalise the last axis", edits, Applicability.UNSAFE, KEPT, GAINED)
