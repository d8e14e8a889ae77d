"""`torch.stft` that returns its complex numbers as pairs, or does not say how.

## What it finds
Calls of `torch.stft` with `return_complex=False`, and calls without `return_complex`, which raise for a real signal.

## Why it matters
Since torch 2.0 a real signal without `return_complex` is an error, and `return_complex=False` is to become one. A pair
of real numbers has to be put together again wherever the spectrum is used.

## Example
    def magnitude(x, window):
        return torch.stft(x, 512, window=window, return_complex=False).norm(dim=-1)

## Use instead
    def magnitude(x, window):
        return torch.stft(x, 512, window=window, return_complex=True).abs()

## When to ignore it
Where the signal itself is complex.

## References
- https://pytorch.org/docs/stable/generated/torch.stft.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded, text_of
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API020",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="`torch.stft` without complex numbers",
    triggers=("stft(",),
    since="2.0",
)


@rule.static
def as_pairs(source: Source) -> Iterator[Finding]:
    for call in source.calls_to("torch.stft", "torch.functional.stft"):
        complex_ = source.argument(call, "return_complex", 9)
        if guarded(source, call):
            continue
        if complex_ is None:
            yield rule.finding(
                call, "without `return_complex` this raises for a real signal since torch 2.0", severity=Severity.ERROR
            )
        elif source.constant(complex_, None) is False:
            yield rule.finding(call, "`return_complex=False` is deprecated: torch is to return complex numbers only")


@rule.fix("view complex numbers as pairs", keeps=[parameters(), outputs(), gradients()])
def viewed(source: Source, finding: Finding) -> list[Edit] | None:
    """What the call returned is `view_as_real` of the complex result. Where the argument is left out, what was meant is
    not known: before 1.8 it was pairs."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    if all(keyword.arg != "return_complex" for keyword in call.keywords):
        return None
    view, imports = spelled(source, "torch.view_as_real", source.function_of(call) or call)
    words = [text_of(source, argument) for argument in call.args]
    for keyword in call.keywords:
        value = "True" if keyword.arg == "return_complex" else text_of(source, keyword.value)
        words.append(f"{keyword.arg}={value}" if keyword.arg else f"**{value}")
    return [replace(call, f"{view}({text_of(source, call.func)}({', '.join(words)}))"), *imports]
