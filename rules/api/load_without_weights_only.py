"""`torch.load` that may run code from the file.

## What it finds
Calls of `torch.load` that do not pass `weights_only`, where the project supports a torch before 2.6.

## Why it matters
Before 2.6 the default is `False`: the file is unpickled, and a pickle can run any command. Since 2.6 the default is
`True`: the same call refuses files that hold more than tensors, so it does different things on different machines.

## Example
    def restore(model, path):
        model.load_state_dict(torch.load(path, map_location="cpu"))

## Use instead
    def restore(model, path):
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

## When to ignore it
Where the file is trusted and holds more than tensors: say so by `weights_only=False`.

## References
- https://pytorch.org/docs/stable/generated/torch.load.html
- https://pytorch.org/docs/stable/notes/serialization.html#weights-only
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API008",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="`torch.load` that may run code from the file",
    triggers=("load(",),
    since="1.13",
    until="2.6",
)


@rule.static
def left_out(source: Source) -> Iterator[Finding]:
    """Calls in which nothing can hold `weights_only`; one that brings its own pickle module has decided."""
    for call in source.calls_to("torch.load"):
        own = source.argument(call, "pickle_module", 2)
        if own is None and source.argument(call, "weights_only") is None and not guarded(source, call):
            yield rule.finding(
                call, "`weights_only` is False by default before torch 2.6: this runs whatever code the file holds"
            )


@rule.fix("pass `weights_only=True`", applicability="unsafe", keeps=[parameters(), outputs()])
def only_weights(source: Source, finding: Finding) -> Edit | None:
    """Not safe: a file that holds more than tensors is refused."""
    call = source.node_at(finding.location, ast.Call)
    return set_argument(call, "weights_only", "True") if isinstance(call, ast.Call) else None
