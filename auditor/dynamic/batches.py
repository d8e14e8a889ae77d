"""How many samples one training step gives the audited model, where somebody says so.

The batch of an input that is given for a run, or inferred, says nothing about training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.dynamic.capture import class_location
from auditor.dynamic.intent import source_at
from auditor.rule import span
from auditor.static.facts.batches import batch_size, training_calls
from auditor.static.layers import BATCH_NORMS

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts
    from auditor.finding import Location


class TrainingBatch(NamedTuple):
    """`samples` per step and device; `location`: the loader or the training call that says it, None for an option."""

    samples: int
    location: Location | None = None


class TrainedNorm(NamedTuple):
    """A BatchNorm that takes its statistics from the batch, with the number of `values` per channel that it sees in a
    training step, and where that is reported: at what says the batch, or else at the layer."""

    facts: ModuleFacts
    values: int
    where: Location


def training_batch(capture: Capture) -> TrainingBatch | None:
    """What the option `batch-size` says, or else all training loops over the model's class in the file that has it.

    A model that is mended in memory is meant to train on batches as the one that is handed over with it.
    """
    samples = capture.batch_size or (capture.inputs.batch_axis_size if capture.in_memory else None)
    if samples:
        return TrainingBatch(samples)
    model = type(capture.model)
    place = class_location(model)
    source = source_at(place) if place.path else None
    found = []
    for call in training_calls(source) if source is not None else ():
        if source is not None and call.owner is not None and call.owner.name == model.__name__:
            samples = batch_size(source, call.loader) if call.loader is not None else 1
            found.append((samples, span(call.loader or call.call, place.path)))
    written, where = found[0] if found else (None, None)
    if written is None or any(other != written for other, _ in found):
        return None
    return TrainingBatch(written, where)


def trained_norms(capture: Capture, batch: TrainingBatch) -> Iterator[TrainedNorm]:
    """The BatchNorms of the run with the values per channel that a step on `batch` gives them."""
    given = capture.inputs.batch_axis_size
    for path, facts in capture.modules.items():
        shape = facts.in_shape.get("train")
        if facts.kind not in BATCH_NORMS or not shape or len(shape) < 2 or not _trains(capture, path):
            continue
        positions = math.prod(shape) // shape[1] / (given or shape[0])
        yield TrainedNorm(facts, round(batch.samples * positions), batch.location or facts.location)


def _trains(capture: Capture, path: str) -> bool:
    """Whether the layer computed statistics from the batch; where nothing was recorded, it is the one that raised."""
    calls = [node for node in capture.nodes("train") if node.module == path and node.operation == "batch_norm"]
    if calls:
        return any(node.argument("training", 5, False) is True for node in calls)
    return "Expected more than 1 value per channel" in capture.rungs["train"].reason
