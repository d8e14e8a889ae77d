"""Layers of a stack that start as copies of one another.

## What it finds
Stacks whose layers start with identical weights: in source, a list of `copy.deepcopy(layer)` that nothing initialises
anew, as `nn.TransformerEncoder` makes one too; on the running model, random weights that are equal at the same place of
several members of a stack.

## Why it matters
A deep copy copies the weights. The layers are told apart by what they receive, so the model usually learns all the same
(16 of 17 measured); but it starts with less variety than its depth suggests, and not from the initialisation that its
layers' constructors describe.

## Example
    import copy

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.Linear(8, 8)
            self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(4)])

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return x

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return x

## When to ignore it
Where the weights are loaded from a checkpoint, or the copies are meant (a stack grown from a trained layer).

## References
- https://github.com/pytorch/pytorch/issues/86274 (the layers of nn.TransformerEncoder start identical)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import distinct_layers, parameters, repeatable
from auditor.fix.edit import Edit, insert_after
from auditor.rule import Category, Rule
from auditor.static.facts.copies import Stack, copied_stacks
from auditor.static.facts.initialisers import INIT
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="INI008",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="layers of a stack that start as copies of one another",
    triggers=("deepcopy", "TransformerEncoder(", "TransformerDecoder("),
    yields_to=("INI001", "INI002", "INI003", "INI007"),
)


@rule.static
def copied(source: Source) -> Iterator[Finding]:
    """Lists of deep copies, and torch's stacks, in classes that initialise nothing afterwards."""
    stacks = {stack.node: stack for stack in copied_stacks(source)}
    for stack in stacks.values():
        what = "deep copies of one layer" if stack.listed else "copies of the layer it is given"
        yield rule.finding(stack.node, f"this stacks {what}: all of them start with the same weights")


@rule.dynamic
def equal_at_the_start(capture: Capture) -> Iterator[Finding]:
    """Random weights equal at the same place of several members of one stack."""
    from auditor.dynamic.groups import listed
    from auditor.dynamic.twins import twins

    for location, layers in twins(capture):
        message = f"{listed(layers)} start with the weights of another layer of their stack"
        yield rule.finding(location, message, modules=[layer.path for layer in layers])


@rule.fix(
    "initialise every copy anew",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[distinct_layers()],
)
def reset(source: Source, finding: Finding) -> Sequence[Edit]:
    """Behind the statements that keep the copies: `reset_parameters`, or what nn.Transformer does with its own."""
    stacks = [stack for stack in copied_stacks(source) if stack.node.lineno == finding.location.row]
    return [edit for stack in stacks for edit in _initialised(source, stack)]


def _initialised(source: Source, stack: Stack) -> list[Edit]:
    if stack.listed:
        loop = (
            f"for copied in self.{stack.attribute}.modules():\n"
            '    if hasattr(copied, "reset_parameters"):\n'
            "        copied.reset_parameters()"
        )
        return [insert_after(stack.statement, loop)]
    init, edits = spelled(source, INIT.rstrip("."), source.function_of(stack.node) or stack.node)
    loop = (
        f"for copied in self.{stack.attribute}.parameters():\n"
        "    if copied.dim() > 1:\n"
        f"        {init}.xavier_uniform_(copied)"
    )
    return [insert_after(stack.statement, loop), *edits]


@rule.rewrite
def reset_layers(surgery: Surgery, finding: Finding) -> None:
    surgery.reset(finding.modules)
