"""A tensor kept as a plain attribute, where a buffer is meant.

## What it finds
`self.mask = torch.tril(torch.ones(n, n))` in a constructor, where `forward` combines the tensor with its input and
nothing registers, moves or replaces it. In a run: tensors held by a module's attributes that entered the computation
without being moved first.

## Why it matters
`model.to("cuda")` moves parameters and buffers; a plain tensor stays behind, and the forward raises "expected all
tensors to be on the same device". `half()` does not convert it, DistributedDataParallel does not send it, and
`state_dict()` does not save it.

## Example
    class Attention(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.mask = torch.tril(torch.ones(n, n))

        def forward(self, scores):
            return scores.masked_fill(self.mask == 0, float("-inf")) * self.mask

## Use instead
    class Attention(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.register_buffer("mask", torch.tril(torch.ones(n, n)), persistent=False)

        def forward(self, scores):
            return scores.masked_fill(self.mask == 0, float("-inf")) * self.mask

## When to ignore it
In a module that never leaves the CPU.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.register_buffer
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import gradients, outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.plain_tensors import plain_tensors
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="REG002",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="tensor that `to(device)` and `state_dict()` do not know",
    triggers=("torch.", "import torch"),
)


@rule.static
def kept_as_attribute(source: Source) -> Iterator[Finding]:
    """A tensor that the constructor keeps and the forward computes with."""
    for facts in source.module_classes:
        for found in plain_tensors(source, facts):
            message = (
                f"`self.{found.name}` is no buffer: `to(device)` leaves it behind, and the forward combines it with "
                "activations"
            )
            yield rule.finding(found.statement, message, notes=[Note(span(found.used), "combined here")])


@rule.dynamic
def used_without_registration(capture: Capture) -> Iterator[Finding]:
    """A tensor held by an attribute of the user's that entered the forward as it is."""
    from auditor.dynamic.plain_tensors import plain_tensors_used

    for used in plain_tensors_used(capture):
        if not used.trained:
            name = f"{used.owner}.{used.attribute}".lstrip(".")
            shape = "×".join(map(str, used.shape))
            message = f"`{name}` ({shape}) is no buffer: `to(device)` leaves it behind, and `state_dict()` lacks it"
            yield rule.finding(used.location, message, modules=[used.owner], shape=list(used.shape))


@rule.fix(
    "register it as a buffer",
    keeps=[
        parameters(),
        state_dict_keys(),
        outputs(mode="train"),
        outputs(mode="eval"),
        gradients(mode="train"),
    ],
)
def register(source: Source, finding: Finding) -> Edit | None:
    """Not saved with the model, so that checkpoints load as before."""
    for facts in source.module_classes:
        for found in plain_tensors(source, facts):
            if found.statement.lineno == finding.location.row:
                value = ast.get_source_segment(source.text, found.statement.value) or ""
                value = value.replace("\n" + " " * found.statement.col_offset, "\n")
                return replace(found.statement, f'self.register_buffer("{found.name}", {value}, persistent=False)')
    return None
