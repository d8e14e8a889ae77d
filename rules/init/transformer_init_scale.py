"""An embedding drawn from N(0, 1) that is also the output head.

## What it finds
On the running model: an output head that shares its weight with an embedding whose standard deviation is far above the
0.02 of transformers, so that the logits start with a standard deviation above 3.

## Why it matters
N(0, 1) is torch's default for an embedding and is right for looking up. As a head of width d the same weight gives
logits of standard deviation √d: the untrained model is sure of arbitrary tokens, and the first steps only undo that.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 64)
            self.norm = nn.LayerNorm(64)
            self.head = nn.Linear(64, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.LongTensor):
            return self.head(self.norm(self.embed(tokens)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 64)
            nn.init.normal_(self.embed.weight, std=0.02)
            self.norm = nn.LayerNorm(64)
            self.head = nn.Linear(64, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.LongTensor):
            return self.head(self.norm(self.embed(tokens)))

## When to ignore it
Where the logits are scaled down outside the model.

## References
- Press and Wolf, "Using the Output Embedding to Improve Language Models", 2017 (tying)
- Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (N(0, 0.02))
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import initial_loss, parameters, repeatable
from auditor.fix.edit import Edit, insert_after
from auditor.rule import Category, Rule
from auditor.static.facts.initialisers import INIT
from auditor.static.facts.spelling import spelled
from auditor.static.layers import NN
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.dynamic.observe import LayerProbe

STD, LOGITS = 0.5, 3.0
rule = Rule(
    __name__,
    code="INI009",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="a tied embedding on the scale of N(0, 1) that makes the first logits large",
    yields_to=("INI001", "INI002", "INI003", "INI007"),
    thresholds={"std of the embedding": STD, "logit std": LOGITS},
)


@rule.dynamic
def large_tied_head(capture: Capture) -> Iterator[Finding]:
    """The head's weight, if an embedding holds it too, and the logits it gives."""
    probe = capture.probe
    head, logits = probe.head, probe.logit_std
    if head is None or logits is None or probe.nonfinite or logits <= LOGITS or not _is_tied(capture, head):
        return
    std = float(head.facts.tensor.detach().float().std())
    if std > STD and head.shape[0] == probe.classes:
        names = (head.name, *head.tied)
        yield rule.finding(
            head.facts.location,
            f"this embedding is also the output head, and its standard deviation of {std:.2g} gives logits of"
            f" {logits:.1f} at the start: transformers draw it from N(0, 0.02)",
            modules=sorted({name.rpartition(".")[0] for name in names}),
            weight_std=std,
            logit_std=logits,
        )


def _is_tied(capture: Capture, head: LayerProbe) -> bool:
    from torch import nn

    holders = [capture.modules.get(name.rpartition(".")[0]) for name in (head.name, *head.tied)]
    return any(holder is not None and isinstance(holder.module, nn.Embedding) for holder in holders)


@rule.fix(
    "draw the embedding from N(0, 0.02)",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[initial_loss(3.0)],
)
def small_embedding(source: Source, finding: Finding) -> Sequence[Edit]:
    """Behind the line that constructs the embedding; one with a row for padding is left to its author."""
    found = source.node_at(finding.location, ast.Call)
    if found is None:
        return ()
    match statement := source.statement_of(found):
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as call):
            padded = source.argument(call, "padding_idx", 2) is not None
            if source.is_any(call.func, NN + "Embedding") and not padded:
                code, edits = spelled(source, INIT.rstrip("."), source.function_of(call) or call)
                return [insert_after(statement, f"{code}.normal_(self.{name}.weight, std=0.02)"), *edits]
    return ()
