"""An evaluation that records gradients nobody asks for.

## What it finds
A loop over data that evaluates a model in eval mode, with neither `torch.no_grad()` nor `torch.inference_mode()` around
it in the function or its callers.

## Why it matters
`eval()` switches dropout and BatchNorm; it does not switch autograd off. Every forward then keeps its activations for a
backward that never comes: evaluation needs several times the memory it could do with, runs slower, and a loss that is
summed over the loop keeps the graphs of all batches alive.

## Example
    def evaluate(model, loader):
        model.eval()
        correct = 0
        for x, y in loader:
            correct += (model(x).argmax(1) == y).sum().item()
        return correct

## Use instead
    def evaluate(model, loader):
        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum().item()
        return correct

## When to ignore it
Where the gradients are used (adversarial attacks, saliency, meta-learning): code that speaks of gradients, or detaches
its results, is not reported.

## References
- https://pytorch.org/docs/stable/notes/autograd.html#evaluation-mode-nn-module-eval
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.spelling import spelled
from auditor.static.modes.evaluations import with_gradients
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="MOD003",
    category=Category.ROBUSTNESS,
    severity=Severity.INFO,
    summary="evaluation that records gradients",
    triggers=(".eval(", ".train(False"),
)


@rule.static
def gradients_recorded(source: Source) -> Iterator[Finding]:
    """An evaluation in eval mode, in a loop, of whose gradients nothing is said."""
    for found in with_gradients(source):
        message = f"`{found.receiver}` is evaluated with gradients recorded: `torch.no_grad()` saves memory and time"
        notes = [Note(span(setting.node), "put in eval mode here") for setting in found.settings if setting.node]
        yield rule.finding(found.site, message, notes=notes)


@rule.fix(
    "switch gradients off around the loop",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def without_gradients(source: Source, finding: Finding) -> list[Edit] | None:
    """The loop inside a `with`; not where that would indent the inside of a string."""
    site = source.node_at(finding.location, ast.Call)
    found = next((item for item in with_gradients(source) if item.site is site), None)
    if found is None or any(_spans_lines(node) for node in walk(found.region)):
        return None
    first, last = found.region.lineno - 1, found.region.end_lineno or 0
    body = textwrap.dedent("\n".join(source.text.splitlines()[first:last]))
    name, imports = spelled(source, "torch.no_grad", source.function_of(found.region) or source.tree.root)
    return [replace(found.region, f"with {name}():\n" + textwrap.indent(body, "    ")), *imports]


def _spans_lines(node: ast.AST) -> bool:
    text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    return text and node.lineno != node.end_lineno  # type: ignore[attr-defined]
