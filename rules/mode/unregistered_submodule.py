"""Layers in a plain list, tuple or dict, which the model does not know.

## What it finds
Layers with parameters or a mode that a module keeps in a container (in a run: in any object) that is no `nn.Module`,
and that nothing registers otherwise.

## Why it matters
`parameters()` does not list such layers, so no optimiser trains them; `state_dict()` does not save them; `eval()` and
`to(device)` do not reach them. The model trains, a little worse than it could, and a loaded checkpoint silently has
fresh random weights in their place. Of 56 such containers in 4.3 million lines of published code 7 were bugs; the
others were registered a second time, which this rule sees.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(8, 8) for _ in range(4)]

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

## When to ignore it
A link that is to stay weak: a teacher or a shared layer put in a list of one so that its parameters are not counted
twice. A list of one and frozen layers are not reported; for others, say `# auditor: ignore[unregistered-submodule]`.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.ModuleList.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, registered
from auditor.fix.edit import Edit, add_import, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.initialisers import spelled
from auditor.static.facts.stateful import State
from auditor.static.facts.stray_layers import kept_in_containers
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.static.facts.stray_layers import Kept

rule = Rule(
    __name__,
    code="MOD007",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="layers that the model does not know: never trained, never saved",
    triggers=("nn.", ("nn", "import")),
)

EFFECTS = {
    State.MODE: "`eval()` does not reach them",
    State.NEUTRAL: "their parameters are neither trained nor saved, and `eval()` does not reach them",
    State.WEIGHTS: "their parameters are neither trained nor saved",
}
# Names that an entry of nn.ModuleDict may not have, and methods of a dict that it lacks.
RESERVED = frozenset(
    {"keys", "items", "values", "pop", "clear", "update", "forward", "type", "training", "train", "eval"}
)
LACKING = frozenset({"get", "setdefault", "copy", "sort", "remove", "count", "index", "popitem"})


@rule.static
def kept_in_plain_container(source: Source) -> Iterator[Finding]:
    """Layers with a state in a container that nothing registers."""
    for facts in source.module_classes:
        for kept in kept_in_containers(source, facts):
            start, end = kept.statement.lineno, kept.statement.end_lineno or kept.statement.lineno
            outside = [call for call in kept.layers if not start <= call.lineno <= end]
            message = f"the layers in `self.{kept.attribute}` are not registered with the model: {EFFECTS[kept.state]}"
            notes = [Note(span(call), "this layer ends up in it") for call in outside]
            yield rule.finding(kept.statement, message, notes=notes)


@rule.dynamic
def reached_only_through_plain_attributes(capture: Capture) -> Iterator[Finding]:
    """Layers that ran, are held by an attribute of a module, and are registered nowhere in the model."""
    from auditor.dynamic.stray_layers import kept_unregistered

    for kept in kept_unregistered(capture):
        name = f"{kept.owner}.{kept.attribute}".lstrip(".")
        count = sum(parameter.numel() for layer in kept.layers for parameter in layer.parameters())
        layers = "1 layer" if len(kept.layers) == 1 else f"{len(kept.layers)} layers"
        message = (
            f"{layers} in the {kept.holder} `{name}` ({count} parameters) are not registered: {EFFECTS[kept.state]}"
        )
        yield rule.finding(kept.location, message, modules=[kept.owner], parameters=count)


@rule.fix(
    "keep them in an `nn.ModuleList` or `nn.ModuleDict`",
    applicability="unsafe",  # adds parameters to checkpoints and optimisers
    keeps=[parameters(added=True), outputs(mode="train")],
    gains=[registered()],
)
def register(source: Source, finding: Finding) -> list[Edit] | None:
    for facts in source.module_classes:
        for kept in kept_in_containers(source, facts):
            if kept.statement.lineno == finding.location.row and kept.state is not State.MODE:
                container = _container(source, kept)
                name = spelled(source, f"torch.nn.{container}") or f"nn.{container}"
                imports = [] if spelled(source, "torch.nn") else [add_import("torch", "nn")]
                empty = isinstance(kept.value, (ast.List, ast.Dict)) and ast.unparse(kept.value) in ("[]", "{}")
                code = f"{name}()" if empty else f"{name}({_text(source, kept)})"
                return [replace(kept.value, code), *imports] if container else None
    return None


def _text(source: Source, kept: Kept) -> str:
    """The container as it is written, relative to the statement's indentation."""
    written = ast.get_source_segment(source.text, kept.value) or ""
    return written.replace("\n" + " " * kept.statement.col_offset, "\n")


def _container(source: Source, kept: Kept) -> str:
    """What can take the container's place; "" where it would not behave the same."""
    for call in source.calls_named(*LACKING):
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == f"self.{kept.attribute}":
            return ""
    if len(kept.layers) < len(_elements(kept.value)) or any(
        isinstance(item, _NESTED) for item in _elements(kept.value)
    ):
        return ""
    if isinstance(kept.value, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in kept.value.keys]
        named = all(isinstance(key, str) and key.isidentifier() and key not in RESERVED for key in keys)
        return "ModuleDict" if named and keys else ""
    return "" if isinstance(kept.value, ast.DictComp) else "ModuleList"


_NESTED = (ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp)


def _elements(container: ast.expr) -> list[ast.expr]:
    match container:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Dict(values=elements):
            return elements
        case ast.ListComp(elt=element):
            return [element]
    return []
