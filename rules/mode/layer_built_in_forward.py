"""A layer that is built anew at every forward.

## What it finds
A layer with parameters, running statistics or a mode that `forward`, or a method it calls, constructs, calls and
forgets. In a run: a layer that was made during the forward in eval mode and is gone after it.

## Why it matters
Such a layer is always in training mode, whatever `model.eval()` says; its weights are drawn anew at every call, are in
no optimiser, and in no checkpoint; it stays on the CPU when the model moves. Nothing raises an error. Two of three
parametric layers built in `forward` in 4.3 million lines of published code were such bugs.

## Example
    class Net(nn.Module):
        def forward(self, x):
            return nn.Dropout(0.5)(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(x)

## When to ignore it
Losses, activations and pooling without parameters may be built anywhere, and are not reported. Neither are layers that
are built at the first call and kept.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters, repeatable, shapes, state_dict_keys
from auditor.fix.edit import Edit, insert_after, replace
from auditor.rule import Category, Rule
from auditor.static.facts.gating import is_global, is_meant
from auditor.static.facts.stateful import State
from auditor.static.facts.stray_layers import Built, built_in_forward
from auditor.static.source import Source
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.static.classes import ModuleClass

rule = Rule(
    __name__,
    code="MOD006",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="layer built in `forward`: always training, never trained, never saved",
    triggers=("def forward",),
)

RANDOM = "has new random weights at every call, which are never trained nor saved"
FRESH = "starts afresh at every call: its parameters are never trained nor saved"


def _verdict(kind: str, state: State) -> tuple[str, Severity]:
    """What such a layer does wrong, and how bad that is: a fresh norm at least computes what it is meant to."""
    if state is State.WEIGHTS:
        return RANDOM, Severity.ERROR
    if state is State.NEUTRAL and "Batch" not in kind:
        return FRESH, Severity.WARNING
    return "is always in training mode, whatever `model.eval()` says", Severity.ERROR


@rule.static
def built_and_forgotten(source: Source) -> Iterator[Finding]:
    """A stateful layer that a forward constructs and calls."""
    for facts in source.module_classes:
        for built in built_in_forward(source, facts):
            if not (built.state is State.MODE and is_meant(source, built.call)):
                kind = source.layer_kind(built.call).rpartition(".")[2]
                effect, severity = _verdict(kind, built.state)
                yield rule.finding(built.call, f"this `{kind}` {effect}", severity=severity)


@rule.dynamic
def made_during_the_run(capture: Capture) -> Iterator[Finding]:
    """A stateful layer that was constructed during the eval forward, ran, and is gone."""
    from auditor.dynamic.intent import is_meant_at
    from auditor.dynamic.stray_layers import built_in_eval

    for built in built_in_eval(capture):
        if not (built.state is State.MODE and is_meant_at(built.location)):
            kind = built.kind.rpartition(".")[2]
            effect, severity = _verdict(kind, built.state)
            message = f"this `{kind}` {effect} ({built.calls} built in one forward)"
            yield rule.finding(
                built.location, message, severity=severity, modules=[built.parent], parameters=built.parameters
            )


@rule.fix(
    "build it in `__init__`",
    applicability="unsafe",  # adds parameters to checkpoints
    keeps=[parameters(added=True), state_dict_keys(added=True), shapes(mode="eval")],
    gains=[repeatable(mode="eval")],
)
def build_once(source: Source, finding: Finding) -> list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    for facts in source.module_classes:
        names = _names(source, facts)
        start = facts.methods.get("__init__")
        for built in built_in_forward(source, facts):
            spans = built.call.lineno <= finding.location.row <= (built.call.end_lineno or built.call.lineno)
            if (built.call is call or spans) and start is not None and _is_movable(source, facts, built):
                name = f"self.{names[built.call]}"
                return [insert_after(start.body[-1], f"{name} = {ast.unparse(built.call)}"), replace(built.call, name)]
    return None


def _names(source: Source, facts: ModuleClass) -> dict[ast.Call, str]:
    """A new attribute for each layer that the class builds in forward."""
    taken = {*facts.attributes, *facts.methods, *facts.constants}
    found = {}
    for built in built_in_forward(source, facts):
        kind = source.layer_kind(built.call).rpartition(".")[2]
        base = built.variable or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
        numbers = (name for name in (base, *(f"{base}_{number}" for number in range(1, 1000))) if name not in taken)
        found[built.call] = next(numbers)
        taken.add(found[built.call])
    return found


def _is_movable(source: Source, facts: ModuleClass, built: Built) -> bool:
    """Whether one layer serves every call: outside loops, its arguments known in `__init__`, drawn at random today."""
    loops = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.Lambda)
    if built.state is State.NEUTRAL or any(isinstance(above, loops) for above in source.tree.ancestors(built.call)):
        return False
    if isinstance(source.tree.parent(built.call), ast.Attribute) or built.method.args.args[0].arg != "self":
        return False
    attributes = {node.value: node.attr for node in walk(built.call) if isinstance(node, ast.Attribute)}
    for node in walk(built.call):
        if isinstance(node, ast.Name) and node.id == "self":
            held = facts.attributes.get(attributes.get(node, ""), [])
            if len(held) != 1 or held[0].method.name != "__init__" or held[0].conditional:
                return False
        elif isinstance(node, ast.Name) and not source.resolve(node) and not is_global(source, node):
            return False
    return True
