"""`torch.range`, which includes its end.

## What it finds
Calls of `torch.range`.

## Why it matters
It is deprecated and warns, because it includes its end as nothing else of that name does: `torch.range(0, n)` has n + 1
elements. It also makes floating-point numbers of whole ones, which `torch.arange` does not.

## Example
    def positions(n):
        return torch.range(0, 9)

## Use instead
    def positions(n):
        return torch.arange(0, 10, dtype=torch.get_default_dtype())

## When to ignore it
Never, with a torch of the last years.

## References
- https://pytorch.org/docs/stable/generated/torch.range.html
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
    code="API021",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="`torch.range`, which includes its end",
    triggers=("range(",),
)


@rule.static
def calls(source: Source) -> Iterator[Finding]:
    for call in source.calls_to("torch.range"):
        yield rule.finding(call, "`torch.range` is deprecated: it includes its end, `torch.arange` does not")


@rule.fix("call `arange` with the end after it", keeps=[parameters(), outputs()])
def arange(source: Source, finding: Finding) -> list[Edit] | None:
    """Only for whole numbers: with others, the end after it may let one more element in."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    if any(keyword.arg not in ("dtype", "device", "requires_grad", "out") for keyword in call.keywords):
        return None
    bounds = list(call.args)
    step = source.constant(bounds[2], None) if len(bounds) == 3 else 1
    if (
        len(bounds) not in (2, 3)
        or type(step) is not int
        or step == 0
        or not all(_is_whole(source, b) for b in bounds[:2])
    ):
        return None
    torch, imports = spelled(source, "torch", source.function_of(call) or call)
    end = _after(source, bounds[1], 1 if step > 0 else -1)
    words = [text_of(source, bounds[0]), end, *[text_of(source, argument) for argument in bounds[2:]]]
    words += [f"{keyword.arg}={text_of(source, keyword.value)}" for keyword in call.keywords]
    if not any(keyword.arg in ("dtype", "out") for keyword in call.keywords):
        words.append(f"dtype={torch}.get_default_dtype()")
    return [replace(call, f"{torch}.arange({', '.join(words)})"), *imports]


def _is_whole(source: Source, value: ast.expr) -> bool:
    """Whether an expression surely is a whole number: a constant, a length, a size, or a sum of such."""
    if type(source.constant(value, None)) is int:
        return True
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)):
        return _is_whole(source, value.left) and _is_whole(source, value.right)
    if isinstance(value, ast.Subscript):
        return isinstance(value.value, ast.Attribute) and value.value.attr == "shape"
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Attribute):
        return value.func.attr in ("numel", "dim") or (value.func.attr == "size" and len(value.args) == 1)
    return isinstance(value.func, ast.Name) and value.func.id in ("len", "int")


def _after(source: Source, end: ast.expr, one: int) -> str:
    """The whole number after the end, in the direction of the step; without `- 1 + 1`."""
    value = source.constant(end, None) if isinstance(end, (ast.Constant, ast.UnaryOp)) else None
    if type(value) is int:
        return str(value + one)
    if isinstance(end, ast.BinOp) and isinstance(end.op, ast.Sub) and source.constant(end.right, None) == one:
        return text_of(source, end.left)
    return f"{text_of(source, end)} {'+' if one > 0 else '-'} 1"
