"""Function transforms from `functorch`, which are part of torch since 2.0.

## What it finds
Uses of `functorch.vmap`, `grad`, `jacrev`, `hessian` and the other transforms that `torch.func` has, and of
`torch._vmap_internals.vmap`.

## Why it matters
The package `functorch` is deprecated and only forwards to `torch.func`; it need not be there in the next version.

## Example
    import functorch

    def per_sample(loss, params, x):
        return functorch.vmap(functorch.grad(loss), in_dims=(None, 0))(params, x)

## Use instead
    def per_sample(loss, params, x):
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)

## When to ignore it
Code that must run with torch before 2.0.

## References
- https://pytorch.org/docs/stable/func.migrating.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.api import Use, guarded, rename, uses
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API007",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="function transforms from `functorch`, which `torch.func` replaces",
    triggers=("functorch", "_vmap_internals"),
    since="2.0",
)

TRANSFORMS = ("vmap", "grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "functionalize")
NEW = {f"functorch.{name}": f"torch.func.{name}" for name in TRANSFORMS}
NEW |= {"torch._vmap_internals.vmap": "torch.func.vmap"}


@rule.static
def transforms(source: Source) -> Iterator[Finding]:
    for use, name in uses(source, NEW):
        if not guarded(source, use):
            yield rule.finding(use, f"`{name}` is deprecated: it is `{NEW[name]}` since torch 2.0")


@rule.fix("take it from `torch.func`", keeps=[parameters(), outputs()])
def from_torch(source: Source, finding: Finding) -> list[Edit] | None:
    use = source.node_at(finding.location, ast.Attribute, ast.Name)
    return rename(source, use, NEW) if isinstance(use, Use) else None
