"""A parameter made of uninitialised memory that nothing fills.

## What it finds
`nn.Parameter(torch.empty(n))`, `nn.Parameter(torch.Tensor(n))` and the like whose values nothing sets: no initialiser
in the class, its bases, its owners, a loop over parameters or a function that is applied. On the running model: every
parameter with an element that no operation wrote while the model was constructed.

## Why it matters
The values are whatever the memory held before: often zeros, at times NaN or 1e38. The model differs from run to run
whatever the seed, trains on one machine and not on another, and no error is raised.

## Example
    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Parameter(torch.empty(channels))

        def forward(self, x):
            return x * self.scale

## Use instead
    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(channels))

        def forward(self, x):
            return x * self.scale

## When to ignore it
Where another file fills the parameter, or it is always loaded from a checkpoint.

## References
- https://pytorch.org/docs/stable/generated/torch.empty.html ("a tensor filled with uninitialized data")
- https://pytorch.org/docs/stable/deterministic.html (`fill_uninitialized_memory`)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import deterministic_construction, parameters, repeatable
from auditor.fix.edit import Edit, add_import, insert_after, replace
from auditor.rule import Category, Rule
from auditor.static.facts.initialisers import spelled
from auditor.static.facts.uninitialised import Bare, bare_parameters, is_written, may_be_filled
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ParameterFacts
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="INI007",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="a parameter of uninitialised memory",
    triggers=("empty(", "empty_like(", "Tensor("),
)

SHIFT = r"(?i)bias|shift|beta|offset|mean|(^|_)b$"
FACTOR = r"(?i)scale|gamma|gain|weight|alpha|temperature|std|(^|_)[wg]$"
TOKEN = r"(?i)token|embed|pos|query|queries|prompt|latent|prototype|codebook"


@rule.static
def never_filled(source: Source) -> Iterator[Finding]:
    """A parameter of empty memory that nothing in sight can fill."""
    for bare in bare_parameters(source):
        if not may_be_filled(source, bare):
            yield rule.finding(bare.call, f"`{bare.name}` is uninitialised memory: nothing ever sets its values")


@rule.dynamic
def never_written(capture: Capture) -> Iterator[Finding]:
    """Parameters with elements that nothing wrote during construction, by the line that made them."""
    groups: dict[object, list[ParameterFacts]] = {}
    for facts in capture.parameters.values():
        if not facts.initialised and facts.tensor.is_floating_point():
            groups.setdefault(facts.location, []).append(facts)
    for found in groups.values():
        more = f" and {len(found) - 1} more are" if len(found) > 1 else " is"
        yield rule.finding(
            found[0],
            f"`{found[0].name}`{more} uninitialised memory: nothing set the values while the model was constructed",
            modules=[facts.module for facts in found],
            parameters=[facts.name for facts in found],
        )


@rule.fix(
    "initialise the parameter",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
    gains=[deterministic_construction()],
)
def fill(source: Source, finding: Finding) -> Sequence[Edit]:
    """Zeros for what is added, ones for what multiplies, a random draw for matrices and tokens."""
    for bare in bare_parameters(source):
        rows = range(bare.call.lineno, (bare.call.end_lineno or bare.call.lineno) + 1)
        if finding.location.row in rows and not is_written(source, bare):
            return _filled(source, bare)
    return ()


def _filled(source: Source, bare: Bare) -> Sequence[Edit]:
    matrix = bare.rank >= 2 and not re.search(SHIFT, bare.name)
    if matrix or bare.rank == 0 or re.search(TOKEN, bare.name):
        if not isinstance(bare.statement, ast.Assign) or bare.statement.value is not bare.call:
            return ()
        module = spelled(source, "torch.nn.init")
        imports = [] if module else [add_import("torch")]
        module = module or "torch.nn.init"
        drawn = bare.rank < 2 or re.search(TOKEN, bare.name)
        call = f"normal_(self.{bare.name}, std=0.02)" if drawn else f"xavier_uniform_(self.{bare.name})"
        return [insert_after(bare.statement, f"{module}.{call}"), *imports]
    made = "ones" if re.search(FACTOR, bare.name) and not re.search(SHIFT, bare.name) else "zeros"
    made += "_like" if ast.unparse(bare.empty.func).endswith("_like") else ""
    spelling = spelled(source, f"torch.{made}")
    imports = [] if spelling else [add_import("torch")]
    return [replace(bare.empty.func, spelling or f"torch.{made}"), *imports]


@rule.rewrite
def fill_in_memory(surgery: Surgery, finding: Finding) -> None:
    for name in finding.facts["parameters"]:
        tail, rank = name.rpartition(".")[2], surgery.model.get_parameter(name).dim()
        if re.search(TOKEN, tail):
            surgery.fill(name, "normal")
        elif rank >= 2 and not re.search(SHIFT, tail):
            surgery.fill(name, "xavier_uniform")
        else:
            surgery.fill(name, "ones" if re.search(FACTOR, tail) and not re.search(SHIFT, tail) else "zeros")
