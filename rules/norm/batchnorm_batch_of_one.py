"""BatchNorm trained on one sample at a time.

## What it finds
A BatchNorm that in training sees a single sample: a training loop over a DataLoader whose batch size is 1, a model
called on `x.unsqueeze(0)` in one, or, in a run with an input that you gave, one sample or two values per channel. A
batch of one in evaluation is fine and never reported; nor is an unknown batch size, or an inferred input.

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

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable, shapes, trains_at_batch_one
from auditor.fix.edit import Edit
from auditor.reference.normalization import group_count
from auditor.rule import Category, Rule, span
from auditor.static.facts.batches import TrainingCall, batch_size, training_calls
from auditor.static.facts.replacements import without_batch
from auditor.static.layers import BATCH_NORMS
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
            yield rule.finding(found.call, message, notes=list(_notes(found)))
        elif batch_size(source, found.loader) == 1:
            message = f"this loader trains {_model(found)}, which has BatchNorm, on batches of one sample"
            yield rule.finding(found.loader, message, notes=list(_notes(found)))


def _model(found: TrainingCall) -> str:
    return f"`{found.owner.name}`" if found.owner is not None else "the model"


def _notes(found: TrainingCall) -> Iterator[Note]:
    yield Note(span(found.call), "the training step")
    yield Note(span(found.norms[0]), "the first BatchNorm")


@rule.dynamic
def too_few_values(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm that, on an input whose batch size somebody chose, trains on one sample or two values a channel."""
    if not _chosen(capture):
        return
    for path, facts in capture.modules.items():
        shape = facts.in_shape.get("train")
        if facts.kind not in BATCH_NORMS or not shape or len(shape) < 2 or not _trains(capture, path):
            continue
        values = math.prod(shape) // shape[1]
        samples = capture.inputs.batch_axis_size
        few = values <= 2 and (samples is None or samples <= 2)
        if few or (samples == 1 and shape[0] == 1):
            message = _consequence(values, "×".join(map(str, shape)))
            yield rule.finding(facts, message, modules=[path], values=values, samples=shape[0], raises=values == 1)


def _consequence(values: int, shape: str) -> str:
    if values == 1:
        return f"training raises here: one value per channel (input {shape}) has no variance"
    if values == 2:
        return f"two values per channel (input {shape}) are normalised to ±1 whatever they are, with no gradient"
    return f"trained on one sample at a time (input {shape}), this computes another function than in evaluation"


def _chosen(capture: Capture) -> bool:
    """Whether the batch size is somebody's: an input given, or an `example_inputs`; those of other libraries only show
    shapes, and what is inferred is ours."""
    source = getattr(capture.inputs, "source", "inferred")
    foreign = any(hasattr(capture.model, name) for name in ("example_input_array", "dummy_inputs"))
    return source == "given" or (source == "hook" and (hasattr(capture.model, "example_inputs") or not foreign))


def _trains(capture: Capture, path: str) -> bool:
    """Whether the layer computed statistics from the batch; where nothing was recorded, it is the one that raised."""
    calls = [node for node in capture.nodes("train") if node.module == path and node.operation == "batch_norm"]
    if calls:
        return any(node.argument("training", 5, False) is True for node in calls)
    return "Expected more than 1 value per channel" in capture.rungs["train"].reason


@rule.fix(
    "use GroupNorm (LayerNorm behind a linear layer), which normalises every sample by itself in both modes",
    applicability="unsafe",
    keeps=[parameters(), shapes(mode="eval")],
    gains=[trains_at_batch_one(), repeatable(mode="eval", idempotent=True)],
)
def normalise_each_sample(source: Source, finding: Finding) -> list[Edit] | None:
    """Every BatchNorm of the model is replaced; none if one cannot be."""
    norms = tuple(call for call in source.calls_to(*BATCH_NORMS) if call.lineno == finding.location.row)
    for found in training_calls(source):
        if span(found.loader or found.call, finding.location.path) == finding.location:
            norms = found.norms
    edits = [without_batch(source, norm, group_count) for norm in norms]
    return [edit for group in edits for edit in group] if all(edits) else None


@rule.rewrite
def normalise_in_memory(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.normalise_samples(path)
