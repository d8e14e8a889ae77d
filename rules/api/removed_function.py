"""Functions that torch no longer has.

## What it finds
Calls of `torch.symeig`, `solve`, `lstsq`, `eig`, `matrix_rank`, of the Fourier transforms `torch.rfft`, `irfft`, `fft`
and `ifft`, and of LAPACK names such as `torch.gesv` and `potrf`; not where a version was asked for.

## Why it matters
The call raises as soon as it is reached: often after an hour, on the one path that no test covers.

## Example
    class Whiten(nn.Module):
        def forward(self, x):
            values, vectors = torch.symeig(x.T @ x, eigenvectors=True)
            return x @ vectors

## Use instead
    class Whiten(nn.Module):
        def forward(self, x):
            values, vectors = torch.linalg.eigh(x.T @ x, UPLO="U")
            return x @ vectors

## When to ignore it
Code that only ever runs with an old torch: say so by `target-torch` in the settings.

## References
- https://pytorch.org/docs/stable/linalg.html
- https://pytorch.org/docs/stable/fft.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters, repeatable, runs
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts import decompositions as old
from auditor.static.facts.api import guarded
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API001",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="functions that torch no longer has",
    triggers=(
        "symeig(", "solve(", "lstsq(", "eig(", "matrix_rank(", "fft(", "gesv(", "gels(", "potrf(", "potri(", "potrs(",
        "pstrf(", "trtrs(", "btrifact", "btrisolve(",
    ),
    since="1.9",
)  # fmt: skip

# Old name → what took its place.
REMOVED = {
    "symeig": "linalg.eigh", "solve": "linalg.solve", "lstsq": "linalg.lstsq", "eig": "linalg.eig",
    "matrix_rank": "linalg.matrix_rank", "rfft": "fft.rfftn", "irfft": "fft.irfftn", "fft": "fft.fftn",
    "ifft": "fft.ifftn", "gesv": "linalg.solve", "gels": "linalg.lstsq", "potrf": "linalg.cholesky",
    "potri": "cholesky_inverse", "potrs": "cholesky_solve", "pstrf": "linalg.cholesky",
    "trtrs": "linalg.solve_triangular", "btrifact": "linalg.lu_factor", "btrisolve": "linalg.lu_solve",
}  # fmt: skip


@rule.static
def calls(source: Source) -> Iterator[Finding]:
    for call in source.calls_to(*[f"torch.{name}" for name in REMOVED]):
        if not guarded(source, call):
            name = min(source.resolve(call.func)).removeprefix("torch.")
            yield rule.finding(
                call, f"torch has no `{name}` any more, this raises: `torch.{REMOVED[name]}` replaces it"
            )


@rule.fix(
    "call the function of `torch.linalg`", keeps=[parameters()], gains=[runs(mode="eval"), repeatable(idempotent=True)]
)
def linalg(source: Source, finding: Finding) -> list[Edit] | None:
    """Where the part of the result that is used says what to call; the Fourier transforms are left to a person, who
    knows what the last axis of two meant."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    place, code = _new_call(source, call)
    if place is None or code is None:
        return None
    module, imports = spelled(source, "torch.linalg", source.function_of(call) or call)
    return [replace(place, code.replace("{linalg}", module, 1)), *imports]


def _new_call(source: Source, call: ast.Call) -> tuple[ast.expr | None, str | None]:
    """What is to be replaced, and by what."""
    name = min(source.resolve(call.func))
    if name == "torch.symeig":
        given = old.arguments(source, call, ("input", "eigenvectors", "upper"), 1)
        if given is None:
            return None, None
        values = old.only_part(source, call, 0)
        return (values, old.eigenvalues(source, call, given)) if values else (call, old.symeig(source, call, given))
    if name == "torch.matrix_rank":
        given = old.arguments(source, call, ("input", "tol", "symmetric"), 1)
        return call, old.matrix_rank(source, call, given) if given is not None else None
    if name == "torch.solve":
        given = old.arguments(source, call, ("input", "A"), 2)
        code = old.solve(source, call, given) if given is not None else None
        return old.only_part(source, call, 0), code
    return None, None
