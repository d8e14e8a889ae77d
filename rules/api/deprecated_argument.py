"""Arguments that torch ignores or has renamed.

## What it finds
`min_value`/`max_value` of `nn.Hardtanh`, `eps` of `F.gumbel_softmax`, `check_reduction` of `DistributedDataParallel`,
`use_cuda` of the profilers, `grad_variables` of `autograd.backward`, `only_inputs` of `autograd.grad`,
`pin_memory_device` of `DataLoader`, `optimize` of `torch.jit`.

## Why it matters
Each warns today and is to go, at which point the call raises. Some already do nothing: who passes them believes
otherwise.

## Example
    layer = nn.Hardtanh(min_value=-2.0, max_value=2.0)

## Use instead
    layer = nn.Hardtanh(min_val=-2.0, max_val=2.0)

## When to ignore it
Code that must run with a torch that lacks the new name.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Hardtanh.html
- https://pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, remove_argument, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API024",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="arguments that torch ignores or has renamed",
    triggers=(
        "min_value", "max_value", "gumbel_softmax", "check_reduction", "use_cuda", "grad_variables", "only_inputs",
        "pin_memory_device", "optimize",
    ),
    since="2.0",
)  # fmt: skip

# Callee → old argument → its new name; empty: torch ignores it; None: a person has to say it in another way.
ARGUMENTS: dict[str, dict[str, str | None]] = {
    "torch.nn.Hardtanh": {"min_value": "min_val", "max_value": "max_val"},
    "torch.nn.functional.gumbel_softmax": {"eps": ""},
    "torch.nn.parallel.DistributedDataParallel": {"check_reduction": ""},
    "torch.profiler.profile": {"use_cuda": None},
    "torch.autograd.profiler.profile": {"use_cuda": None},
    "torch.autograd.backward": {"grad_variables": "grad_tensors"},
    "torch.autograd.grad": {"only_inputs": ""},
    "torch.utils.data.DataLoader": {"pin_memory_device": ""},
    "torch.jit.script": {"optimize": ""},
    "torch.jit.trace": {"optimize": ""},
}


@rule.static
def passed(source: Source) -> Iterator[Finding]:
    for call in source.calls_to(*ARGUMENTS):
        name = min(source.resolve(call.func))
        for keyword in call.keywords:
            if keyword.arg in ARGUMENTS[name] and not _is_default(keyword):
                new = ARGUMENTS[name][keyword.arg]
                if new:
                    message = f"`{keyword.arg}` is deprecated: it is called `{new}`"
                else:
                    message = f"`{keyword.arg}` is deprecated" + (": torch ignores it" if new == "" else "")
                yield rule.finding(call, message, argument=keyword.arg)


def _is_default(keyword: ast.keyword) -> bool:
    """`pin_memory_device=""`, `only_inputs=True`, `optimize=None` change nothing and warn of nothing."""
    if not isinstance(keyword.value, ast.Constant):
        return False
    return keyword.value.value in (None, "") or (keyword.arg == "only_inputs" and keyword.value.value is True)


@rule.fix("use the new name, or leave it out", keeps=[parameters(), outputs()])
def renamed(source: Source, finding: Finding) -> list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    old = finding.facts["argument"]
    new = ARGUMENTS[min(source.resolve(call.func))][old]
    value = next(keyword.value for keyword in call.keywords if keyword.arg == old)
    if new is None or (new and source.argument(call, new) is not None):
        return None
    return [remove_argument(call, old), *([set_argument(call, new, text_of(source, value))] if new else [])]
