"""A dropout that is asked for and never happens.

## What it finds
`dropout=` of an `nn.LSTM`, `nn.GRU` or `nn.RNN` with one layer, where torch drops only *between* layers; and a dropout
layer that a module builds and no code of the file ever uses. On the running model: such a recurrent layer, whatever
configuration chose its number of layers.

## Why it matters
The model trains without the regularisation that its author believes it has, and a search over that rate measures noise.

## Example
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(32, 64, dropout=0.3)
            self.head = nn.Linear(64, 5)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

## Use instead
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(32, 64)
            self.drop = nn.Dropout(0.3)
            self.head = nn.Linear(64, 5)

        def forward(self, x):
            return self.head(self.drop(self.lstm(x)[0]))

## When to ignore it
Where a subclass in another file uses the layer, or where it keeps a constructor compatible with a published one. The
fix takes away what has no effect; whether the dropout was wanted, only you know.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.LSTM.html ("introduces a Dropout layer on the outputs of each LSTM
  layer except the last layer")
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Applicability, Fix, remove, remove_argument
from auditor.rule import Category, Rule
from auditor.static.facts.rates import LAYERS
from auditor.static.facts.unused_layers import unused_layers
from auditor.static.layers import DROPOUTS, RECURRENT
from auditor.static.source import HIDDEN, Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="DRP009",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="dropout that is never applied",
    triggers=("ropout",),
)

UNUSED = re.compile(r"#.*(\bunused|(not|never)( \w+)? used)", re.IGNORECASE)
ONE_LAYER = "torch drops between the layers of a recurrent network: with one layer this rate has no effect"


@rule.static
def never_applied(source: Source) -> Iterator[Finding]:
    """A rate of a recurrent layer that surely has one layer; a dropout layer that the file never uses."""
    for call in source.calls_to(*RECURRENT):
        if _has_one_layer(source, call) and _is_asked_for(source, call):
            yield rule.finding(call, ONE_LAYER)
    for layer in unused_layers(source, frozenset(DROPOUTS)):
        if source.constant(source.argument(layer.value, "p", 0)) == 0 or _is_admitted(source, layer.value):
            continue
        message = f"`self.{layer.name}` is built and never used: nothing is dropped here"
        yield rule.finding(layer.value, message, attribute=layer.name)


def _is_admitted(source: Source, call: ast.Call) -> bool:
    """Whether a comment on the line says that it is not used."""
    return bool(UNUSED.search(source.lines[call.lineno - 1]))


def _has_one_layer(source: Source, call: ast.Call) -> bool:
    """Whether the number of layers is written as 1 here, or left to its default; a parameter may be another one."""
    layers = source.argument(call, "num_layers", 2)
    return layers is None or (isinstance(layers, ast.Constant) and layers.value == 1)


def _is_asked_for(source: Source, call: ast.Call) -> bool:
    rate = source.argument(call, *LAYERS[min(source.resolve(call.func))])
    return rate is not None and rate is not HIDDEN and source.constant(rate) not in (0, None, False)


@rule.dynamic
def never_applied_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A recurrent layer of the running model with one layer and a rate above 0."""
    for facts in capture.modules.values():
        if facts.kind in RECURRENT and facts.module.num_layers == 1 and float(facts.module.dropout) > 0:  # type: ignore[arg-type]
            yield rule.finding(facts, ONE_LAYER, modules=[facts.path], rate=float(facts.module.dropout))  # type: ignore[arg-type]


@rule.fix("take it away", keeps=[parameters(), outputs(mode="eval"), outputs(mode="train")])
def take_away(source: Source, finding: Finding) -> Fix | None:
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    keeps = (parameters(), state_dict_keys(), outputs(mode="eval"), outputs(mode="train"))
    if source.is_any(call.func, *RECURRENT):
        written = _has_one_layer(source, call) and any(item.arg == "dropout" for item in call.keywords)
        edit = remove_argument(call, "dropout") if written else None
        return Fix("take the argument away", (edit,), Applicability.SAFE, keeps) if edit else None
    statement = source.statement_of(call)
    alone = isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is call
    alone = alone and not (isinstance(statement, ast.Assign) and len(statement.targets) > 1)
    return Fix("take the layer away", (remove(statement),), Applicability.UNSAFE, keeps) if alone else None
