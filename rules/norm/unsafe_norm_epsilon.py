"""A norm that divides by zero when its input is zero.

## What it finds
A norm whose ε is missing, zero, or added to the root instead of under it: `x / x.pow(2).mean(-1, keepdim=True).sqrt()`,
`x / (torch.sqrt(x.var(-1, keepdim=True)) + eps)`, `nn.LayerNorm(64, eps=0)`. In a run, every hand-written norm is given
a sample of zeros in the dtype of the audit, so that an ε which rounds to zero in half precision is found too.

## Why it matters
A row of zeros (padding, a dead channel, a masked token) gives 0 / 0: NaN, which spreads through the whole batch. With
ε outside, the output is right, but the gradient of a root at zero is infinite, and infinite times zero is NaN in the
backward pass. `1e-8` is zero in float16: there the same happens although an ε is written.

## Example
    class RMSNorm(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x):
            return x / (torch.sqrt(x.pow(2).mean(-1, keepdim=True)) + 1e-8) * self.weight

## Use instead
    class RMSNorm(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x):
            return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)

## When to ignore it
Where no row can be zero, as behind a layer with a bias of its own. A division by `x.norm()` or `x.std()`, whose
gradients torch defines at zero, is not reported for an ε outside; nor is a division by `x.norm()` alone, since the
vectors that are made unit length that way are hardly ever zero.

## References
- Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019
- https://pytorch.org/docs/stable/generated/torch.nn.RMSNorm.html (ε under the root)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import finite, parameters, repeatable, shapes, state_dict_keys
from auditor.fix.edit import Edit, remove, replace
from auditor.rule import Category, Rule
from auditor.static.facts.norm_calls import norm_calls
from auditor.static.facts.spelling import spelled
from auditor.static.facts.unsafe_epsilon import unsafe_norm, unsafe_roots
from auditor.static.layers import NORMS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="NRM009",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="norm whose ε is missing, zero or outside the root",
    triggers=("sqrt", "0.5", "eps"),
)

EPSILON = "1e-6"


@rule.static
def divides_by_zero(source: Source) -> Iterator[Finding]:
    """A norm built with ε = 0, and a bare root of a variance or mean square that something is divided by."""
    for norm in norm_calls(source):
        epsilon = norm.argument(source, "eps")
        if isinstance(epsilon, ast.Constant) and source.constant(epsilon) == 0:
            yield rule.finding(norm.call, _zero_message(norm.name))
    for root in unsafe_roots(source):
        yield rule.finding(root.node, _message("gradients" if root.outside else "outputs"))


@rule.dynamic
def spoiled_by_a_zero_sample(capture: Capture) -> Iterator[Finding]:
    """Torch's norms with ε = 0, and hand-written norms that turn a sample of zeros into NaN."""
    from auditor.dynamic.zero_rows import dividing_call, spoiled_by_zeros

    for path, facts in capture.modules.items():
        if facts.kind in NORMS:
            if getattr(facts.module, "eps", None) == 0:
                yield rule.finding(facts, _zero_message(facts.kind.rpartition(".")[2]), modules=[path])
            continue
        call = dividing_call(capture, facts)
        spoiled = spoiled_by_zeros(capture, facts) if call is not None else ""
        if call is not None and spoiled:
            yield rule.finding(call, _message(spoiled), modules=[path], dtype=capture.dtype)


def _zero_message(name: str) -> str:
    return f"`{name}` with `eps=0` divides by zero where its input does not vary, and gives NaN"


def _message(spoiled: str) -> str:
    if spoiled == "gradients":
        return (
            "the root is taken of zero for a row of zeros, and its gradient there is infinite: ε belongs under the root"
        )
    return "nothing keeps this root away from zero: a row of zeros is divided by zero and gives NaN"


@rule.fix(
    "call the built-in norm, which has ε under the root and computes in float32",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), shapes(mode="train")],
    gains=[finite(), repeatable(mode="eval", idempotent=True)],
)
def put_epsilon_under_the_root(source: Source, finding: Finding) -> list[Edit] | None:
    """The class becomes one call, if it is nothing but the norm."""
    root = next((root for root in unsafe_roots(source) if root.node.lineno == finding.location.row), None)
    norm = unsafe_norm(source, root.owner, EPSILON) if root is not None else None
    if root is None or norm is None or root.owner.forward is None:
        return None
    functional, imports = spelled(source, "torch.nn.functional", root.owner.forward)
    if norm.weight:
        code = f"{norm.tensor}, {norm.weight}.shape, {norm.weight}, eps={norm.epsilon}"
    else:
        code = f"{norm.tensor}, {norm.tensor}.shape[-1:], eps={norm.epsilon}"
    body = root.owner.forward.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return [replace(body[0], f"return {functional}.{norm.function}({code})"), *map(remove, body[1:]), *imports]
