"""Weight layers in which most units start as copies of another.

## What it finds
On the running model: linear, convolutional and recurrent weights, not constant, of which more than half of the rows
repeat another row of the same layer, as after `row.repeat(n, 1)` or `weight[:] = row`.

## Why it matters
Units that start equal compute the same thing and, as long as what they feed treats them alike, receive the same
gradient. Other layers may tell them apart with time, but of 28 such models measured 27 trained badly even then: the
layer begins with the capacity of a few units.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(32, 2)
            self.hidden.weight.data = torch.randn(1, 8).repeat(32, 1)

        def forward(self, x):
            return self.head(torch.relu(self.hidden(x)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(32, 2)
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")

        def forward(self, x):
            return self.head(torch.relu(self.hidden(x)))

## When to ignore it
Where copies are meant and are not among those that stay silent anyway: sub-pixel copies before a pixel shuffle (ICNR),
heads of an attention expanded from fewer, filters that each read a channel of their own, weights that are not trained.

## References
- Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 8.4 (initial weights must break symmetry)
- Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017 (ICNR)
- Ainslie et al., "GQA", 2023 (expanded heads)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters, repeatable, symmetry_broken
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.initial_signal import reinitialised
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

SHARE = 0.5
rule = Rule(
    __name__,
    code="INI003",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="weight layers in which most units start as copies of another",
    yields_to=("INI001", "INI002", "INI007"),
    thresholds={"share of repeated rows": SHARE},
)


@rule.dynamic
def copies(capture: Capture) -> Iterator[Finding]:
    """Weights that run, are trained and repeat their rows without one of the reasons to do so."""
    from auditor.dynamic.copied_rows import copied_rows
    from auditor.dynamic.groups import by_line, listed

    for location, layers in by_line(copied_rows(capture, SHARE)):
        worst = max(layers, key=lambda layer: layer.dup_before)
        yield rule.finding(
            location,
            f"{worst.dup_before:.0%} of the units of {listed(layers)} start as copies of another unit:"
            " they compute the same and begin with the same gradient",
            modules=[layer.path for layer in layers],
            activation=layers[0].activation or "",
            equal_units=worst.dup_before,
        )


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True), symmetry_broken(idempotent=True)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    return reinitialised(source, finding)


@rule.rewrite
def initialise_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.initialize(finding.modules)
