"""A signal that dies out on its way through the layers.

## What it finds
Initial weights so small that little of the input is left at the last layer. In source: a chain of linear or
convolutional layers without normalisation or residual connections, whose widths and initialisers predict a loss of
more than three decades. On the running model: an rms below 1e-3 (warning: 1e-2) at the last layer's input, or a last
layer whose input is the same for every sample.

## Why it matters
Each layer multiplies the signal's mean square by fan-in · Var(w) · E[φ²]. Where that is well below 1, as with a
standard deviation of 0.01, eight layers are enough to leave nothing: the gradients vanish with the signal, and the loss
stays where it was. PyTorch's own default (a sixth of He's variance) does the same to about 20 plain layers.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(8)]
            self.net = nn.Sequential(*layers, nn.Linear(64, 10))
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.normal_(m.weight, std=0.01)
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
Where the weights are loaded from a checkpoint before the first use, or something outside the model rescales its output.

## References
- He et al., "Delving Deep into Rectifiers", 2015
- Schoenholz et al., "Deep Information Propagation", 2017 (the recursion behind the prediction)
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

LOST, WEAK = 1e-3, 1e-2
COLLAPSED, NEARLY = 1e-7, 1e-3
rule = Rule(
    __name__,
    code="INI004",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="initial weights that let the signal die out",
    triggers=("normal_(", "uniform_(", "randn", "xavier_", "orthogonal_", "kaiming_"),
    yields_to=("INI001", "INI002", "INI007", "NRM007", "NRM013", "NRM016"),
    thresholds={"rms at the head": LOST, "warning": WEAK, "share between samples": COLLAPSED, "its warning": NEARLY},
)


@rule.static
def predicted(source: Source) -> Iterator[Finding]:
    """A whole chain that analytic propagation says loses three decades of rms."""
    for chain in predictions(source):
        if chain.vanishes:
            rms = math.sqrt(chain.signal.head_input)
            message = f"with these weights an input of rms 1 has shrunk to about {rms:.0e} at the last of"
            message += f" {len(chain.links)} layers"
            yield rule.finding(chain.write.node, message, activation=chain.activation, predicted_rms=rms)


@rule.dynamic
def measured(capture: Capture) -> Iterator[Finding]:
    """The last layer's input at the start, and whether it depends on the model's input at all."""
    from auditor.dynamic.flow import reaches_output
    from auditor.dynamic.groups import blamed, has_cause, holds_again

    probe = capture.probe
    verdict = _verdict(probe)
    if verdict is None or probe.head is None or has_cause(probe):
        return
    if not reaches_output(capture, probe.head.name, probe.head.path):
        return  # a gate or a router that runs last
    severity, message = verdict
    if severity is Severity.WARNING and not holds_again(capture, _verdict):
        return
    blame = blamed((layer for layer in probe.executed if layer is not probe.head), min)
    facts: Any = {"activation": blame.activation, "head_rms": probe.head_rms, "sens": probe.initial_sens}
    yield rule.finding(blame.location, message, severity=severity, modules=blame.modules(capture), **facts)


def _verdict(probe: Probe) -> tuple[Severity, str] | None:
    """How bad it is, and why."""
    head, rms, sens, depth = probe.head, probe.head_rms, probe.initial_sens, len(probe.executed)
    if head is None or rms is None or depth < 2 or probe.nonfinite:
        return None
    last = f"the last of {depth} weight layers, `{head.path}`"
    if rms < WEAK:
        severity = Severity.ERROR if rms < LOST else Severity.WARNING
        return severity, f"an input of rms 1 reaches {last}, with an rms of {rms:.1e}"
    if sens is not None and sens < NEARLY:
        lasting = sens < COLLAPSED and probe.sens_after is not None and probe.sens_after < COLLAPSED
        depends = "does not depend" if lasting else "at first hardly depends"
        return (Severity.ERROR if lasting else Severity.WARNING), f"what reaches {last}, {depends} on the input"
    return None


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[head_rms(0.1, 10), alive(idempotent=True)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    return reinitialised(source, finding, warnings=True)


@rule.rewrite
def initialise_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.initialize(finding.modules)
