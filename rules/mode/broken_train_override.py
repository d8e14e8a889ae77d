"""A `train` or `eval` of a module's own that breaks the contract of `nn.Module`.

## What it finds
A module that overrides `train` without taking the mode, without handing it on, or without returning the module; and one
whose `train` is a training routine. `model.eval()` is `self.train(False)`, and a module around it calls `train(mode)`
on each of its layers. In a run: `train(False)` and `train(True)` are called, and what they leave behind is looked at.

## Why it matters
`eval()` then raises, or layers silently stay in the wrong mode, or `model = build().eval()` is `None`.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

## When to ignore it
Where the module is never switched. Advice only (info) where nothing but the result is missing. One that keeps its mode
on purpose (`return self`, `super().train(False)`) is not reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.train
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, runs, state_dict_keys
from auditor.fix.edit import Applicability, Edit, Fix, insert_after, replace
from auditor.rule import Category, Rule
from auditor.static.facts.mode_overrides import Fault, Override, overrides, switch_calls
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="MOD008",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="own `train` or `eval` that does not do what `nn.Module` relies on",
    triggers=("def train(", "def eval("),
)

MESSAGES = {
    Fault.NO_MODE: "`{name}` takes no mode: `eval()` calls `train(False)`, and so does a module around this one",
    Fault.ROUTINE: "`{name}` is no switch of mode here, but `eval()` calls `train(False)`: it raises, or trains",
    Fault.NOT_SWITCHED: "`{name}` does not call the one it overrides: layers that it does not name keep their mode",
    Fault.IGNORES: "`{name}` takes a mode and does not hand it on: `eval()` leaves the model in train mode",
    Fault.NO_RETURN: "`{name}` returns nothing: `model = model.{name}()` is None, where `nn.Module` gives the model",
}


@rule.static
def breaks_the_contract(source: Source) -> Iterator[Finding]:
    """The gravest fault of each override."""
    for found in overrides(source):
        fault = found.faults[0]
        severity = Severity.INFO if fault is Fault.NO_RETURN else Severity.WARNING  # most callers throw it away
        yield rule.finding(found.method, MESSAGES[fault].format(name=found.method.name), severity=severity)


@rule.dynamic
def switches_wrongly(capture: Capture) -> Iterator[Finding]:
    """What `train(False)` and `train(True)` of the user's overrides do in the running model."""
    from auditor.dynamic.switching import tried_switches

    for tried in tried_switches(capture):
        severity = Severity.WARNING
        if tried.raises:
            message = f"`{tried.call}` raises {tried.raises}"
        elif tried.unchanged:
            names = ", ".join(f"`{name or 'the module itself'}`" for name in tried.unchanged[:3])
            message = f"after `{tried.call}`, {names} and {len(tried.unchanged)} in all are still in the other mode"
        else:
            severity = Severity.INFO
            message = f"`{tried.call}` returns {tried.returned}, where `nn.Module` gives the model"
        parts = [f"{tried.path}.{name}".strip(".") for name in tried.unchanged]
        yield rule.finding(tried.location, message, severity=severity, modules=[tried.path, *parts])


@rule.fix(
    "take the mode, hand it on, return the module",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def complete(source: Source, finding: Finding) -> Edit | Fix | None:
    """Completes a method that calls the one it overrides; what another one is meant to do cannot be known."""
    for found in overrides(source):
        if found.method.lineno == finding.location.row and switch_calls(found.method):
            if found.faults == (Fault.NO_RETURN,):
                return insert_after(found.method.body[-1], "return self")
            if Fault.NO_MODE in found.faults or Fault.IGNORES in found.faults:
                edits = (replace(found.method, _completed(source, found)),)
                kept = (parameters(), state_dict_keys(), outputs(mode="train"))
                return Fix(rule.title, edits, Applicability.UNSAFE, kept, (runs("eval", idempotent=True),))
    return None


def _completed(source: Source, found: Override) -> str:
    """The method's text with a mode in its head, in its calls of the overridden method, and with `return self`."""
    method, lines = found.method, source.text.splitlines()
    parameter = method.args.args[1].arg if len(method.args.args) > 1 else "mode"
    changes = [(call.end_lineno, call.end_col_offset, parameter) for call in switch_calls(method) if not call.args]
    changes = [change for change, call in zip(changes, switch_calls(method), strict=False) if _is_train(call)]
    if len(method.args.args) == 1:
        own = method.args.args[0]
        changes.append((own.end_lineno, (own.end_col_offset or 0) + 1, ", mode=True"))
    for row, column, code in sorted(changes, reverse=True):  # type: ignore[type-var]
        line = lines[row - 1].encode()  # type: ignore[operator]
        lines[row - 1] = (line[: column - 1] + code.encode() + line[column - 1 :]).decode()  # type: ignore[operator]
    body = lines[method.lineno - 1 : method.end_lineno]
    if Fault.NO_RETURN in found.faults:
        body.append(" " * method.body[0].col_offset + "return self")
    return "\n".join(line[method.col_offset :] for line in body)


def _is_train(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "train"
