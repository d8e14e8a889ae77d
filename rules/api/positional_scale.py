"""A factor passed before the tensors it scales.

## What it finds
`x.add_(a, y)`, `x.addcmul_(a, y, z)`, `x.addcdiv_(a, y, z)`, `x.sub_(a, y)` and the same as functions of torch: the
order of arguments that torch had before 1.5.

## Why it matters
The forms are deprecated and warn. Where the factor is a tensor or the tensor a number, they mean something else than
they seem to, or fail at run time, in the middle of an optimiser's step.

## Example
    def step(p, grad, lr):
        p.data.add_(-lr, grad)

## Use instead
    def step(p, grad, lr):
        p.data.add_(grad, alpha=-lr)

## When to ignore it
Never, with a torch of the last years.

## References
- https://pytorch.org/docs/stable/generated/torch.add.html
- https://pytorch.org/docs/stable/generated/torch.addcmul.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API023",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="a factor passed before the tensors it scales",
    triggers=("add_(", "sub_(", "addcmul", "addcdiv", "torch.add(", "torch.sub("),
    since="1.5",
)

# The keyword of the factor, and how many tensors follow it by position in the old form.
METHODS = {"add_": ("alpha", 1), "sub_": ("alpha", 1), "addcmul_": ("value", 2), "addcdiv_": ("value", 2),
           "addcmul": ("value", 2), "addcdiv": ("value", 2)}  # fmt: skip
FUNCTIONS = {
    "torch.add": ("alpha", 1),
    "torch.sub": ("alpha", 1),
    "torch.addcmul": ("value", 2),
    "torch.addcdiv": ("value", 2),
}


@rule.static
def before(source: Source) -> Iterator[Finding]:
    """Calls with exactly one argument by position more than the new form takes."""
    found = [(call, FUNCTIONS[min(source.resolve(call.func))], 1) for call in source.calls_to(*FUNCTIONS)]
    for call in source.calls_named(*METHODS):
        if isinstance(call.func, ast.Attribute) and not source.resolve(call.func):
            found.append((call, METHODS[call.func.attr], 0))
    for call, (keyword, tensors), own in found:
        starred = any(isinstance(argument, ast.Starred) for argument in call.args)
        if not starred and len(call.args) == own + 1 + tensors and not call.keywords:
            yield rule.finding(call, f"the factor goes last and by name: `{keyword}=`", own=own, keyword=keyword)


@rule.fix("pass the factor by name", keeps=[parameters(), outputs()])
def named(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    texts = [text_of(source, argument) for argument in call.args]
    factor = texts.pop(finding.facts["own"])
    return replace(call, f"{text_of(source, call.func)}({', '.join(texts)}, {finding.facts['keyword']}={factor})")
