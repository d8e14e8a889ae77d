"""A classifier that starts far worse than a guess.

## What it finds
On the running model: a classifier whose cross-entropy at the start is above 3 ln C, where an uninformed model has ln C.
Only models whose output comes straight from a linear or convolutional layer are judged.

## Why it matters
A loss above ln C says that the untrained model is sure of something it cannot know. The first steps then only shrink
the logits, at a learning rate chosen for something else: of 28 such models measured 5 did not train at all, 12 only
with Adam.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(32, 4)
            nn.init.normal_(self.head.weight, std=8.0)

        def forward(self, x):
            return self.head(torch.tanh(self.hidden(x)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(8, 32)
            self.head = nn.Linear(32, 4)
            nn.init.xavier_normal_(self.head.weight)

        def forward(self, x):
            return self.head(torch.tanh(self.hidden(x)))

## When to ignore it
Where the output is no table of logits: a regression, a value function, similarities with a temperature of their own.

## References
- Karpathy, "A Recipe for Training Neural Networks", 2019 (verify the loss at init)
"""

from __future__ import annotations

import linecache
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import initial_loss, parameters, repeatable
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.initial_signal import reinitialised
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.dynamic.observe import Probe
    from auditor.fix.surgery import Surgery

HIGH, EXPLODED, LARGE, LOGITS = 3.0, 100.0, 1e3, 100.0
rule = Rule(
    __name__,
    code="INI015",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="a classifier that starts far worse than a guess",
    yields_to=("INI001", "INI002", "INI003", "INI004", "INI005", "INI007", "INI009"),
    thresholds={"loss / ln C": HIGH},
)
NOT_CLASSES = r"(?i)regress|critic|reward|value|actor|policy|qnet|q_net|dqn|embed|encoder|project|generator|decoder"


@rule.dynamic
def surer_than_it_can_be(capture: Capture) -> Iterator[Finding]:
    """The loss of the probe's first forward, and of two more draws of the inputs."""
    from auditor.dynamic.groups import blamed, has_cause, holds_again

    probe = capture.probe
    if not _is_high(probe) or not _classifies(capture) or has_cause(probe) or not holds_again(capture, _is_high):
        return
    assert probe.loss is not None
    assert probe.classes is not None
    blame, guess = blamed(probe.executed, max), math.log(probe.classes)
    yield rule.finding(
        blame.location,
        f"the loss at the start is {probe.loss:.1f}, {probe.loss / guess:.1f} times that of a guess among"
        f" {probe.classes} classes (ln {probe.classes} = {guess:.2f})",
        modules=[layer.path for layer in blame.layers],
        activation=blame.activation,
        loss=probe.loss,
        logit_std=probe.logit_std,
    )


def _is_high(probe: Probe) -> bool:
    """Above a few times ln C, but not so far off that the signal has exploded."""
    if not probe.ran or probe.nonfinite or probe.loss is None or probe.classes is None or not probe.executed:
        return False
    exploded = probe.largest_rms > LARGE or (probe.logit_std or 0.0) > LOGITS
    return not exploded and HIGH < probe.loss / math.log(probe.classes) <= EXPLODED


def _classifies(capture: Capture) -> bool:
    """Whether the output is what the last layer gives, and nothing says that it is something else than logits."""
    head = capture.probe.head
    if head is None or head.shape[0] != capture.probe.classes or not _ends_in_head(capture):
        return False
    name = capture.modules[""].kind.rpartition(".")[2]
    if re.search(NOT_CLASSES, f"{name} {head.path}"):
        return False
    text = "".join(linecache.getlines(capture.modules[""].location.path))
    other = re.search(r"(?i)mse_?loss|l1_?loss|huber", text)
    return not other or re.search(r"(?i)cross_?entropy|nll_?loss", text) is not None


def _ends_in_head(capture: Capture) -> bool:
    from auditor.dynamic.flow import PASSES, WEIGHT_FUNCTIONS

    mode = "train" if "train" in capture.graphs else "eval"
    for node in capture.outputs(mode)[:1]:
        while node.operation in PASSES and node.inputs:
            node = node.inputs[0]
        return node.operation in WEIGHT_FUNCTIONS
    return False


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[initial_loss(HIGH)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    return reinitialised(source, finding, warnings=True)


@rule.rewrite
def initialise_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.initialize(finding.modules)
