"""Dropout in front of a BatchNorm, whose running variance is then that of another signal than in evaluation.

## What it finds
A dropout from which the signal goes on to a BatchNorm, through activations, pooling, rearrangement and at most two
linear or convolutional layers: advice below p = 0.3, a warning from there on. On the running model the shift is
measured: the variance at the BatchNorm without dropout, divided by that with it, is below 0.7.

## Why it matters
Dropout adds variance in training and none in evaluation, and BatchNorm keeps the variance that it saw in training. Its
outputs in evaluation are then too small, by the root of 1 - p for a signal of mean zero, more behind a ReLU. On digits
a network with p = 0.5 had a loss of 0.23 on test data, and 0.18 with the statistics estimated anew.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()
            )

        def forward(self, x):
            return self.layers(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.5)
            )

        def forward(self, x):
            return self.layers(x)

## When to ignore it
Where the running statistics are estimated anew after training, without dropout. Dropout behind the last BatchNorm does
no harm and is never reported.

## References
- Li et al., "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift", 2019
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys, variance_kept
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.dropouts import behind, dropouts, role
from auditor.static.facts.spelling import spelled
from auditor.static.flow import Op
from auditor.static.layers import BATCH_NORMS, DROPOUTS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP005",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="dropout before a BatchNorm",
    triggers=("BatchNorm",),
    thresholds={"rate from (warning)": 0.3, "variance ratio below (run)": 0.7},
)

MOST_WEIGHTS = 2  # layers in between: farther on, what is dropped averages out


@rule.static
def before_batchnorm(source: Source) -> Iterator[Finding]:
    """A dropout from which every use goes on to a BatchNorm and nowhere else."""
    for dropout in dropouts(source):
        norms = [_norm_behind(op) for op in dropout.uses]
        first = norms[0] if norms else None
        if first is None or first.layer is None or not all(norms):
            continue
        strong = dropout.rate is not None and dropout.rate >= 0.3
        rate = f"`p={dropout.rate:g}`" if dropout.rate is not None else "dropout"
        message = f"{rate} before a BatchNorm, which keeps the variance of training, dropout's noise included: "
        message += "in evaluation its outputs are too small"
        yield rule.finding(
            dropout.call,
            message,
            severity=Severity.WARNING if strong else Severity.INFO,
            notes=[Note(span(first.layer), "the BatchNorm behind it")],
        )


def _norm_behind(op: Op) -> Op | None:
    """The BatchNorm that the signal reaches; None where it is added, normalised otherwise or used twice before."""
    user: Op | None = op
    for _ in range(MOST_WEIGHTS + 1):
        user = behind(user, "activation", "pool", "shape", "dropout") if user is not None else None
        if user is None:
            return None
        if user.layer_kind in BATCH_NORMS:
            return user
        if role(user) not in ("linear", "conv"):
            return None
    return None


@rule.dynamic
def shifted_variance(capture: Capture) -> Iterator[Finding]:
    """A dropout before a BatchNorm whose input really varies more with dropout than without."""
    from auditor.dynamic.variance_shift import variance_shifts

    for dropout, norm, ratio in variance_shifts(capture):
        if ratio < 0.7:
            message = f"`p={dropout.rate:g}` before the BatchNorm `{norm.path}`: without dropout, as in evaluation, "
            message += f"its input has {ratio:.2f} times the variance that it had in training"
            yield rule.finding(
                dropout.location,
                message,
                severity=Severity.WARNING,
                modules=[dropout.module],
                notes=[Note(norm.location, "the BatchNorm behind it")],
                variance_ratio=round(ratio, 3),
            )


@rule.fix(
    "take the dropout out, or use it behind the last BatchNorm",
    applicability="display-only",  # how much of its regularisation to give up is the author's choice
    keeps=[parameters(), outputs(mode="eval")],
)
def take_out(source: Source, finding: Finding) -> list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    if source.layer_kind(call) not in DROPOUTS or not isinstance(call, ast.Call):
        return None
    name, imports = spelled(source, "torch.nn.Identity", source.function_of(call) or call)
    return [replace(call, f"{name}()"), *imports]


@rule.rewrite(
    title="move the dropout behind the last BatchNorm of its nn.Sequential",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
    gains=[variance_kept()],
)
def move_behind(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        holder = path.rpartition(".")[0]
        norms = [name for name, facts in surgery.capture.modules.items() if facts.kind in BATCH_NORMS]
        inside = [name for name in norms if name.rpartition(".")[0] == holder]
        surgery.move_behind(path, (inside or norms)[-1])
