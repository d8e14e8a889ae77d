"""BatchNorm on several devices, each with statistics of a few samples of its own.

## What it finds
A model with BatchNorm that is wrapped in DistributedDataParallel and trained, in the same file, on 2 to 15 samples per
device, where nothing converts its BatchNorm to SyncBatchNorm.

## Why it matters
Gradients are averaged over the devices, the statistics of BatchNorm are not: each device normalises by its own few
samples, however many devices there are, and only the running statistics of the first are kept.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64)

        def forward(self, x):
            return self.norm(x).mean((2, 3))

    def train(dataset, rank):
        net = Net().to(rank)
        model = nn.parallel.DistributedDataParallel(net, device_ids=[rank])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=8):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64)

        def forward(self, x):
            return self.norm(x).mean((2, 3))

    def train(dataset, rank):
        net = nn.SyncBatchNorm.convert_sync_batchnorm(Net()).to(rank)
        model = nn.parallel.DistributedDataParallel(net, device_ids=[rank])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=8):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

## When to ignore it
Where the communication in every layer costs more than the better statistics bring, or the model trains on CPUs, for
which torch has no SyncBatchNorm.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html
- Peng et al., "MegDet: A Large Mini-Batch Object Detector", 2018
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, state_dict_keys
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.batches import batch_size, training_calls
from auditor.static.facts.spelling import spelled
from auditor.static.facts.values import held
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="NRM014",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="`BatchNorm` under DistributedDataParallel with a few samples per device",
    triggers=("DistributedDataParallel",),
    thresholds={"samples per device": 15},
)

WRAPPER = "torch.nn.parallel.DistributedDataParallel"
FEW = 15


@rule.static
def few_samples_per_device(source: Source) -> Iterator[Finding]:
    """A wrapper around a model with BatchNorm that a loop trains on a few samples at a time."""
    wrappers = [(call, held(source, call.args[0])) for call in source.calls_to(WRAPPER) if call.args]
    seen = set()
    for found in training_calls(source):
        size = batch_size(source, found.loader) if found.loader is not None else None
        if found.loader is None or size is None or not 2 <= size <= FEW:
            continue
        model = held(source, found.call.func)
        for wrapper, wrapped in wrappers:
            if wrapped and wrapped == model and wrapper not in seen:
                seen.add(wrapper)
                message = (
                    f"each device normalises its own {size} samples: BatchNorm is not synchronised between devices"
                )
                notes = [Note(span(found.loader), "the batches"), Note(span(found.norms[0]), "the first BatchNorm")]
                yield rule.finding(wrapper, message, notes=notes, samples=size)


@rule.fix(
    "synchronise BatchNorm between the devices",
    applicability="display-only",  # it can be shown on several devices only
    keeps=[parameters(), state_dict_keys()],
)
def synchronise(source: Source, finding: Finding) -> list[Edit] | None:
    wrapper = source.node_at(finding.location, ast.Call)
    if not isinstance(wrapper, ast.Call) or not wrapper.args:
        return None
    name, imports = spelled(source, "torch.nn.SyncBatchNorm", source.function_of(wrapper) or wrapper)
    return [replace(wrapper.args[0], f"{name}.convert_sync_batchnorm({ast.unparse(wrapper.args[0])})"), *imports]
