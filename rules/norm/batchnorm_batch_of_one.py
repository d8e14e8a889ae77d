"""BatchNorm trained on one sample at a time.

## What it finds
A BatchNorm that in training sees a single sample: a training loop over a DataLoader whose batch size is 1, a model
called on `x.unsqueeze(0)` in one; and in a run, where the training loop of the file or `--batch-size` says how many
samples a step has, one sample or two values per channel. A batch of one in evaluation is fine and never reported; nor
is an unknown batch size: the input that a run is given says nothing about it.

## Why it matters
With one value per channel (N·H·W = 1) torch raises `Expected more than 1 value per channel`. With two, the outputs are
±1 whatever the input, and the gradient is nearly zero. With one sample and a larger map the layer runs silently, but in
training it normalises each sample by itself and in evaluation by running statistics, which is another function: the
outputs of the two modes differ by more than their own size. Accumulating gradients changes nothing about it.

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
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=1, shuffle=True):
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
Where the loader is replaced before training, or each item is a batch. In a pretrained model, keep it in eval mode.

## References
- Ioffe and Szegedy, "Batch Normalization", 2015
- Wu and He, "Group Normalization", 2018
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable, shapes, trains_at_batch_one
from auditor.fix.edit import Edit
from auditor.reference.normalization import group_count
from auditor.rule import Category, Rule, span
from auditor.static.facts.batches import TrainingCall, batch_size, training_calls
from auditor.static.facts.replacements import norms_without_batch, weighted_before
from auditor.static.layers import NN
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="NRM001",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="a `BatchNorm` trained on one sample at a time",
    triggers=("BatchNorm",),
    thresholds={"samples": 1, "values per channel": 2},
)


@rule.static
def one_sample_per_step(source: Source) -> Iterator[Finding]:
    """A training loop that gives a model with BatchNorm batches of one."""
    for found in training_calls(source):
        if found.loader is None:
            message = f"each training step normalises one sample by itself: {_model(found)} has BatchNorm"
            yield rule.finding(found.call, message, notes=_notes(found))
        elif batch_size(source, found.loader) == 1:
            message = f"this loader trains {_model(found)}, which has BatchNorm, on batches of one sample"
            yield rule.finding(found.loader, message, notes=_notes(found))
        elif batch_size(source, found.loader) == 2 and (norm := _behind_linear(source, found)) is not None:
            message = "batches of 2: the two values per channel become ±1 whatever they are, with no gradient"
            yield rule.finding(found.loader, message, notes=[Note(span(norm), "the BatchNorm that gets them")])


def _behind_linear(source: Source, found: TrainingCall) -> ast.Call | None:
    """The first BatchNorm1d that surely normalises what a linear layer gives: one value per sample and channel."""
    flat = [norm for norm in found.norms if source.layer_kind(norm) == NN + "BatchNorm1d"]
    return next((norm for norm in flat if set(weighted_before(source, norm)) == {"Linear"}), None)


def _model(found: TrainingCall) -> str:
    return f"`{found.owner.name}`" if found.owner is not None else "the model"


def _notes(found: TrainingCall) -> list[Note]:
    return [Note(span(found.call), "the training step"), Note(span(found.norms[0]), "the first BatchNorm")]


@rule.dynamic
def too_few_values(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm that a training step, of a size that somebody wrote, gives one sample or two values a channel."""
    from auditor.dynamic.batches import trained_norms, training_batch

    batch = training_batch(capture)
    for norm in trained_norms(capture, batch) if batch is not None else ():
        if batch is not None and (batch.samples == 1 or norm.values <= 2):
            message = f"batches of {batch.samples}: {_consequence(norm.facts.path, norm.values)}"
            yield rule.finding(
                norm.where, message, modules=[norm.facts.path], values=norm.values, raises=norm.values == 1
            )


def _consequence(path: str, values: int) -> str:
    if values == 1:
        return f"training raises, since one value per channel has no variance for `{path}`"
    if values == 2:
        return f"`{path}` gets two values per channel, which become ±1 whatever they are, with no gradient"
    return f"trained on one sample at a time, `{path}` computes another function than in evaluation"


@rule.fix(
    "use GroupNorm (LayerNorm behind a linear layer), which normalises every sample by itself in both modes",
    applicability="unsafe",
    keeps=[parameters(), shapes(mode="eval")],
    gains=[trains_at_batch_one(), repeatable(mode="eval", idempotent=True)],
)
def normalise_each_sample(source: Source, finding: Finding) -> list[Edit] | None:
    """Every BatchNorm of the model is replaced; none if one cannot be."""
    return norms_without_batch(source, finding.location, group_count)


@rule.rewrite
def normalise_in_memory(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.normalise_samples(path)
