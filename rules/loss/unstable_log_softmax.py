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
from auditor.static.facts.losses import operand
from auditor.static.facts.spelling import spelled
from auditor.static.facts.values import reaching
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="LOS005",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="a logarithm that is -inf or overflows where the fused function is exact",
    triggers=("log(", "exp("),
)

NN = "torch.nn.functional."
SOFTMAX = {"torch.softmax", NN + "softmax", "torch.special.softmax"}
SIGMOID = {"torch.sigmoid", NN + "sigmoid", "torch.special.expit"}
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
        inner = _argument(source, call, "log")
        kind = _kind(source, inner) if inner is not None else ""
        if kind and not _is_guarded(source, call):
            yield _finding(call, kind)
    for node in source.tree.all(ast.BinOp):
        if isinstance(node.op, ast.Sub) and _is_one(node.right) and _argument(source, node.left, "exp") is not None:
            yield _finding(node, "expm1")


def _is_guarded(source: Source, call: ast.Call) -> bool:
    """Whether the logarithm is one branch of a `where`, taken of a fixed range of numbers, or of whole numbers."""
    parent = source.tree.parent(call)
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "where":
        return True
    inside = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
    return not inside.isdisjoint({"arange", "linspace", "floor", "clamp", "clip", "clamp_min"})


def _finding(node: ast.expr, kind: str) -> Finding:
    name, reason = INSTEAD[kind]
    severity = Severity.INFO if kind in ("log1p", "expm1") else Severity.WARNING
    return rule.finding(node, f"{reason}; `{name}` is exact", severity=severity, kind=kind)


def _argument(source: Source, node: ast.expr, function: str) -> ast.expr | None:
    """What `torch.<function>` (or the method of that name, of something computed here) is applied to."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != function:
        return None
    names = source.resolve(node.func)
    if names:
        return node.args[0] if names == {f"torch.{function}"} and len(node.args) == 1 else None
    return node.func.value if not node.args and not node.keywords else None


def _kind(source: Source, inner: ast.expr) -> str:
    if isinstance(inner, ast.Name):
        values = reaching(source, inner)
        inner = values[0] if len(values) == 1 else inner
    match inner:
        case ast.Call(func=function) if source.is_any(function, *SOFTMAX) or _method(source, inner, "softmax"):
            return "softmax"
        case ast.Call(func=function) if source.is_any(function, *SIGMOID) or _method(source, inner, "sigmoid"):
            return "sigmoid"
        case ast.Call(func=ast.Attribute(attr="sum")) if _sum_of_exponentials(source, inner):
            return "sum"
        case ast.BinOp(left=left, op=ast.Add(), right=right) if _is_one(left) or _is_one(right):
            other = right if _is_one(left) else left
            exponent = _argument(source, other, "exp")
            if exponent is not None:
                return "softplus" if not _is_bounded(exponent) else "log1p"
            return "log1p" if not isinstance(other, ast.Constant) else ""
    return ""


def _method(source: Source, call: ast.Call, name: str) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr != name or source.resolve(call.func):
        return False
    return not isinstance(call.func.value, ast.Name) or call.func.value.id != "self"


def _sum_of_exponentials(source: Source, call: ast.Call) -> bool:
    """`exp(x).sum(…)` or `torch.sum(exp(x), …)`, where nothing was subtracted from `x` before."""
    names = source.resolve(call.func)
    given = (call.args[0] if call.args else None) if names else call.func.value  # type: ignore[attr-defined]
    if given is None or (names and names != {"torch.sum"}):
        return False
    exponent = _argument(source, given, "exp")
    return exponent is not None and not _is_bounded(exponent) and not _is_shifted(source, exponent)


def _is_shifted(source: Source, exponent: ast.expr) -> bool:
    """Whether the exponent is a difference or comes from one (`x - x.max()`), or cannot be followed."""
    if isinstance(exponent, ast.Name):
        values = reaching(source, exponent)
        return any(isinstance(node, ast.Sub) for value in values for node in ast.walk(value))
    return any(isinstance(node, ast.Sub) for node in ast.walk(exponent))


def _is_bounded(exponent: ast.expr) -> bool:
    """Whether the exponent is negative by the way it is written: `-x.abs()`, `-x ** 2`."""
    text = ast.unparse(exponent)
    return isinstance(exponent, ast.UnaryOp) and ("abs" in text or "**" in text or "square" in text)


def _is_one(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in (1, 1.0) and not isinstance(node.value, bool)


@rule.fix(
    "use the fused function",
    applicability="safe",
    keeps=[parameters(), outputs(where_finite=True), gradients(where_finite=True)],
    gains=[finite(dtype="float32", idempotent=True)],
)
def fuse(source: Source, finding: Finding) -> list[Edit] | None:
    """The fused function on the innermost operand, where the whole pattern is one expression."""
    node = source.node_at(finding.location, ast.Call, ast.BinOp)
    kind = str(finding.facts.get("kind"))
    if not isinstance(node, (ast.Call, ast.BinOp)):
        return None
    inner = _argument(source, node, "log") if isinstance(node, ast.Call) else node.left
    arguments = _arguments(source, inner, kind) if inner is not None else None
    where = source.function_of(node) or source.tree.root
    name, imports = spelled(source, INSTEAD[kind][0], where)
    return [replace(node, f"{name}({arguments})"), *imports] if arguments else None


def _arguments(source: Source, inner: ast.expr, kind: str) -> str | None:
    match inner:
        case ast.Call() if kind in ("softmax", "sigmoid"):
            given = operand(source, inner)
            rest = [] if kind == "sigmoid" else inner.args[bool(source.resolve(inner.func)) :]
            words = [] if kind == "sigmoid" else [f"{item.arg}={ast.unparse(item.value)}" for item in inner.keywords]
            named = any(word.startswith("input=") for word in words)
            if given is None or named:
                return None
            return ", ".join([ast.unparse(given), *(ast.unparse(item) for item in rest), *words])
        case ast.Call() if kind == "expm1":
            exponent = _argument(source, inner, "exp")
            return ast.unparse(exponent) if exponent is not None else None
        case ast.BinOp(left=left, right=right) if kind in ("log1p", "softplus"):
            other = right if _is_one(left) else left
            exponent = _argument(source, other, "exp") if kind == "softplus" else other
            return ast.unparse(exponent) if exponent is not None else None
    return None
