"""`Variable`, which since torch 0.4 only cuts the graph.

## What it finds
Calls of `torch.autograd.Variable`; as a warning where they pass `volatile`, which torch ignores.

## Why it matters
Tensors need no wrapping since 0.4. What is left of `Variable` is a `detach()` that does not look like one: gradients do
not flow through it. `volatile=True` was how gradients were switched off; torch ignores it now, so that the forward pass
builds its graph and keeps all activations in memory.

## Example
    from torch.autograd import Variable

    def predict(model, x):
        return model(Variable(x))

## Use instead
    def predict(model, x):
        return model(x.detach())

## When to ignore it
Never, with a torch of the last years.

## References
- https://pytorch.org/docs/stable/autograd.html#variable-deprecated
- https://pytorch.org/blog/pytorch-0_4_0-migration-guide/
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API013",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="`Variable`, which since torch 0.4 only cuts the graph",
    triggers=("Variable(",),
    since="0.4",
)


FRESH = tuple(
    f"torch.{name}"
    for name in ("zeros", "ones", "full", "empty", "rand", "randn", "arange", "tensor", "from_numpy", "eye", "Tensor",
                 "FloatTensor", "LongTensor", "linspace", "randint", "randperm")
)  # fmt: skip


@rule.static
def wrapped(source: Source) -> Iterator[Finding]:
    for call in source.calls_to("torch.autograd.Variable", "torch.autograd.variable.Variable"):
        volatile = source.argument(call, "volatile", 2)
        if volatile is not None and source.constant(volatile, True) not in (False, None):
            message = "torch ignores `volatile`: this builds the graph; `with torch.no_grad():` is what switches it off"
            yield rule.finding(call, message, severity=Severity.WARNING)
        else:
            yield rule.finding(
                call, "tensors need no wrapping: all that `Variable` does is to cut the graph, as `detach` does"
            )


@rule.fix("say `detach()`, or nothing", keeps=[parameters(), outputs(), gradients()])
def unwrapped(source: Source, finding: Finding) -> Edit | None:
    """A tensor that torch has just made has no graph to cut."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or len(call.args) != 1 or isinstance(call.args[0], ast.Starred):
        return None
    tensor = call.args[0]
    named = {keyword.arg: source.constant(keyword.value, ...) for keyword in call.keywords}
    if not set(named) <= {"requires_grad", "volatile"} or named.get("volatile", False) is not False:
        return None
    gradient = named.get("requires_grad", False)
    if not isinstance(gradient, bool):
        return None
    atom = isinstance(tensor, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    code = text_of(source, tensor) if atom else f"({text_of(source, tensor)})"
    made = isinstance(tensor, ast.Call) and source.is_any(tensor.func, *FRESH)
    cut = "" if made else ".detach()"
    return replace(call, f"{code}{cut}{'.requires_grad_()' if gradient else ''}")
