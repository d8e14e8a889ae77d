"""Activation checkpointing that does not say which of its two implementations it means.

## What it finds
Calls of `torch.utils.checkpoint.checkpoint` and `checkpoint_sequential` without `use_reentrant`.

## Why it matters
The default is the reentrant one, which torch warns of and is to refuse. It gives no gradients at all, without an error,
where no input of the block requires grad (a frozen stem, the first block), does not support keyword arguments or
`autograd.grad`, and runs hooks twice.

## Example
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def forward(self, x):
            return checkpoint(self.block, x)

## Use instead
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False)

## When to ignore it
Where the reentrant one is needed: say so by `use_reentrant=True`.

## References
- https://pytorch.org/docs/stable/checkpoint.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs, parameters
from auditor.fix.edit import Edit, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API009",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="activation checkpointing without `use_reentrant`",
    triggers=("checkpoint",),
    since="2.0",
)

FUNCTIONS = ("torch.utils.checkpoint.checkpoint", "torch.utils.checkpoint.checkpoint_sequential")


@rule.static
def left_out(source: Source) -> Iterator[Finding]:
    """Calls that do not pass it, and whose hidden arguments cannot hold it: `*args` goes to the function."""
    for call in source.calls_to(*FUNCTIONS):
        position = 3 if min(source.resolve(call.func)).endswith("sequential") else None
        if source.argument(call, "use_reentrant", position) is None and not guarded(source, call):
            yield rule.finding(
                call, "`use_reentrant` is not passed: the default gives no gradients where no input requires grad"
            )


@rule.fix(
    "pass `use_reentrant=False`",
    applicability="unsafe",
    keeps=[parameters(), outputs(), outputs(mode="train"), gradients()],
)
def not_reentrant(source: Source, finding: Finding) -> Edit | None:
    """Not safe: a block that changes its inputs in place, or draws differently when run again, may show it."""
    call = source.node_at(finding.location, ast.Call)
    return set_argument(call, "use_reentrant", "False") if isinstance(call, ast.Call) else None
