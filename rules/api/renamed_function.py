"""Functions and classes of torch under names that have been replaced.

## What it finds
Uses of names that torch has deprecated for another name with the same meaning: `F.upsample`, `torch.ger`,
`clip_grad_norm`, `nn.NLLLoss2d`, `torch.cuda.memory_cached`, `stateless.functional_call` and others.

## Why it matters
Each warns today or is documented as deprecated, and goes away with one of the next versions. The new name does exactly
the same.

## Example
    class Net(nn.Module):
        def forward(self, x):
            return F.upsample(x, scale_factor=2)

## Use instead
    class Net(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=2)

## When to ignore it
Code that must run with a torch that lacks the new name.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.functional.upsample.html
- https://pytorch.org/docs/stable/generated/torch.func.functional_call.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule
from auditor.static.facts.api import Use, callable_args, guarded, keyword_edits, rename, uses
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API005",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="functions and classes under names that torch has replaced",
    triggers=(
        "upsample", "Upsampling", "ger", "clip_grad_norm", "NLLLoss2d", "memory_cached", "functional_call",
        "impl_abstract", "reduce_op", "has_cuda", "has_mps", "has_cudnn", "has_mkldnn", "DistributedDataParallelCPU",
        "_register_pytree_node",
    ),
    since="2.0",
)  # fmt: skip

F = "torch.nn.functional."
NEW = {
    F + "upsample": F + "interpolate",
    F + "upsample_nearest": F + "interpolate",
    F + "upsample_bilinear": F + "interpolate",
    "torch.nn.UpsamplingNearest2d": "torch.nn.Upsample",
    "torch.nn.UpsamplingBilinear2d": "torch.nn.Upsample",
    "torch.nn.NLLLoss2d": "torch.nn.NLLLoss",
    "torch.nn.parallel.DistributedDataParallelCPU": "torch.nn.parallel.DistributedDataParallel",
    "torch.ger": "torch.outer",
    "torch.nn.utils.clip_grad_norm": "torch.nn.utils.clip_grad_norm_",
    "torch.nn.utils.stateless.functional_call": "torch.func.functional_call",
    "torch.cuda.memory_cached": "torch.cuda.memory_reserved",
    "torch.cuda.max_memory_cached": "torch.cuda.max_memory_reserved",
    "torch.library.impl_abstract": "torch.library.register_fake",
    "torch.distributed.reduce_op": "torch.distributed.ReduceOp",
    "torch.utils._pytree._register_pytree_node": "torch.utils._pytree.register_pytree_node",
    "torch.has_cuda": "torch.backends.cuda.is_built",
    "torch.has_mps": "torch.backends.mps.is_built",
    "torch.has_cudnn": "torch.backends.cudnn.is_available",
    "torch.has_mkldnn": "torch.backends.mkldnn.is_available",
}
# What the new name has to be told, because the old one took it for granted.
TAKEN = {
    F + "upsample_bilinear": {"mode": '"bilinear"', "align_corners": "True"},
    "torch.nn.UpsamplingBilinear2d": {"mode": '"bilinear"', "align_corners": "True"},
}


@rule.static
def old_names(source: Source) -> Iterator[Finding]:
    for use, name in uses(source, NEW):
        if not guarded(source, use):
            yield rule.finding(use, f"`{name}` is deprecated: it is called `{NEW[name]}` now")


@rule.fix("use the new name", keeps=[parameters(), outputs()])
def new_names(source: Source, finding: Finding) -> list[Edit] | None:
    use = source.node_at(finding.location, ast.Attribute, ast.Name)
    if not isinstance(use, Use):
        return None
    name = min(source.resolve(use))
    if name.startswith("torch.has_") or name.endswith("pytree_node"):
        return None  # a value has become a function; arguments were renamed
    return rename(source, use, NEW, _adapt if name in TAKEN else None)


def _adapt(source: Source, call: ast.Call) -> Sequence[Edit] | None:
    names = ("input", "size", "scale_factor") if isinstance(call, ast.Call) else ()
    own = min(source.resolve(call.func))
    given = callable_args(source, call, *(names if own.startswith(F) else names[1:]))
    return None if given is None else keyword_edits(call, TAKEN[own])
