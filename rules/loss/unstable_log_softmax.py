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

from auditor.finding import Finding, Severity
from auditor.fix.claims import finite, gradients, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.logarithms import argument_of, is_guarded, is_one, kind_of
from auditor.static.facts.losses import operand
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

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
    for node in source.tree.all(ast.BinOp):
        if isinstance(node.op, ast.Sub) and is_one(node.right) and argument_of(source, node.left, "exp") is not None:
            yield _finding(node, "expm1")


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
    """`log_softmax` or `logsigmoid` of the same operand, where the whole pattern is one expression. The others round
    differently, by design, and are left to the user."""
    node = source.node_at(finding.location, ast.Call)
    inner = argument_of(source, node, "log") if isinstance(node, ast.Call) else None
    kind = str(finding.facts.get("kind"))
    if not isinstance(node, ast.Call) or not isinstance(inner, ast.Call) or kind not in ("softmax", "sigmoid"):
        return None
    given = operand(source, inner)
    if given is None or any(word.arg in ("input", None) for word in inner.keywords):
        return None
    arguments = [ast.unparse(given)]
    if kind == "softmax":
        arguments += [ast.unparse(item) for item in inner.args[bool(source.resolve(inner.func)) :]]
        arguments += [f"{word.arg}={ast.unparse(word.value)}" for word in inner.keywords]
    name, imports = spelled(source, INSTEAD[kind][0], source.function_of(node) or source.tree.root)
    return [replace(node, f"{name}({', '.join(arguments)})"), *imports]
