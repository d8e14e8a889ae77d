"""A functional dropout that `model.eval()` cannot switch off.

## What it finds
A call of `F.dropout` (or one of its relatives) that leaves out `training`, in a module's method or in a function that
such a method calls. Its default is `True`: the call drops units in evaluation too, whatever mode the module is in. In a
run: such a call that really dropped something in eval mode.

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
Where dropout in evaluation is the purpose (Monte-Carlo dropout, the prenet of Tacotron): say so by `training=True`, or
in a comment or name.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
- Gal and Ghahramani, "Dropout as a Bayesian Approximation", 2016 (where it is wanted)
- Shen et al., "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions", 2018 (likewise)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Location, Severity
from auditor.fix.claims import outputs, parameters, repeatable
from auditor.fix.edit import Edit, replace, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.gating import Rate, is_meant, is_method, rate_in_eval, runs_in_eval, switched_off
from auditor.static.source import HIDDEN, Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="MOD004",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="functional dropout that never switches off",
    triggers=("dropout",),
)

# All of them are called as (input, p, training, inplace). `F.alpha_dropout` is off by default: it is no relative.
FUNCTIONS = tuple("torch.nn.functional." + name for name in ("dropout", "dropout1d", "dropout2d", "dropout3d"))


@rule.static
def training_left_out(source: Source) -> Iterator[Finding]:
    """A call that passes no `training`, by name or position, and that eval mode reaches with a rate above zero."""
    for call in source.calls_to(*FUNCTIONS):
        switches = (source.argument(call, "training", 2), source.argument(call, "train"))
        if switches != (None, None) or not runs_in_eval(source, call) or is_meant(source, call):
            continue
        rate = source.argument(call, "p", 1)
        if rate is not HIDDEN and (rate is None or rate_in_eval(source, rate)[0] is Rate.ALWAYS):
            yield rule.finding(
                call, "`training` defaults to `True` here, so this drops units even after `model.eval()`"
            )


@rule.dynamic
def drops_in_eval(capture: Capture) -> Iterator[Finding]:
    """A call of the eval run with a rate above zero, on a line of the user's that leaves `training` to its default."""
    for node in capture.calls_to("eval", *FUNCTIONS):
        rate = node.argument("p", 1, 0.5)
        if node.argument("training", 2, True) and rate > 0 and _left_out(node.location):
            where = f"`{node.module}`" if node.module else "the model"
            message = f"{where} drops {rate:.0%} of its units in eval mode, because `training` defaults to `True` here"
            yield rule.finding(node, message, modules=[node.module], rate=rate)


def _left_out(location: Location) -> bool:
    """Whether a call on this line leaves out `training`; a run cannot tell it from a layer kept in train mode."""
    from auditor.dynamic.intent import source_at

    source = source_at(location)
    calls = source.calls_to(*FUNCTIONS) if source is not None else []
    here = [call for call in calls if call.lineno == location.row]
    return source is not None and any(
        source.argument(call, "training", 2) is None and not is_meant(source, call) for call in here
    )


@rule.fix("pass `training=self.training`", keeps=[parameters(), outputs(mode="train")], gains=[repeatable(mode="eval")])
def follow_the_module(source: Source, finding: Finding) -> Edit | list[Edit] | None:
    call = next(iter(_calls_at(source, finding)), None)
    if call is None:
        return None
    method = source.method_of(call)
    if method is not None and is_method(source, method[1]):
        return set_argument(call, "training", f"{method[1].args.args[0].arg}.training")
    rate = source.argument(call, "p", 1)  # a function outside the class: its callers know the mode
    origins = rate_in_eval(source, rate)[1] if isinstance(rate, ast.expr) else ()
    codes = [(origin, switched_off(source, origin)) for origin in origins]
    return [replace(origin, code) for origin, code in codes if code] if all(code for _, code in codes) else None


def _calls_at(source: Source, finding: Finding) -> Iterator[ast.Call]:
    """The call that a finding is about; a run only knows its line, on which other calls may start too."""
    for call in source.calls_to(*FUNCTIONS):
        row = call.lineno
        same = finding.location.column == call.col_offset + 1 or not finding.location.end_row
        if row == finding.location.row and same and source.argument(call, "training", 2) is None:
            yield call
