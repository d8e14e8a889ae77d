"""BatchNorm trained on batches of a few samples.

## What it finds
A training loop over a DataLoader with a batch size of 2 to 7 that trains a model with BatchNorm, both being in the
file; on the running model, also where `--batch-size` says so. 2 and 3 are a warning, 4 to 7 advice.

## Why it matters
Mean and variance of a few samples are noise: a fixed sample's normalised values vary by 1.22 / √N from batch to batch,
by 0.86 of a standard deviation at N = 2, and large maps hardly help, since their pixels are alike. The running
statistics used in evaluation then fit none of the batches. Accumulating gradients changes nothing about it.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64)

        def forward(self, x):
            return self.norm(x).mean((2, 3))

    def train(dataset):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(4, 64)

        def forward(self, x):
            return self.norm(x).mean((2, 3))

## When to ignore it
Where the batch size is only that of an example. A pretrained model is better helped by keeping its BatchNorm in eval
mode. The size of an input given for a run is no batch size of a training, and is never reported.

## References
- Wu and He, "Group Normalization", 2018
- Ioffe, "Batch Renormalization", 2017
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable, shapes, trains_at_batch_one
from auditor.fix.edit import Edit
from auditor.reference.normalization import group_count
from auditor.rule import Category, Rule, span
from auditor.static.facts.batches import batch_size, training_calls
from auditor.static.facts.replacements import norms_without_batch
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="NRM002",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="a `BatchNorm` trained on batches of a few samples",
    triggers=("BatchNorm",),
    yields_to=("NRM001",),
    thresholds={"samples, warning": 3, "samples, advice": 7},
)

UNSTABLE, NOISY = 3, 7


@rule.static
def few_samples(source: Source) -> Iterator[Finding]:
    """A training loop whose loader gives a model with BatchNorm two to seven samples at a time."""
    seen = set()
    for found in training_calls(source):
        size = batch_size(source, found.loader) if found.loader is not None else None
        if found.loader is None or size is None or not 2 <= size <= NOISY or found.loader in seen:
            continue
        seen.add(found.loader)
        model = f"`{found.owner.name}`" if found.owner is not None else "the model"
        notes = [Note(span(found.call), "the training step"), Note(span(found.norms[0]), "the first BatchNorm")]
        yield rule.finding(found.loader, _message(model, size), severity=_severity(size), notes=notes, samples=size)


@rule.dynamic
def few_samples_in_a_step(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm that a training step, of a size that somebody wrote, gives two to seven samples."""
    from auditor.dynamic.batches import trained_norms, training_batch

    batch = training_batch(capture)
    if batch is None or not 2 <= batch.samples <= NOISY:
        return
    size = batch.samples
    for norm in trained_norms(capture, batch):
        if norm.values > 2:
            message = _message(f"`{norm.facts.path}`", size)
            yield rule.finding(norm.where, message, severity=_severity(size), modules=[norm.facts.path], samples=size)


def _severity(size: int) -> Severity:
    return Severity.WARNING if size <= UNSTABLE else Severity.INFO


def _message(model: str, size: int) -> str:
    return f"BatchNorm of {model} is trained on {size} samples at a time: its statistics are mostly noise"


@rule.fix(
    "use GroupNorm (LayerNorm behind a linear layer), which normalises every sample by itself in both modes",
    applicability="unsafe",
    keeps=[parameters(), shapes(mode="eval")],
    gains=[trains_at_batch_one(), repeatable(mode="eval", idempotent=True)],
)
def normalise_each_sample(source: Source, finding: Finding) -> list[Edit] | None:
    """Every BatchNorm of the model is replaced; none if one cannot be."""
    return norms_without_batch(source, finding.location, group_count)
