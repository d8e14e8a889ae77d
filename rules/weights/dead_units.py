"""Units of a trained layer that only have zero weights.

## What it finds
In weights that a model was loaded with (`--weights`): linear and convolutional layers in which some units, but not all,
have nothing but zeros for weights and bias. Such a unit gives 0 whatever comes in. From half of the units on it is a
warning.

## Why it matters
What gives 0 for every input takes memory and time and does nothing. Half a layer of them is the trace of something that
went wrong in training: ReLUs that died early under weight decay, which then pulled their weights to zero, a layer that
was widened and never trained on, a file of which only a part was written.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 256)
            self.head = nn.Linear(256, 10)
            self.load_state_dict(torch.load("net.pt"))  # 200 of the 256 units have died

        def forward(self, x):
            return self.head(F.relu(self.hidden(x)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 56)  # as many as the trained layer uses, or trained again with a lower rate
            self.head = nn.Linear(56, 10)
            self.load_state_dict(torch.load("smaller.pt"))

        def forward(self, x):
            return self.head(F.relu(self.hidden(x)))

## When to ignore it
Where units were pruned on purpose and the layer keeps its size, as `torch.nn.utils.prune` leaves it.

## References
- Lu et al., "Dying ReLU and Initialization: Theory and Numerical Examples", 2020
- Mehta et al., "On Implicit Filter Level Sparsity in Convolutional Neural Networks", CVPR 2019 (weight decay does it)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Severity
from auditor.rule import Category, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from auditor.dynamic.capture import Capture

MANY = 0.5

rule = Rule(
    __name__,
    code="WGT002",
    category=Category.SIMPLICITY,
    severity=Severity.WARNING,
    summary="units of a trained layer have only zero weights",
    thresholds={"share of the units": MANY},
)


@rule.dynamic
def only_zeros(capture: Capture) -> Iterator[Finding]:
    """Layers that ran, of a model whose weights were loaded; a layer of zeros alone is a choice."""
    for path, facts in capture.modules.items():
        units = _units(facts.module)
        if not capture.weights or units is None or not capture.executed(path):
            continue
        dead = int(units.sum())
        if 0 < dead < len(units):
            share = dead / len(units)
            yield rule.finding(
                facts,
                f"{dead} of the {len(units)} units of `{path}` have only zero weights in {capture.weights}: they give 0"
                " for every input",
                severity=Severity.WARNING if share >= MANY else Severity.INFO,
                modules=[path],
                dead_units=share,
            )


def _units(module: Any) -> Tensor | None:
    """Which units of a linear or convolutional layer have zeros for all weights and bias; None for other layers."""
    from torch.nn import Linear
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    if not isinstance(module, (Linear, _ConvNd)) or isinstance(module, _ConvTransposeNd):
        return None
    zero: Tensor = (module.weight.detach() == 0).flatten(1).all(dim=1)
    return zero if module.bias is None else zero & (module.bias.detach() == 0)
