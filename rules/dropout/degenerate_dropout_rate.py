"""A dropout rate that drops everything, is out of range, or is really a probability to keep.

## What it finds
A rate of 1 or more, or below 0, written in the source or found on the running model; and a probability to keep that is
passed as the probability to drop: a value above 0.5 that a name or a comment on the line calls so
(`nn.Dropout(keep_prob)`).

## Why it matters
`nn.Dropout(p=1.0)` is accepted and turns every activation of the training into zero, so that nothing before it learns;
any other value outside [0, 1] raises as soon as the layer is built. TensorFlow's `keep_prob` is the complement of
torch's `p`: a port that hands it over drops nine units out of ten where it meant one.

## Example
    class Net(nn.Module):
        def __init__(self, keep_prob=0.9):
            super().__init__()
            self.drop = nn.Dropout(keep_prob)

## Use instead
    class Net(nn.Module):
        def __init__(self, keep_prob=0.9):
            super().__init__()
            self.drop = nn.Dropout(1 - keep_prob)

## When to ignore it
Where the name is wrong and the value is right: rename it. In published code that is as frequent as the mistake, so
that values of 0.5 or less, and unknown ones, are never reported for their name alone.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Dropout.html (`p`: probability of an element to be zeroed)
- https://www.tensorflow.org/api_docs/python/tf/compat/v1/nn/dropout (`keep_prob`)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, train_eval_gap
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.rates import Rate, is_literal, rates
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="DRP002",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="dropout rate of 1 or out of range, or a probability to keep passed as `p`",
    triggers=("ropout",),
)

KEEP = r"(?i)keep_?(prob|rate|ratio|chance|p$)"
COMMENT = r"(?i)#.*\bkeep[ _-]?(prob|rate|ratio)"


@rule.static
def wrong_rate(source: Source) -> Iterator[Finding]:
    """A rate whose value is degenerate, or whose name or comment says that it is the complement."""
    for rate in rates(source):
        if rate.value is None:
            continue
        evidence = _keep_evidence(source, rate) if 0.5 < rate.value <= 1 else ""
        if evidence:
            yield rule.finding(rate.call, _complement_message(evidence), evidence=evidence)
        elif not 0 <= rate.value < 1 and (is_literal(rate.expression) or not _is_checked(source, rate)):
            yield rule.finding(rate.call, _message(rate.value), rate=rate.value)


@rule.dynamic
def live_rate(capture: Capture) -> Iterator[Finding]:
    """A rate that the running model has; its line says whether it was meant as a probability to keep."""
    from auditor.dynamic.rates import chosen_at, live_rates, written_at

    for rate in live_rates(capture):
        said = [_keep_evidence(source, call) for source, call in written_at(rate.location)] if rate.value > 0.5 else []
        if any(said) and rate.value <= 1:
            evidence = max(said)
            message = _complement_message(evidence)
            yield rule.finding(rate.location, message, modules=[rate.module], evidence=evidence)
        elif not 0 <= rate.value < 1:
            where = chosen_at(capture, rate)
            yield rule.finding(where, _message(rate.value), modules=[rate.module], rate=rate.value)


def _complement_message(evidence: str) -> str:
    return f"`{evidence}` is a probability to keep, but this argument is the probability to drop"


def _message(value: float) -> str:
    if value == 1:
        return "`p=1` turns every value into zero in training, so that nothing before this can learn"
    return f"`p={value:g}` is no probability: torch raises an error for it"


def _is_checked(source: Source, rate: Rate) -> bool:
    """Whether a condition around the call may keep such a value away (`if p > 0: …`)."""
    for above in source.tree.ancestors(rate.call):
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return False
        if isinstance(above, (ast.If, ast.IfExp, ast.BoolOp, ast.While)):
            return True
    return False


def _keep_evidence(source: Source, rate: Rate) -> str:
    """What says that the rate is a probability to keep: the name handed over as it is, or a comment on the line."""
    match rate.expression:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=str() as name)):
            into_own = source.module_class(rate.kind) is not None
            given_as = next((item.arg or "" for item in rate.call.keywords if item.value is rate.expression), "")
            told_there = into_own and (not given_as or re.search(KEEP, given_as))
            return name if re.search(KEEP, name) and not told_there else ""
        case ast.Constant():
            line = source.lines[rate.expression.lineno - 1]
            return ast.unparse(rate.expression) if re.search(COMMENT, line) else ""
    return ""


@rule.fix(
    "pass the complement",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[train_eval_gap()],
)
def complement(source: Source, finding: Finding) -> Edit | None:
    for rate in rates(source):
        if span(rate.call, source.path) == finding.location and "evidence" in finding.facts:
            return replace(rate.expression, f"1 - {ast.unparse(rate.expression)}")
    return None
