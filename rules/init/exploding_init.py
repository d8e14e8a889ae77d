"""Initial weights that make the signal explode, or that all point the same way.

## What it finds
Initial weights so large that the model starts far off the scale. In source: a chain of linear or convolutional layers
without normalisation or residual connections, whose widths and initialisers predict a gain of more than three decades.
On the running model: a layer's output with an rms above 1000, logits with a standard deviation above 100 or a loss
above 100 ln C; and, as a warning, weights whose mean outweighs their spread, as those drawn from U(0, 1) do.

## Why it matters
Each layer multiplies the signal's mean square by fan-in · Var(w) · E[φ²], which for N(0, 1) weights is hundreds. The
first losses are astronomic, the first steps overflow or saturate every unit, and what survives trains badly. Weights
with a positive mean make all units of a layer nearly the same one, which a BatchNorm after them does not undo.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(8)]
            self.net = nn.Sequential(*layers, nn.Linear(64, 10))
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.normal_(m.weight)
                    nn.init.zeros_(m.bias)

        def forward(self, x):
            return self.net(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(8)]
            self.net = nn.Sequential(*layers, nn.Linear(64, 10))
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                    nn.init.zeros_(m.bias)

        def forward(self, x):
            return self.net(x)

## When to ignore it
Where the weights are loaded from a checkpoint before the first use, or the output is meant to be large (a simulation,
a fixed random projection).

## References
- He et al., "Delving Deep into Rectifiers", 2015
- Schoenholz et al., "Deep Information Propagation", 2017 (the recursion behind the prediction)
- Marchenko and Pastur, 1967 (the edge of a random matrix's spectrum, which a mean must not exceed)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Severity
from auditor.fix.claims import alive, head_rms, parameters, repeatable
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.initial_signal import predictions, reinitialised
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.dynamic.observe import Probe
    from auditor.fix.surgery import Surgery

LARGE, LOGITS, LOSS, SPIKE = 1e3, 100.0, 100.0, 1.5
rule = Rule(
    __name__,
    code="INI005",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="initial weights that make the signal explode",
    triggers=("normal_(", "uniform_(", "randn", "rand(", "xavier_", "orthogonal_", "kaiming_"),
    yields_to=("INI001", "INI002", "INI007"),
    thresholds={"layer rms": LARGE, "logit std": LOGITS, "loss / ln C": LOSS, "mean against bulk, warning": SPIKE},
)


@rule.static
def predicted(source: Source) -> Iterator[Finding]:
    """A whole chain that analytic propagation says gains three decades of rms."""
    for chain in predictions(source):
        if chain.explodes:
            rms = math.sqrt(max(chain.signal.outputs))
            message = f"with these weights an input of rms 1 grows to about {rms:.0e} within {len(chain.links)} layers"
            yield rule.finding(chain.write.node, message, activation=chain.activation, predicted_rms=rms)


@rule.dynamic
def measured(capture: Capture) -> Iterator[Finding]:
    """Layers, logits and loss at the start; weights with a mean that outweighs their spread."""
    from auditor.dynamic.groups import Blame, blamed, by_line, has_cause, listed

    probe = capture.probe
    if has_cause(probe):
        return
    excess = _excess(probe)
    if excess and probe.executed:
        blame = blamed(probe.executed, max)
        facts: Any = {"modules": [layer.path for layer in blame.layers], "activation": blame.activation}
        yield rule.finding(blame.location, f"an input of rms 1 explodes: {excess}", loss=probe.loss, **facts)
        return
    spiked = [layer for layer in probe.executed if layer.requires_grad and SPIKE < layer.spike < math.inf]
    for location, layers in by_line(spiked):
        worst = max(layer.spike for layer in layers)
        yield rule.finding(
            location,
            f"the mean of the weights of {listed(layers)} is {worst:.1f} times as strong as their spread: all units"
            " answer nearly alike",
            severity=Severity.WARNING,
            modules=[layer.path for layer in layers],
            activation=Blame(location, layers).activation,
            spike=worst,
        )


def _excess(probe: Probe) -> str:
    """What is beyond its threshold; empty if nothing is."""
    if probe.largest_rms > LARGE:
        worst = max(probe.executed, key=lambda layer: layer.out_rms or 0)
        return f"the output of `{worst.path}` has an rms of {worst.out_rms:.1e}"
    if probe.classes and probe.logit_std is not None and probe.logit_std > LOGITS:
        return f"the logits have a standard deviation of {probe.logit_std:.0f}"
    if probe.classes and probe.loss is not None and probe.loss > LOSS * math.log(probe.classes):
        return f"the loss starts at {probe.loss:.0f}, with {probe.classes} classes"
    return ""


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[head_rms(0.1, 10), alive(idempotent=True)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    """Not for a mean spike, which leaves the scale of the signal as it is."""
    return reinitialised(source, finding)


@rule.rewrite
def initialise_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.initialize(finding.modules)
