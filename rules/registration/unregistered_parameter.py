"""Parameters that the model does not know.

## What it finds
`nn.Parameter`s that a module keeps in a plain list, tuple or dict and does nothing else with that could register them;
and an `nn.Parameter` made in `forward`, used there and forgotten. In a run: tensors that ask for a gradient, are held
by an attribute, and entered the forward without being parameters of the model.

## Why it matters
`parameters()` does not list them, so no optimiser trains them; `state_dict()` does not save them; `to(device)` does not
move them. One made in `forward` is a fresh leaf each time: nothing is learned, and gradients stop at it.

## Example
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = [nn.Parameter(torch.ones(8)) for _ in range(4)]

## Use instead
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(8)) for _ in range(4)])

## When to ignore it
A link that is to stay weak, such as a parameter shared with another model. A list of one is not reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.ParameterList.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, registered
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.spelling import spelled
from auditor.static.facts.stray_parameters import (
    holds_parameters,
    is_forgotten,
    is_parameter,
    only_read,
    registers_itself,
)
from auditor.static.source import Source
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="REG003",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="parameters that the model does not know: never trained, never saved",
    triggers=("Parameter(",),
)

KEPT = "the parameters in `self.{}` are not registered with the model: they are neither trained nor saved"
MADE = "a parameter made in `forward` is new at every call: it is never trained, and gradients stop at it"


@rule.static
def not_registered(source: Source) -> Iterator[Finding]:
    """Parameters in a container that is only read; parameters that `forward` makes for itself."""
    for facts in source.module_classes:
        for name, assigned in facts.own_attributes.items():
            alone = len(assigned) == 1 and isinstance(assigned[0].statement, (ast.Assign, ast.AnnAssign))
            if not alone or not holds_parameters(source, assigned[0].value) or registers_itself(facts):
                continue
            if only_read(source, facts, name):
                yield rule.finding(assigned[0].statement, KEPT.format(name))
        forward = facts.methods.get("forward")
        for call in walk(forward) if forward is not None else ():
            if isinstance(call, ast.Call) and is_parameter(source, call) and is_forgotten(source, call):
                yield rule.finding(call, MADE)


@rule.dynamic
def used_without_registration(capture: Capture) -> Iterator[Finding]:
    """Leaves that ask for gradients, held by an attribute of the user's, that the forward computed with."""
    from auditor.dynamic.plain_tensors import plain_tensors_used

    for used in plain_tensors_used(capture):
        if used.trained:
            name = f"{used.owner}.{used.attribute}".lstrip(".")
            held = "the tensor" if not used.contained else f"{used.count} of the tensors in"
            message = f"{held} `{name}` asks for a gradient but is no parameter of the model: no optimiser trains it"
            yield rule.finding(used.location, message, modules=[used.owner], count=used.count)


@rule.fix(
    "keep them in an `nn.ParameterList`",
    applicability="unsafe",  # adds parameters to checkpoints and optimisers
    keeps=[parameters(added=True), outputs(mode="train")],
    gains=[registered()],
)
def register(source: Source, finding: Finding) -> list[Edit] | None:
    """A `ParameterList` around a list that is assigned directly."""
    statement = source.node_at(finding.location, ast.Assign)
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, (ast.List, ast.ListComp)):
        return None
    written = ast.get_source_segment(source.text, statement.value)
    name, imports = spelled(source, "torch.nn.ParameterList", source.function_of(statement) or source.tree.root)
    indented = (written or "").replace("\n" + " " * statement.col_offset, "\n")
    return [replace(statement.value, f"{name}({indented})"), *imports] if written else None
