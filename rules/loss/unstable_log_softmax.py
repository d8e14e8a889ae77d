"""A logarithm of a softmax, a sigmoid or a sum of exponentials.

## What it finds
`log(softmax(x))`, `log(sigmoid(x))`, `log(sum(exp(x)))` and `log(1 + exp(x))` written in two steps; as advice
`log(1 + x)` and `exp(x) - 1`.

## Why it matters
In float32 the softmax of a logit 104 below the largest one is 0 and its logarithm -inf; `exp` overflows above 88 (in
half precision above 11). The loss becomes infinite or NaN on exactly the samples that matter. The fused functions are
exact everywhere and faster. `log1p` and `expm1` keep the digits that `1 + x` loses for small `x`.

## Example
    def entropy(logits, p):
        return -(p * torch.log(F.softmax(logits, dim=-1))).sum(-1)

## Use instead
    def entropy(logits, p):
        return -(p * F.log_softmax(logits, dim=-1)).sum(-1)

## When to ignore it
Where the argument is bounded by construction.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html
- https://pytorch.org/docs/stable/generated/torch.logsumexp.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import finite, gradients, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.logarithms import argument_of, fused, is_guarded, is_one, kind_of, overflows
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="LOS005",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="a logarithm that is -inf or overflows where the fused function is exact",
    triggers=("log(", "exp("),
)

INSTEAD = {
    "softmax": ("torch.nn.functional.log_softmax", "`log` of a softmax is -inf where the softmax underflows"),
    "sigmoid": ("torch.nn.functional.logsigmoid", "`log` of a sigmoid is -inf where the sigmoid underflows"),
    "softplus": ("torch.nn.functional.softplus", "`exp` overflows here, and the logarithm with it"),
    "sum": ("torch.logsumexp", "`exp` overflows here, and the logarithm of the sum with it"),
    "log1p": ("torch.log1p", "`1 + x` loses the digits of a small `x`"),
    "expm1": ("torch.expm1", "`exp(x) - 1` loses the digits of a small `x`"),
}


@rule.static
def two_steps(source: Source) -> Iterator[Finding]:
    """Logarithms of what is surely a softmax, sigmoid, sum of exponentials, or `1 + x`; `exp(x) - 1`."""
    for call in source.calls_named("log"):
        inner = argument_of(source, call, "log")
        kind = kind_of(source, inner) if inner is not None else ""
        if kind and not is_guarded(source, call):
            yield _finding(call, kind)
    for call in source.calls_named("log1p"):
        if overflows(source, call):
            yield _finding(call, "softplus")
    for node in source.tree.all(ast.BinOp):
        if isinstance(node.op, ast.Sub) and is_one(node.right) and argument_of(source, node.left, "exp") is not None:
            yield _finding(node, "expm1")


@rule.dynamic
def two_steps_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A logarithm of the result of such a call, wherever the two were written."""
    from auditor.dynamic.logarithms import unfused_logarithms

    for node, kind in unfused_logarithms(capture):
        name, reason = INSTEAD[kind]
        yield rule.finding(node, f"{reason}; `{name}` is exact", modules=[node.module], kind=kind)


def _finding(node: ast.expr, kind: str) -> Finding:
    name, reason = INSTEAD[kind]
    severity = Severity.INFO if kind in ("log1p", "expm1") else Severity.WARNING
    return rule.finding(node, f"{reason}; `{name}` is exact", severity=severity, kind=kind)


@rule.fix(
    "use the fused function",
    applicability="safe",
    keeps=[parameters(), outputs(where_finite=True), gradients(where_finite=True)],
    gains=[finite(dtype="float32", idempotent=True)],
)
def fuse(source: Source, finding: Finding) -> list[Edit] | None:
    """The fused function of the same operand, where the whole pattern is one expression."""
    kind = str(finding.facts.get("kind"))
    node = source.node_at(finding.location, ast.BinOp if kind == "expm1" else ast.Call)
    code = fused(source, node, kind) if isinstance(node, ast.expr) else ""
    if node is None or not code:
        return None
    name, imports = spelled(source, INSTEAD[kind][0], source.function_of(node) or source.tree.root)
    return [replace(node, f"{name}({code})"), *imports]  # type: ignore[arg-type]
