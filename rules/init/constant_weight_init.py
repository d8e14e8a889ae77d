"""Weight layers whose units are all equal.

## What it finds
Weights filled with one constant other than zero so that the units of a layer stay alike. In source: two linear or
convolutional layers, one feeding the other, both constant. On the running model: constant weights whose rows are still
equal after several gradient steps.

## Why it matters
Units that start equal and feed equal weights receive equal gradients: they stay equal for ever, and a layer of 512
units computes what one unit would. The loss falls a little, then stops.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(32, 2)
            for layer in (self.hidden, self.head):
                nn.init.constant_(layer.weight, 0.1)
                nn.init.zeros_(layer.bias)

        def forward(self, x):
            return self.head(torch.relu(self.hidden(x)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(32, 2)
            for layer in (self.hidden, self.head):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

        def forward(self, x):
            return self.head(torch.relu(self.hidden(x)))

## When to ignore it
Where the weights are loaded from a checkpoint before the first use, or are never trained (a fixed averaging kernel:
`requires_grad_(False)` says so).

## References
- Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 8.4 (initial weights must break symmetry)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import alive, parameters, repeatable, symmetry_broken
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.initial_signal import equal_pairs, reinitialised
from auditor.static.source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="INI002",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="weight layers whose units are all equal and stay so",
    triggers=("ones_(", "constant_(", "fill_(", ".data = torch.ones", ".data = torch.full"),
    yields_to=("INI001", "INI007"),
    thresholds={"share of equal rows": 0.5, "gradient steps": 8},
)


@rule.static
def two_in_a_row(source: Source) -> Iterator[Finding]:
    """Two consecutive weight layers, both filled with constants."""
    for pair in equal_pairs(source, zero=False):
        message = "this makes two weight layers in a row constant: their units start equal and get equal gradients"
        if pair.biased:
            message = "this makes two weight layers in a row constant: only the biases tell their units apart"
        yield rule.finding(
            pair.first_write.node,
            message,
            severity=pair.severity,
            notes=pair.notes(),
            activation=pair.activation,
        )


@rule.dynamic
def units_stay_equal(capture: Capture) -> Iterator[Finding]:
    """Constant weights, not zero, whose rows are still equal after the probe's steps."""
    from auditor.dynamic.groups import by_line, listed

    stuck = [layer for layer in capture.probe.symmetric if not layer.zero]
    for location, layers in by_line(layer for layer in stuck if _is_constant(layer.facts.tensor)):
        worst = max(layers, key=lambda layer: layer.dup_after or 0)
        yield rule.finding(
            location,
            f"the weights of {listed(layers)} are constant, and after {worst.steps} gradient steps"
            f" {worst.dup_after:.0%} of the units still equal another: the layer acts like a single unit",
            modules=[layer.path for layer in layers],
            activation=layers[0].activation or "",
            equal_units=worst.dup_after,
        )


def _is_constant(weight: Tensor) -> bool:
    return bool((weight == weight.flatten()[0]).all())


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[symmetry_broken(), alive(idempotent=True)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    return reinitialised(source, finding)


@rule.rewrite
def initialise_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.initialize(finding.modules)
