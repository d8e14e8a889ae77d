"""How a loss is reduced, said by `size_average` and `reduce`.

## What it finds
`size_average=` and `reduce=` in losses of `torch.nn` and `torch.nn.functional`, and `reduction="elementwise_mean"`.

## Why it matters
The two flags are deprecated since torch 0.4.1, warn at every construction, and override each other in ways that few
know: `size_average=True, reduce=False` does not average.

## Example
    criterion = nn.MSELoss(size_average=False)

## Use instead
    criterion = nn.MSELoss(reduction="sum")

## When to ignore it
Never, with a torch of the last years.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs, parameters
from auditor.fix.edit import Edit, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import keyword_edits, literal
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API014",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="a loss reduced by `size_average` or `reduce`",
    triggers=("size_average", "reduce=", "reduce =", "elementwise_mean"),
)

HOMES = ("torch.nn.", "torch.nn.functional.")
FLAGS = ("size_average", "reduce")


@rule.static
def flags(source: Source) -> Iterator[Finding]:
    for call in source.tree.all(ast.Call):
        given = [keyword.arg for keyword in call.keywords if keyword.arg in FLAGS]
        old = any(keyword.arg == "reduction" and _is_old_mean(keyword.value) for keyword in call.keywords)
        if (given or old) and _is_loss(source, call):
            if old:
                yield rule.finding(call, '`reduction="elementwise_mean"` is deprecated: it is called "mean"')
            else:
                yield rule.finding(call, f"`{given[0]}` is deprecated: `reduction` says how the loss is reduced")


def _is_old_mean(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value == "elementwise_mean"


def _is_loss(source: Source, call: ast.Call) -> bool:
    names = source.resolve(call.func)
    return bool(names) and all(
        name.startswith(HOMES)
        and (name.endswith(("Loss", "_loss", "Loss2d")) or "cross_entropy" in name or name.endswith("kl_div"))
        for name in names
    )


@rule.fix("say it by `reduction`", keeps=[parameters(), outputs(), gradients()])
def reduction(source: Source, finding: Finding) -> list[Edit] | None:
    """`reduce=False` wins over `size_average`; both are True where they are left out or None."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    if "elementwise_mean" in finding.message:
        return [set_argument(call, "reduction", '"mean"')]
    if any(keyword.arg in ("reduction", None) for keyword in call.keywords):
        return None
    average, reduced = (literal(source, source.argument(call, flag), None) for flag in FLAGS)
    if average is ... or reduced is ...:
        return None
    word = "none" if reduced is not None and not reduced else "sum" if average is not None and not average else "mean"
    return keyword_edits(call, {"reduction": f'"{word}"'}, drop=FLAGS)
