"""A LayerNorm or RMSNorm over a single value.

## What it finds
A LayerNorm or RMSNorm whose `normalized_shape` has one element, written or found on the running model.

## Why it matters
One value minus its own mean is zero: `nn.LayerNorm(1)` gives its bias whatever comes in, and no gradient passes it, so
that nothing before it learns. RMSNorm over one value gives the sign.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 1)
            self.norm = nn.LayerNorm(1)

        def forward(self, x):
            return self.norm(self.head(x))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(64)
            self.head = nn.Linear(64, 1)

        def forward(self, x):
            return self.head(self.norm(x))

## When to ignore it
Where the size is a placeholder that is replaced before use. A size that callers choose is reported only for a running
model that really has it.

## References
- Ba, Kiros and Hinton, "Layer Normalization", 2016
- https://pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.rule import Category, Rule
from auditor.static.facts.batches import whole_number
from auditor.static.facts.norm_calls import norm_calls
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="NRM007",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="norm over one value, whose output does not depend on it",
    triggers=("LayerNorm", "RMSNorm", "layer_norm", "rms_norm"),
)

KINDS = ("torch.nn.LayerNorm", "torch.nn.RMSNorm")
FUNCTIONS = ("torch.nn.functional.layer_norm", "torch.nn.functional.rms_norm")


@rule.static
def one_element(source: Source) -> Iterator[Finding]:
    """A `normalized_shape` that the file fixes at one element."""
    for norm in norm_calls(source, *KINDS, *FUNCTIONS):
        shape = norm.argument(source, "normalized_shape")
        sizes = shape.elts if isinstance(shape, (ast.Tuple, ast.List)) else [shape]
        if sizes and all(whole_number(source, size) == 1 for size in sizes if size is not None):
            yield rule.finding(norm.call, _message(norm.name))


@rule.dynamic
def one_element_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A layer that ran with such a shape, and a function called with one outside of torch's layers."""
    for path, facts in capture.modules.items():
        single = facts.kind in KINDS and math.prod(getattr(facts.module, "normalized_shape", ())) == 1
        if single and capture.executed(path):
            yield rule.finding(facts, _message(facts.kind.rpartition(".")[2]), modules=[path])
    for call in capture.calls_to("train", *FUNCTIONS):
        shape = call.argument("normalized_shape", 1, ())
        if capture.modules[call.module].kind not in KINDS and shape and math.prod(shape) == 1:
            yield rule.finding(call, _message(call.operation), modules=[call.module])


def _message(name: str) -> str:
    if name in ("RMSNorm", "rms_norm"):
        return f"`{name}` over one value gives its sign: no magnitude and no gradient passes"
    return f"`{name}` over one value gives the bias alone: the value minus its own mean is zero, and no gradient passes"
