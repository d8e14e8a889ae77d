"""A BatchNorm momentum in the convention of Keras, or one that landed in ε.

## What it finds
A `momentum` above 0.5 and below 1, written, passed on, or found on the running model; and a momentum handed over by
position where torch has ε: `nn.BatchNorm2d(64, 0.8)`.

## Why it matters
TensorFlow's momentum is the weight of the old statistics, torch's is the weight of the new batch. A port of 0.99 makes
the running statistics those of the last batch alone, and the model is evaluated with their noise; 0.01 was meant. As
ε, 0.8 is added to the variance of every channel, so that channels of small variance are no longer normalised at all.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64, momentum=0.99)

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64, momentum=0.01)

## When to ignore it
Where the statistics of the last batch are what you want. `momentum=1` says so and is never reported, nor is `None`, the
average over all batches, or a large ε passed by its name.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (the note on momentum)
- https://keras.io/api/layers/normalization_layers/batch_normalization/
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, statistics_error
from auditor.fix.edit import Applicability, Edit, Fix, replace
from auditor.rule import Category, Rule
from auditor.static.facts.norm_calls import NormCall, norm_calls
from auditor.static.layers import BATCH_NORMS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="NRM015",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="`BatchNorm` momentum in the convention of Keras, or passed as ε",
    triggers=("BatchNorm", "batch_norm"),
    thresholds={"momentum": 0.5, "ε": 0.05},
)

MOMENTUM, EPSILON = 0.5, 0.05


@rule.static
def weight_of_the_old(source: Source) -> Iterator[Finding]:
    """A momentum or a positional ε that only makes sense as the momentum of Keras."""
    for norm in norm_calls(source, *BATCH_NORMS, "torch.nn.functional.batch_norm"):
        momentum = source.constant(norm.argument(source, "momentum"))
        if _is_number(momentum) and MOMENTUM < momentum < 1:
            yield rule.finding(norm.call, _message(momentum), momentum=momentum)
        elif (epsilon := _landed_in_epsilon(source, norm)) is not None:
            yield rule.finding(norm.call, _epsilon_message(epsilon), epsilon=epsilon)


@rule.dynamic
def live_momentum(capture: Capture) -> Iterator[Finding]:
    """The momentum and ε that the running layers have."""
    for path, facts in capture.modules.items():
        if facts.kind not in BATCH_NORMS:
            continue
        momentum: float | None = getattr(facts.module, "momentum", None)
        if momentum is not None and MOMENTUM < momentum < 1:
            yield rule.finding(facts, _message(momentum), modules=[path], momentum=momentum)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _landed_in_epsilon(source: Source, norm: NormCall) -> float | None:
    """The ε of a layer, where it is a number written by position that no ε is, and no momentum is given."""
    epsilon = norm.argument(source, "eps")
    if norm.kind not in BATCH_NORMS or not norm.by_position("eps") or not isinstance(epsilon, ast.Constant):
        return None
    value = source.constant(epsilon)
    if norm.argument(source, "momentum") is not None or not _is_number(value):
        return None
    return float(value) if EPSILON <= value < 1 else None


def _message(momentum: float) -> str:
    return (
        f"`momentum={momentum:g}` is the weight of the new batch in torch: the running statistics are nearly those of "
        f"the last batch (Keras' {momentum:g} is {1 - momentum:.3g} here)"
    )


def _epsilon_message(epsilon: float) -> str:
    return f"the second argument is ε, not the momentum: {epsilon:g} is added to the variance of every channel"


@rule.fix(
    "pass the weight of the new batch",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="train")],
    gains=[statistics_error()],
)
def complement(source: Source, finding: Finding) -> Edit | Fix | None:
    """The complement of the momentum; of a number in ε, nobody but the author knows what it was meant to be."""
    call = source.node_at(finding.location, ast.Call)
    norm = next((norm for norm in norm_calls(source, *BATCH_NORMS) if norm.call is call), None)
    if norm is None:
        return None
    if "momentum" not in finding.facts:
        return _shown(norm, finding.facts["epsilon"])
    momentum, value = norm.argument(source, "momentum"), finding.facts["momentum"]
    if not isinstance(momentum, ast.expr) or source.constant(momentum) != value:
        return None
    code = f"{1 - value:.6g}" if isinstance(momentum, ast.Constant) else f"1 - {ast.unparse(momentum)}"
    edit = replace(momentum, code)
    # The claim is measured over 50 batches: too few for an average over more than 20 of them.
    return edit if value <= 0.95 else Fix(rule.title, (edit,), Applicability.UNSAFE, rule.keeps)


def _shown(norm: NormCall, value: float) -> Fix | None:
    if len(norm.call.args) != 2 or norm.call.keywords:
        return None
    meant = 1 - value if value > MOMENTUM else value
    code = f"{ast.unparse(norm.call.func)}({ast.unparse(norm.call.args[0])}, momentum={meant:.3g})"
    return Fix("pass it as the momentum", (replace(norm.call, code),), Applicability.DISPLAY_ONLY)


@rule.rewrite
def complement_in_memory(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.set(path, momentum=1 - surgery.module(path).momentum)
