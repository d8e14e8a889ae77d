"""Plain dropout behind SELU, which keeps its variance only with alpha dropout.

## What it finds
`nn.Dropout` or `F.dropout` on the output of a SELU, with nothing but a rearrangement in between.

## Why it matters
A self-normalising network keeps mean 0 and variance 1 from layer to layer without any norm. Dropout sets units to 0,
which is far from SELU's low value, and scales the others up: at p = 0.1 the variance grows by 11 % at every layer, and
the network leaves the fixed point it was chosen for. `nn.AlphaDropout` sets them to the low value and corrects both.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(16, 64), nn.SELU(), nn.Dropout(0.1), nn.Linear(64, 10))

        def forward(self, x):
            return self.layers(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(16, 64), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(64, 10))

        def forward(self, x):
            return self.layers(x)

## When to ignore it
Where SELU is used as an activation like any other, in a network with norms or residual branches.

## References
- Klambauer et al., "Self-Normalizing Neural Networks", 2017, section "Alpha Dropout"
- https://pytorch.org/docs/stable/generated/torch.nn.AlphaDropout.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, unit_variance
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.dropouts import before, behind, dropouts, name_of, role
from auditor.static.facts.spelling import spelled
from auditor.static.flow import Op
from auditor.static.source import HIDDEN, Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP012",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="plain dropout behind SELU instead of `AlphaDropout`",
    triggers=("SELU", "selu"),
)

MESSAGE = "dropout to 0 behind SELU breaks its self-normalisation: the variance grows by 1/(1 - p) at every such layer"


@rule.static
def behind_selu(source: Source) -> Iterator[Finding]:
    """An elementwise dropout every use of which gets the output of a SELU and is not followed by a norm."""
    for dropout in dropouts(source):
        if dropout.is_elementwise and all(_is_behind_selu(op) and not _is_normed(op) for op in dropout.uses):
            yield rule.finding(dropout.call, MESSAGE, rate=dropout.rate)


def _is_behind_selu(op: Op) -> bool:
    producer = before(op, "shape")
    return producer is not None and role(producer) == "activation" and name_of(producer).lower().rstrip("_") == "selu"


def _is_normed(op: Op) -> bool:
    """Whether the next step is a norm, which makes the variance 1 again."""
    user = behind(op, "shape", "linear", "conv", "pool")
    return user is not None and role(user) == "norm"


@rule.dynamic
def behind_selu_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A call on the output of a SELU."""
    from auditor.dynamic.dropouts import POOLS, RESHAPES, WEIGHTED, before, behind, live_dropouts
    from auditor.dynamic.flow import NORMALISATIONS

    for dropout in live_dropouts(capture):
        producer = before(dropout.node, RESHAPES)
        user = behind(dropout.node, RESHAPES | WEIGHTED | POOLS)
        normed = user is not None and user.operation in NORMALISATIONS
        if dropout.is_elementwise and producer is not None and producer.operation == "selu" and not normed:
            yield rule.finding(dropout.location, MESSAGE, modules=[dropout.module], rate=dropout.rate)


@rule.fix(
    "use alpha dropout",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[unit_variance()],
)
def exchange(source: Source, finding: Finding) -> list[Edit] | None:
    """Another class for a layer. For a function, whose alpha form is off by default, only where it says `training`."""
    call = source.node_at(finding.location, ast.Call)
    dropout = next((item for item in dropouts(source) if item.call is call), None)
    if dropout is None:
        return None
    wanted = "torch.nn.AlphaDropout" if dropout.is_layer else "torch.nn.functional.alpha_dropout"
    if not dropout.is_layer:
        switch = source.argument(dropout.call, "training", 2)
        if switch is None or switch is HIDDEN or dropout.kind == "torch.dropout":
            return None
    name, edits = spelled(source, wanted, source.function_of(dropout.call) or dropout.call)
    return [replace(dropout.call.func, name), *edits]


@rule.rewrite
def exchange_layers(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.exchange_dropout(path, "AlphaDropout")
