"""A negative log-likelihood of something that is no log-probability.

## What it finds
Probabilities (softmax, sigmoid) or raw outputs of a weight layer, on every path, that reach `F.nll_loss` or an
`nn.NLLLoss`: within one function, or across modules of one file.

## Why it matters
`nll_loss` only picks the entry of the target class and changes its sign. Of probabilities it is bounded by -1 and its
gradient does not grow where the model is wrong; of raw outputs it has no lower bound at all: the loss falls for ever
while the model learns to output large numbers.

## Example
    def step(model, x, target):
        return F.nll_loss(F.softmax(model(x), dim=1), target)

## Use instead
    def step(model, x, target):
        return F.nll_loss(F.log_softmax(model(x), dim=1), target)

## When to ignore it
When the linear loss of probabilities is wanted (an expected accuracy), and said so.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import loss_floor, parameters, ranking, repeatable
from auditor.fix.edit import Applicability, Edit, Fix, replace
from auditor.rule import Category, Rule
from auditor.static.facts.endings import Ending
from auditor.static.facts.losses import fed_with, loss_calls
from auditor.static.facts.spelling import spelled
from auditor.static.facts.values import held
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="LOS003",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="`nll_loss` of something that is no log-probability",
    triggers=("nll_loss", "NLLLoss"),
)

FUNCTION, LAYER = "torch.nn.functional.nll_loss", "torch.nn.NLLLoss"
PROBABILITIES = Ending(
    functions=frozenset({"torch.softmax", "torch.nn.functional.softmax", "torch.sigmoid"}),
    layers=frozenset({"torch.nn.Softmax", "torch.nn.Sigmoid"}),
)
LOGITS = Ending(
    functions=frozenset({"torch.nn.functional.linear"}),
    layers=frozenset({"torch.nn.Linear", "torch.nn.Conv1d", "torch.nn.Conv2d", "torch.nn.LazyLinear"}),
)
LOG = {"softmax": "log_softmax", "Softmax": "LogSoftmax"}


INSTEAD = {FUNCTION: "torch.nn.functional.cross_entropy", LAYER: "torch.nn.CrossEntropyLoss"}


@rule.static
def no_logarithm(source: Source) -> Iterator[Finding]:
    """Probabilities or logits on every path to the input of the loss."""
    for ending, what in ((PROBABILITIES, "probabilities"), (LOGITS, "raw outputs")):
        for call, notes in fed_with(source, loss_calls(source, FUNCTION, LAYER), ending).items():
            yield rule.finding(call, _message(what), notes=notes)


@rule.dynamic
def no_logarithm_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A softmax, sigmoid or weight layer that gives its result to the loss, with nothing but rearrangements between."""
    from auditor.dynamic.flow import WEIGHT_FUNCTIONS
    from auditor.dynamic.losses import fed_in_the_run, place_of

    for loss, given in fed_in_the_run(capture, FUNCTION):
        raw = given.operation in WEIGHT_FUNCTIONS
        if raw or given.operation in ("softmax", "sigmoid"):
            where = place_of(capture, given, PROBABILITIES.layers | LOGITS.layers)
            message = _message("raw outputs" if raw else "probabilities")
            yield rule.finding(where, message, modules=[given.module], notes=[Note(loss.location, "the loss")])


def _message(what: str) -> str:
    return f"`nll_loss` takes log-probabilities, and gets {what}: its value is no likelihood"


@rule.fix(
    "take the log-softmax",
    applicability="unsafe",
    keeps=[parameters(), ranking(mode="eval")],
    gains=[loss_floor(mode="eval"), repeatable(mode="eval", idempotent=True)],
)
def take_the_logarithm(source: Source, finding: Finding) -> Edit | Fix | None:
    """`softmax` → `log_softmax`, in whichever of its forms; for raw outputs, the loss that takes them is shown."""
    call = source.node_at(finding.location, ast.Call)
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in LOG:
        text = ast.get_source_segment(source.text, call.func.value)
        return replace(call.func, f"{text}.{LOG[call.func.attr]}") if text else None
    edits = _cross_entropies(source, finding) if "raw" in finding.message else []
    return Fix("use the loss that takes raw outputs", tuple(edits), Applicability.DISPLAY_ONLY) if edits else None


def _cross_entropies(source: Source, finding: Finding) -> list[Edit]:
    """Cross-entropy in place of each loss that the outputs reach, at its call or where its object is made."""
    edits: list[Edit] = []
    for note in finding.notes:
        loss = source.node_at(note.location, ast.Call)
        if not isinstance(loss, ast.Call):
            return []
        for made in [loss] if source.is_any(loss.func, FUNCTION) else held(source, loss.func):
            name, imports = spelled(source, INSTEAD[min(source.resolve(made.func))], source.function_of(made) or made)
            edits += [replace(made.func, name), *imports]
    return list(dict.fromkeys(edits))
