"""`torch.cross` that picks its axis by chance.

## What it finds
Calls of `torch.cross` without `dim`, unless both arguments surely are single vectors.

## Why it matters
Without `dim` it works along the *first* axis of size 3. For points of shape (N, 3) that is the last one, except when
the batch happens to hold three of them: then the products are taken across the batch, without an error. torch warns,
and is to change the default to the last axis.

## Example
    def normals(faces):
        return torch.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])

## Use instead
    def normals(faces):
        return torch.linalg.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0])

## When to ignore it
Where the first axis of size 3 is meant, whichever it is.

## References
- https://pytorch.org/docs/stable/generated/torch.cross.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, set_argument
from auditor.rule import Category, Rule
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API019",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="`torch.cross` without `dim`, which picks its axis by chance",
    triggers=("cross(",),
)


@rule.static
def left_out(source: Source) -> Iterator[Finding]:
    for call in source.calls_to("torch.cross"):
        vectors = bool(call.args) and all(_is_vector(source, argument) for argument in call.args)
        if source.argument(call, "dim", 2) is None and not vectors:
            yield rule.finding(
                call, "without `dim` this takes the first axis of size 3: a batch of three is crossed along the batch"
            )


def _is_vector(source: Source, argument: ast.expr) -> bool:
    """Whether the argument is written out as three numbers."""
    if not isinstance(argument, ast.Call) or not source.is_any(argument.func, "torch.tensor", "torch.Tensor"):
        return False
    first = argument.args[0] if argument.args else None
    return isinstance(first, ast.List) and not any(isinstance(item, (ast.List, ast.Tuple)) for item in first.elts)


@rule.fix("say `dim=-1`", applicability="unsafe", keeps=[parameters(), outputs()])
def last(source: Source, finding: Finding) -> Edit | None:
    """Not safe: points may lie along another axis."""
    call = source.node_at(finding.location, ast.Call)
    return set_argument(call, "dim", "-1") if isinstance(call, ast.Call) else None
