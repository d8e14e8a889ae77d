"""`torch.norm`, which is deprecated and means different things for different arguments.

## What it finds
Calls of `torch.norm`.

## Why it matters
Its documentation says that its "behavior may be incorrect" and that nobody maintains it. `p="fro"` is a vector norm for
any shape in spite of its name, `p="nuc"` a matrix norm; the successors say which one is meant.

## Example
    class Net(nn.Module):
        def forward(self, x):
            return x / torch.norm(x, dim=-1, keepdim=True)

## Use instead
    class Net(nn.Module):
        def forward(self, x):
            return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

## When to ignore it
For sparse tensors, which `torch.linalg` does not take (where a file speaks of sparse tensors the fix is not safe).

## References
- https://pytorch.org/docs/stable/generated/torch.norm.html
- https://pytorch.org/docs/stable/generated/torch.linalg.vector_norm.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs, parameters
from auditor.fix.edit import Applicability, Edit, Fix, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import callable_args, keyword_edits, rename, text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API003",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="`torch.norm`, deprecated for `torch.linalg.vector_norm` and `matrix_norm`",
    triggers=("norm(",),
    since="1.9",
)

OLD = ("torch.norm", "torch.functional.norm")
TITLE = "call the norm that is meant"
CLAIMS = [parameters(), outputs(), gradients()]


@rule.static
def calls(source: Source) -> Iterator[Finding]:
    for call in source.calls_to(*OLD):
        yield rule.finding(call, "`torch.norm` is deprecated: `torch.linalg.vector_norm` or `matrix_norm` says which")


@rule.fix(TITLE, keeps=CLAIMS)
def linalg(source: Source, finding: Finding) -> Fix | None:
    """`p` None, "fro" or a number is `vector_norm`, "nuc" is `matrix_norm` over two named dimensions."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or not isinstance(call.func, (ast.Name, ast.Attribute)):
        return None
    given = callable_args(source, call, "input", "p", "dim", "keepdim", "out", "dtype")
    if given is None or "input" not in given or len(call.args) > 4:
        return None
    order = source.constant(given["p"], ...) if "p" in given else "fro"
    if order == "nuc" and isinstance(given.get("dim"), (ast.Tuple, ast.List)):
        new, edits = "torch.linalg.matrix_norm", _order(source, call, given.get("p"), '"nuc"')
    elif order in ("fro", None) and order is not ...:
        if isinstance(dim := given.get("dim"), (ast.Tuple, ast.List)) and len(dim.elts) > 2 and order == "fro":
            return None  # torch.norm raises
        new, edits = "torch.linalg.vector_norm", _order(source, call, given.get("p"), "2")
    elif _is_number(source, given["p"], order):
        new, edits = "torch.linalg.vector_norm", _order(source, call, given["p"], text_of(source, given["p"]))
    else:
        return None
    renamed = rename(source, call.func, dict.fromkeys(OLD, new))
    if renamed is None:
        return None
    safe = Applicability.UNSAFE if "sparse" in source.text else Applicability.SAFE
    return Fix(TITLE, (*renamed, *edits), safe, CLAIMS)


def _order(source: Source, call: ast.Call, p: ast.expr | None, code: str) -> Sequence[Edit]:
    """The order as `vector_norm` and `matrix_norm` take it: second, or by the keyword `ord`."""
    if p is None:
        return ()
    if p in call.args:
        return [replace(p, code)] if text_of(source, p) != code else []
    return keyword_edits(call, {} if code == "2" else {"ord": code}, drop=["p"])


def _is_number(source: Source, p: ast.expr, value: object) -> bool:
    """Whether `p` is a number for sure: a constant one, or infinity."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return True
    core = p.operand if isinstance(p, ast.UnaryOp) else p
    return source.is_any(core, "math.inf", "numpy.inf", "torch.inf") or ast.unparse(core).lower() in (
        "float('inf')",
        "float('-inf')",
    )
