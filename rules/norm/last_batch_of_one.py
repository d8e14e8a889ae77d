"""A training loader whose last batch is a single sample.

## What it finds
A training loop of a model with BatchNorm over a DataLoader without `drop_last`, where the length of the dataset and the
batch size are both in the file and leave a remainder of one.

## Why it matters
Once an epoch BatchNorm normalises one sample by itself: torch raises `Expected more than 1 value per channel` where
there is one value per channel, after nearly a whole epoch, and otherwise puts the statistics of a single sample into
the running ones just before the evaluation.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))

        def forward(self, x):
            return self.layers(x)

    def train():
        dataset = torch.utils.data.TensorDataset(torch.randn(1025, 8), torch.zeros(1025, dtype=torch.long))
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))

        def forward(self, x):
            return self.layers(x)

    def train():
        dataset = torch.utils.data.TensorDataset(torch.randn(1025, 8), torch.zeros(1025, dtype=torch.long))
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

## When to ignore it
Where the length in the file is not the one it runs with. An unknown length is never reported.

## References
- https://pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader (`drop_last`)
- Ioffe and Szegedy, "Batch Normalization", 2015
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, set_argument
from auditor.rule import Category, Rule, span
from auditor.static.facts.batches import batch_size, training_calls
from auditor.static.facts.datasets import dataset_length
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="NRM003",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="training loader whose last batch is one sample, for a `BatchNorm`",
    triggers=("BatchNorm",),
)


@rule.static
def one_is_left(source: Source) -> Iterator[Finding]:
    """A loader of a known length and batch size that leaves one sample."""
    seen = set()
    for found in training_calls(source):
        loader = found.loader
        if loader is None or loader in seen or source.argument(loader, "drop_last", 8) is not None:
            continue
        if any(source.argument(loader, name) is not None for name in ("sampler", "batch_sampler")):
            continue
        seen.add(loader)
        size, length = batch_size(source, loader), dataset_length(source, source.argument(loader, "dataset", 0))
        if size is not None and length is not None and size > 1 and length % size == 1:
            message = (
                f"{length} samples in batches of {size} leave a last batch of one, which BatchNorm cannot train on"
            )
            notes = [Note(span(found.norms[0]), "the first BatchNorm")]
            yield rule.finding(loader, message, notes=notes, length=length, samples=size)


@rule.fix("drop the last, incomplete batch", applicability="unsafe", keeps=[parameters(), outputs(mode="eval")])
def drop_last(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    return set_argument(call, "drop_last", "True") if isinstance(call, ast.Call) else None
