"""A misspelt `requires_grad`, which sets an attribute that nothing reads.

## What it finds
Assignments to `.require_grad`, `.requires_gradient` and the like, and to `.requires_grad_`, which is a method.

## Why it matters
Python creates the attribute, torch never looks at it: the parameter is not frozen, and trains on. No error is raised,
and the mistake shows only as a worse result.

## Example
    def freeze(model):
        for parameter in model.parameters():
            parameter.require_grad = False

## Use instead
    def freeze(model):
        for parameter in model.parameters():
            parameter.requires_grad = False

## When to ignore it
Objects of one's own that have such an attribute.

## References
- https://pytorch.org/docs/stable/generated/torch.Tensor.requires_grad.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, state_dict_keys
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API010",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="a misspelt `requires_grad`, which nothing reads",
    triggers=(
        "require_grad",
        "requires_grads",
        "requires_gradient",
        "require_gradient",
        "requires_grad_ ",
        "requires_grad_=",
    ),
)

TYPOS = ("require_grad", "require_grads", "requires_grads", "requires_gradient", "require_gradient", "requires_grad_")


@rule.static
def misspelt(source: Source) -> Iterator[Finding]:
    """An assignment to the attribute, in a file that never reads it."""
    written = [
        node for node in source.tree.all(ast.Attribute) if node.attr in TYPOS and isinstance(node.ctx, ast.Store)
    ]
    read = {node.attr for node in source.tree.all(ast.Attribute) if isinstance(node.ctx, ast.Load)} - {"requires_grad_"}
    for node in written:
        if node.attr == "requires_grad_":
            yield rule.finding(
                node, "`requires_grad_` is a method: assigning to it only hides it, `requires_grad` stays"
            )
        elif node.attr not in read:
            yield rule.finding(node, f"`{node.attr}` is no attribute of tensors: `requires_grad` stays what it was")


@rule.fix(
    "assign to `requires_grad`", applicability="unsafe", keeps=[state_dict_keys(), outputs(), outputs(mode="train")]
)
def spelt(source: Source, finding: Finding) -> Edit | None:
    """Not safe: what was meant to be frozen is frozen from now on."""
    node = source.node_at(finding.location, ast.Attribute)
    return replace(node, f"{text_of(source, node.value)}.requires_grad") if isinstance(node, ast.Attribute) else None
