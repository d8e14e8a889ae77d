"""Zero weights that can never learn.

## What it finds
Weight layers that start at zero and stay useless. In source: two linear or convolutional layers, one feeding the other,
both filled with zeros, as by a loop over all layers. On the running model: zero weights that receive no gradient in any
of several gradient steps, or whose rows are still all equal after them.

## Why it matters
The gradient of a zero layer's input is zero, and the gradient of a layer with zero input is zero: of two such layers in
a row, each waits for the other for ever. Nothing is raised and the loss stays where it was. One zero layer is another
matter: the zero γ of a residual block, the zero output of an adapter, a zero head all come alive within three steps,
and all 368 zero initialisations met in 4.3 million lines of published code were of that kind. They are not reported.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.zeros_(m.weight)
                    nn.init.zeros_(m.bias)

        def forward(self, x):
            return self.net(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                    nn.init.zeros_(m.bias)

        def forward(self, x):
            return self.net(x)

## When to ignore it
Where the weights are loaded from a checkpoint before the first use.

## References
- Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 8.4 (initial weights must break symmetry)
- Zhang, Dauphin and Ma, "Fixup Initialization", 2019 (where a zero layer is right)
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
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="INI001",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="zero weights that can never learn",
    triggers=("zeros_(", "zero_(", "constant_(", "fill_(", ".data = torch.zeros"),
    yields_to=("INI007",),
    thresholds={"gradient steps": 8, "share of equal rows": 0.5},
)


@rule.static
def two_in_a_row(source: Source) -> Iterator[Finding]:
    """Two consecutive weight layers, both filled with zeros."""
    for pair in equal_pairs(source, zero=True):
        message = "this zeroes two weight layers in a row: neither passes the other a gradient, so neither ever learns"
        if pair.biased:
            message = "this zeroes two weight layers in a row: they learn through their biases alone, if at all"
        yield rule.finding(
            pair.first_write.node,
            message,
            severity=pair.severity,
            notes=pair.notes(),
            activation=pair.activation,
        )


@rule.dynamic
def without_gradient(capture: Capture) -> Iterator[Finding]:
    """Zero weights that got no gradient in any step of the probe, or whose rows are still equal."""
    from auditor.dynamic.groups import by_line, listed

    stuck = [layer for layer in capture.probe.executed if layer.zero and (layer.dead or layer.symmetric)]
    for location, layers in by_line(stuck):
        steps = layers[0].steps
        what = f"got no gradient in {steps} steps" if layers[0].dead else f"still had equal rows after {steps} steps"
        yield rule.finding(
            location,
            f"the weights of {listed(layers)} start at zero and {what}: they can never learn",
            modules=[layer.path for layer in layers],
            activation=layers[0].activation or "",
            steps=steps,
        )


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[alive(), symmetry_broken(idempotent=True)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    return reinitialised(source, finding)


@rule.rewrite
def initialise_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.initialize(finding.modules)
