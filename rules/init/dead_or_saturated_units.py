"""Layers whose units start dead or saturated.

## What it finds
On the running model, as a warning: a layer of which every ReLU is zero for the whole batch and stays so, so that its
weights get no gradient in any of several steps; and a layer whose weights drive most of its tanh or sigmoid units into
saturation. As advice: a layer of which most ReLUs are zero for the whole batch.

## Why it matters
A ReLU that is zero for every input passes no gradient, and nothing but its neighbours can revive it. A saturated tanh
or sigmoid passes next to none: of 18 models measured with more than half of a layer's units saturated 15 did not train.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(40, 2)
            nn.init.constant_(self.hidden.bias, -5.0)

        def forward(self, x):
            return self.head(torch.cat((x, torch.relu(self.hidden(x))), -1))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(40, 2)
            nn.init.zeros_(self.hidden.bias)

        def forward(self, x):
            return self.head(torch.cat((x, torch.relu(self.hidden(x))), -1))

## When to ignore it
Where the inputs of the real data are on another scale than the standard normal ones of the probe, or the units are
gates that are meant to start closed.

## References
- Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010 (saturation)
- Lu et al., "Dying ReLU and Initialization", 2020
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.rule import Category, Rule

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.dynamic.observe import LayerProbe, Probe

SATURATED, DEAD, UNITS = 0.5, 0.9, 16
# The standard deviation of the weighted sum at which half the units are beyond the bound: the bound / 0.674.
SPREAD = {"tanh": 2.09 / 0.674, "sigmoid": 4.18 / 0.674}
rule = Rule(
    __name__,
    code="INI014",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="layers whose units start dead or saturated",
    yields_to=("INI001", "INI002", "INI003", "INI004", "INI005", "INI007"),
    thresholds={"share of saturated units": SATURATED, "share of dead ReLUs, advice": DEAD, "gradient steps": 8},
)


@rule.dynamic
def without_slope(capture: Capture) -> Iterator[Finding]:
    """Dead layers, saturated layers, and (as advice) layers with many dead units."""
    from auditor.dynamic.groups import by_line, has_cause, listed

    probe = capture.probe
    if not probe.ran or probe.nonfinite or has_cause(probe):
        return
    dead = [layer for layer in probe.executed if _is_dead(layer, probe)]
    for location, layers in by_line(dead):
        yield rule.finding(
            location,
            f"every ReLU after {listed(layers)} is zero for the whole batch: no weight before it got a gradient in"
            f" {layers[0].steps} steps",
            modules=[layer.path for layer in layers],
            steps=layers[0].steps,
        )
    for location, layers in by_line(layer for layer in probe.executed if _is_saturated(layer, probe)):
        worst = max(unit.saturated for unit in probe.units if unit.activation == layers[0].activation)
        yield rule.finding(
            location,
            f"{worst:.0%} of the {layers[0].activation} units after {listed(layers)} start saturated: next to no"
            " gradient passes them",
            modules=[layer.path for layer in layers],
            activation=layers[0].activation,
            saturated=worst,
        )
    for unit in probe.units if not dead else ():
        if unit.activation == "relu" and unit.dead_units >= DEAD and _is_wide(capture, unit.path):
            yield rule.finding(
                unit.location,
                f"{unit.dead_units:.0%} of the ReLUs of `{unit.path or 'the model'}` are zero for the whole batch",
                severity=Severity.INFO,
                modules=[unit.path],
                dead_units=unit.dead_units,
            )


def _is_dead(layer: LayerProbe, probe: Probe) -> bool:
    """It is connected, not zero, and behind it is a ReLU of which all units are zero."""
    silent = any(unit.activation == "relu" and unit.dead_units == 1.0 for unit in probe.units)
    return silent and layer.dead and layer.connected and not layer.zero and layer.activation == "relu"


def _is_saturated(layer: LayerProbe, probe: Probe) -> bool:
    """The weights alone, not a bias, take most of its units beyond the bounds."""
    least = SPREAD.get(layer.activation or "")
    if least is None or layer.normalised_after or layer.in_rms is None or "RNN" in layer.kind or "LSTM" in layer.kind:
        return False
    units = [unit for unit in probe.units if unit.activation == layer.activation]
    return math.sqrt(layer.gain) * layer.in_rms > least and any(unit.saturated > SATURATED for unit in units)


def _is_wide(capture: Capture, path: str) -> bool:
    """Whether enough units are counted for a share to say something: not the few of a squeeze."""
    mode = "train" if "train" in capture.graphs else "eval"
    shapes = [node.shape for node in capture.nodes(mode) if node.module == path and node.operation == "relu"]
    return bool(shapes) and all(shape and shape[1 if len(shape) == 4 else -1] >= UNITS for shape in shapes)
