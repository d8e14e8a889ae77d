"""Names that torch keeps for itself, where it has a public one for the same thing.

## What it finds
Uses of `torch.optim.lr_scheduler._LRScheduler`, `torch.utils.data._utils.collate.default_collate`,
`torch._dynamo.is_compiling`, `torch.distributed._tensor` and the like.

## Why it matters
A name with an underscore may change or go in any version, and these have: `_LRScheduler` has become a mere alias,
`torch.distributed._tensor` a shim.

## Example
    from torch.optim.lr_scheduler import _LRScheduler

    class Warmup(_LRScheduler):
        pass

## Use instead
    from torch.optim.lr_scheduler import LRScheduler

    class Warmup(LRScheduler):
        pass

## When to ignore it
Code that must run with a torch that lacks the public name (before 2.0, or 2.3 for `torch.compiler.is_compiling`).

## References
- https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
- https://pytorch.org/docs/stable/torch.compiler_api.html
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
    code="API016",
    category=Category.ROBUSTNESS,
    severity=Severity.INFO,
    summary="names that torch keeps for itself and has a public name for",
    triggers=("_LRScheduler", "_utils", "is_compiling", "_dynamo", "_get_global_rank", "distributed._tensor"),
    since="2.3",
)

COLLATE = "torch.utils.data._utils.collate."
NEW = {
    "torch.optim.lr_scheduler._LRScheduler": "torch.optim.lr_scheduler.LRScheduler",
    COLLATE + "default_collate": "torch.utils.data.default_collate",
    COLLATE + "default_convert": "torch.utils.data.default_convert",
    "torch._utils.is_compiling": "torch.compiler.is_compiling",
    "torch._dynamo.is_compiling": "torch.compiler.is_compiling",
    "torch._dynamo.external_utils.is_compiling": "torch.compiler.is_compiling",
    "torch._dynamo.allow_in_graph": "torch.compiler.allow_in_graph",
    "torch._dynamo.assume_constant_result": "torch.compiler.assume_constant_result",
    "torch._dynamo.reset": "torch.compiler.reset",
    "torch.distributed.distributed_c10d._get_global_rank": "torch.distributed.get_global_rank",
}


@rule.static
def private(source: Source) -> Iterator[Finding]:
    for use, name in uses(source, NEW):
        if not guarded(source, use):
            yield rule.finding(use, f"`{name}` is torch's own: the public name is `{NEW[name]}`")


@rule.fix("use the public name", keeps=[parameters(), outputs()])
def public(source: Source, finding: Finding) -> list[Edit] | None:
    use = source.node_at(finding.location, ast.Attribute, ast.Name)
    return rename(source, use, NEW) if isinstance(use, Use) else None
