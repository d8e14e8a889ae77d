"""BatchNorm over sequences that were padded to one length.

## What it finds
A BatchNorm1d over all positions of what `pad_packed_sequence` gives back, also behind linear layers, activations,
dropout and transpositions; in a run, also over all positions of an embedding that has an index for padding.

## Why it matters
The zeros behind the end of the shorter sequences are part of the mean and variance of the batch: the statistics, and
with them the values at the real positions, depend on how much padding the other sequences of the batch need.

## Example
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)
            self.norm = nn.BatchNorm1d(16)

        def forward(self, packed):
            output, _ = self.lstm(packed)
            output, lengths = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
            return self.norm(output.transpose(1, 2))

## Use instead
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)
            self.norm = nn.LayerNorm(16)

        def forward(self, packed):
            output, _ = self.lstm(packed)
            output, lengths = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
            return self.norm(output)

## When to ignore it
Where all sequences have nearly the same length. Behind convolutions, and for one position or an average per sequence,
it is never reported.

## References
- Ba, Kiros and Hinton, "Layer Normalization", 2016
- Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers", 2020
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable, samples_independent, shapes
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule, span
from auditor.static.facts.replacements import layer_norm_over_features
from auditor.static.flow import Op
from auditor.static.layers import ACTIVATIONS, DROPOUTS, LINEARS, NN
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="NRM011",
    category=Category.ROBUSTNESS,
    severity=Severity.INFO,
    summary="`BatchNorm` over padded sequences, whose statistics the padding enters",
    triggers=("pad_packed_sequence",),
)

PADS = "torch.nn.utils.rnn.pad_packed_sequence"
THROUGH = LINEARS | ACTIVATIONS | set(DROPOUTS) | {NN + "Identity"}
MESSAGE = "the padding of shorter sequences enters the statistics of this BatchNorm"
REARRANGES = frozenset({"transpose", "permute", "contiguous", "clone", "float", "to", "mT"})


@rule.static
def padding_in_the_statistics(source: Source) -> Iterator[Finding]:
    """A BatchNorm1d over every position of a sequence that was padded in the same forward."""
    seen = set()
    for _, flow in source.flows_meeting(source.calls_to(NN + "BatchNorm1d")):
        for op in flow.layer_ops():
            padding = _padding(op) if op.layer_kind == NN + "BatchNorm1d" else None
            if op.layer is not None and padding is not None and op.layer not in seen:
                seen.add(op.layer)
                notes = [Note(span(padding.node), "padded here")]  # type: ignore[arg-type]
                yield rule.finding(op.layer, MESSAGE, notes=notes)


def _padding(norm: Op) -> Op | None:
    """The call that padded what the norm is given, past what treats every position alike."""
    op, seen = norm, {norm}
    while (producer := op.only_producer()) is not None and producer not in seen:
        seen.add(producer)
        if producer.kind == "call" and producer.target == PADS:
            return producer
        layer = producer.kind == "layer" and producer.layer_kind in THROUGH
        if not layer and not (producer.kind == "method" and producer.target in REARRANGES):
            return None
        op = producer
    return None


@rule.dynamic
def padding_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm over (N, C, L) whose positions are those of a padded sequence, one by one."""
    from auditor.dynamic.padding import padded_norms

    for facts, origin in padded_norms(capture):
        yield rule.finding(facts, MESSAGE, modules=[facts.path], notes=[Note(origin.location, "padded here")])


@rule.fix(
    "normalise the features of each position",
    applicability="unsafe",
    keeps=[parameters(), shapes(mode="eval")],
    gains=[samples_independent(mode="train"), repeatable(mode="eval", idempotent=True)],
)
def per_position(source: Source, finding: Finding) -> list[Edit] | None:
    norm = source.node_at(finding.location, ast.Call)
    return layer_norm_over_features(source, norm) if isinstance(norm, ast.Call) else None
