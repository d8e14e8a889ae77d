"""Tensors made by the type constructors of one device.

## What it finds
Calls of `torch.cuda.FloatTensor`, `torch.cuda.LongTensor` and the like.

## Why it matters
They are deprecated and warn. Given numbers they make an uninitialised tensor of that shape, given a list they copy it:
a list with one number too many brackets is another tensor, without an error. They fail on every other device.

## Example
    def ones(n):
        return torch.cuda.FloatTensor([1.0, 0.0, 1.0])

## Use instead
    def ones(n):
        return torch.tensor([1.0, 0.0, 1.0], dtype=torch.float32, device="cuda")

## When to ignore it
Never, with a torch of the last years.

## References
- https://pytorch.org/docs/stable/tensors.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import text_of
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API015",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="tensors made by the type constructors of CUDA",
    triggers=("Tensor(",),
)

DTYPES = {
    "FloatTensor": "float32", "DoubleTensor": "float64", "HalfTensor": "float16", "BFloat16Tensor": "bfloat16",
    "LongTensor": "int64", "IntTensor": "int32", "ShortTensor": "int16", "CharTensor": "int8", "ByteTensor": "uint8",
    "BoolTensor": "bool",
}  # fmt: skip


@rule.static
def constructed(source: Source) -> Iterator[Finding]:
    for call in source.calls_to(*[f"torch.cuda.{name}" for name in DTYPES]):
        name = min(source.resolve(call.func))
        yield rule.finding(
            call, f"`{name}` is deprecated: `torch.tensor` or `torch.empty` says what is made, and where"
        )


@rule.fix("say the dtype and the device", keeps=[parameters(), outputs()])
def factory(source: Source, finding: Finding) -> list[Edit] | None:
    """A list is copied, whole numbers are a shape, nothing is an empty tensor; of anything else it is not known."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or call.keywords:
        return None
    dtype = DTYPES[min(source.resolve(call.func)).rpartition(".")[2]]
    torch, imports = spelled(source, "torch", source.function_of(call) or call)
    if len(call.args) == 1 and isinstance(call.args[0], (ast.List, ast.ListComp)):
        made = f"{torch}.tensor({text_of(source, call.args[0])}"
    elif all(type(source.constant(argument)) is int for argument in call.args):
        made = f"{torch}.empty({', '.join(text_of(source, argument) for argument in call.args) or '0'}"
    else:
        return None
    return [replace(call, f'{made}, dtype={torch}.{dtype}, device="cuda")'), *imports]
