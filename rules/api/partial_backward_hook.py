"""A backward hook that may see only part of the gradients.

## What it finds
Calls of `register_backward_hook` on modules.

## Why it matters
The hook hangs on the last operation of the forward, not on the module: where the forward has several operations,
`grad_input` is that of the last one, and gradients are missing. What is built on it (saliency maps, clipping,
statistics) is silently wrong. `register_full_backward_hook` sees the gradients of the module's own inputs and outputs.

## Example
    def watch(layer, hook):
        layer.register_backward_hook(hook)

## Use instead
    def watch(layer, hook):
        layer.register_full_backward_hook(hook)

## When to ignore it
Where a module changes its inputs in place, which full hooks do not allow, and consists of one operation.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.register_full_backward_hook
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded, text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API022",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="a backward hook that may see only part of the gradients",
    triggers=("register_backward_hook",),
    since="1.8",
)

OLD = "register_backward_hook"


@rule.static
def hooked(source: Source) -> Iterator[Finding]:
    """Calls on anything but `self` of a class that defines the method itself."""
    for call in source.calls_named(OLD):
        if isinstance(call.func, ast.Attribute) and not guarded(source, call) and not _own(source):
            yield rule.finding(call, f"`{OLD}` sees the gradients of the last operation only, not those of the module")


def _own(source: Source) -> bool:
    return any(node.name == OLD for node in source.tree.all(ast.FunctionDef))


@rule.fix("register a full hook", applicability="unsafe", keeps=[parameters(), outputs()])
def full(source: Source, finding: Finding) -> Edit | None:
    """Not safe: the hook is given other gradients, and one that reads places in them has to be looked at."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    return replace(call.func, f"{text_of(source, call.func.value)}.register_full_backward_hook")
