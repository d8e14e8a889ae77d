"""Matrix decompositions under their old names.

## What it finds
Calls of `torch.qr`, `svd`, `cholesky`, `lu`, `lu_solve`, `triangular_solve` and `chain_matmul`.

## Why it matters
They are deprecated since torch 1.9, most of them warn, and all are to be removed. The functions of `torch.linalg` that
follow them are not the same: `svd` returns the third factor conjugate-transposed, solvers take the matrix first.

## Example
    class Net(nn.Module):
        def forward(self, x):
            q, r = torch.qr(x)
            return q

## Use instead
    class Net(nn.Module):
        def forward(self, x):
            q, r = torch.linalg.qr(x)
            return q

## When to ignore it
Code that must run with torch before 1.11.

## References
- https://pytorch.org/docs/stable/linalg.html
- https://pytorch.org/docs/stable/generated/torch.svd.html (how to translate each call)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, insert_after, replace
from auditor.rule import Category, Rule
from auditor.static.facts import decompositions as old
from auditor.static.facts.api import text_of
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API004",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="matrix decompositions under names that torch is to remove",
    triggers=("qr(", "svd(", "cholesky(", "lu(", "lu_solve(", "triangular_solve(", "chain_matmul("),
    since="1.11",
)

# Old name: its parameters, how many are needed, the new call, and which part of the old result the new one returns.
REWRITES: dict[str, tuple[tuple[str, ...], int, old.Rewrite, int | None]] = {
    "torch.qr": (("input", "some"), 1, old.qr, None),
    "torch.cholesky": (("input", "upper"), 1, old.cholesky, None),
    "torch.lu": (("A", "pivot", "get_infos"), 1, old.lu, None),
    "torch.lu_solve": (("input", "LU_data", "LU_pivots"), 3, old.lu_solve, None),
    "torch.triangular_solve": (("input", "A", "upper", "transpose", "unitriangular"), 2, old.triangular_solve, 0),
}
SVD = ("input", "some", "compute_uv")
NEW = {"torch.chain_matmul": "multi_dot", "torch.lu": "lu_factor", "torch.triangular_solve": "solve_triangular"}


@rule.static
def calls(source: Source) -> Iterator[Finding]:
    for call in source.calls_to(*REWRITES, "torch.svd", "torch.chain_matmul"):
        name = min(source.resolve(call.func))
        new = "torch.linalg." + NEW.get(name, name.removeprefix("torch."))
        yield rule.finding(call, f"`{name}` is deprecated and to be removed: `{new}` takes its place")


@rule.fix("call the function of `torch.linalg`", keeps=[parameters(), outputs()])
def linalg(source: Source, finding: Finding) -> list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    name = min(source.resolve(call.func))
    module, imports = spelled(source, "torch.linalg", source.function_of(call) or call)
    if name == "torch.chain_matmul":
        return _chain(source, call, module, imports)
    if name == "torch.svd":
        return _svd(source, call, module, imports)
    parameters_of, needed, rewrite, part = REWRITES[name]
    given = old.arguments(source, call, parameters_of, needed)
    code = rewrite(source, call, given) if given is not None else None
    place: ast.expr | None = call if part is None else old.only_part(source, call, part)
    if code is None or place is None:
        return None
    return [replace(place, code.replace("{linalg}", module, 1)), *imports]


def _chain(source: Source, call: ast.Call, module: str, imports: list[Edit]) -> list[Edit] | None:
    """All matrices as one list; `multi_dot` wants at least two."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    if starred or len(call.args) < 2 or any(keyword.arg != "out" for keyword in call.keywords):
        return None
    out = "".join(f", out={text_of(source, keyword.value)}" for keyword in call.keywords)
    matrices = ", ".join(text_of(source, argument) for argument in call.args)
    return [replace(call, f"{module}.multi_dot([{matrices}]{out})"), *imports]


def _svd(source: Source, call: ast.Call, module: str, imports: list[Edit]) -> list[Edit] | None:
    given = old.arguments(source, call, SVD, 1)
    if given is None:
        return None
    if (values := old.only_part(source, call, 1)) is not None:
        return [
            replace(values, (old.singular_values(source, call, given) or "").replace("{linalg}", module, 1)),
            *imports,
        ]
    code = old.svd(source, call, given)
    assigned = old.unpacked(source, call, 3)
    if code is None or assigned is None:
        return None
    statement, (_, _, third) = assigned
    turned = [insert_after(statement, f"{third} = {third}.mH")] if old.is_read(source, statement, third) else []
    return [replace(call, code.replace("{linalg}", module, 1)), *turned, *imports]
