"""What is applied last to a value: a function, a layer, or the end of the forward of one of the file's own models."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.values import RESHAPING, held
from auditor.static.flow import Op, children

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

_SEQUENTIAL = "torch.nn.Sequential"
_NEUTRAL = {"torch.nn.Flatten", "torch.nn.Unflatten", "torch.nn.Identity"}


class Ending(NamedTuple):
    """Functions by dotted name (`torch.softmax`, which as a method is `x.softmax()`) and layers that do one thing."""

    functions: Set[str]
    layers: Set[str]

    @property
    def methods(self) -> set[str]:
        return {name.rpartition(".")[2] for name in self.functions if name.startswith("torch.")}


def applications(source: Source, call: ast.Call, ending: Ending, depth: int = 4) -> list[ast.Call]:
    """The calls in which `ending` is what surely was applied last to the result of `call`: itself, the call of a layer
    or the one that ends the forward of the file's model that is called; the construction of a layer that ends a
    Sequential. Empty if the result can come from anything else."""
    function = call.func
    names = source.resolve(function)
    if names:
        return [call] if names <= ending.functions else []
    if depth == 0:
        return []
    match function:
        case ast.Name(id="self") | ast.Attribute(value=ast.Name(id="self"), attr="forward"):
            owner = source.class_of(call)
            facts = source.module_class(owner) if owner is not None else None
            return _class_applications(source, facts, ending, depth) if facts is not None else []
        case ast.Attribute(value=model, attr="forward"):
            return _model_applications(source, call, held(source, model), ending, depth)
    made = held(source, function)
    if made:
        return _model_applications(source, call, made, ending, depth)
    own = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self"
    return [call] if isinstance(function, ast.Attribute) and function.attr in ending.methods and not own else []


def _model_applications(
    source: Source, call: ast.Call, made: Iterable[ast.Call], ending: Ending, depth: int
) -> list[ast.Call]:
    """Where a layer or model that was made by one of these constructions, and is called by `call`, ends."""
    found: list[ast.Call] = []
    for construction in made:
        kind = source.layer_kind(construction)
        facts = source.module_class(kind) if kind else None
        if kind in ending.layers:
            part = [call]
        elif kind == _SEQUENTIAL:
            part = _last_layer(source, construction, ending, depth)
        else:
            part = _class_applications(source, facts, ending, depth) if facts is not None else []
        if not part:
            return []
        found += part
    return list(dict.fromkeys(found))


def _last_layer(source: Source, sequential: ast.Call, ending: Ending, depth: int) -> list[ast.Call]:
    layers = [layer for layer in children(source, sequential) if source.layer_kind(layer) not in _NEUTRAL]
    if not layers:
        return []
    kind = source.layer_kind(layers[-1])
    if kind in ending.layers:
        return [layers[-1]]
    return _model_applications(source, layers[-1], [layers[-1]], ending, depth - 1) if depth else []


def _class_applications(source: Source, facts: ModuleClass, ending: Ending, depth: int) -> list[ast.Call]:
    """Where the forward of a class ends, on every return."""
    flow = source.flow(facts)
    if flow is None or not flow.outputs or depth == 0:
        return []
    found: list[ast.Call] = []
    for output in flow.outputs:
        part = _ends_of(source, output.producers, ending, depth, frozenset())
        if not part or len(output.inputs) != 1:
            return []
        found += part
    return list(dict.fromkeys(found))


def _ends_of(source: Source, ops: Iterable[Op], ending: Ending, depth: int, seen: frozenset[Op]) -> list[ast.Call]:
    found: list[ast.Call] = []
    for op in ops:
        part = _end_of(source, op, ending, depth, seen | {op}) if op not in seen else []
        if not part:
            return []
        found += part
    return found


def _end_of(source: Source, op: Op, ending: Ending, depth: int, seen: frozenset[Op]) -> list[ast.Call]:
    tail = op.target.rpartition(".")[2]
    applied = (op.kind == "call" and op.target in ending.functions) or (op.kind == "method" and tail in ending.methods)
    if applied and isinstance(op.node, ast.Call):
        return [op.node]
    if op.kind == "layer" and op.layer is not None and isinstance(op.node, ast.Call):
        if op.layer_kind in ending.layers:
            return [op.node] if op.layer in (*held(source, op.node.func), op.node.func) else [op.layer]
        facts = source.module_class(op.layer_kind)
        if facts is not None:
            return _class_applications(source, facts, ending, depth - 1)
    if op.kind == "index" or (op.kind in ("method", "call") and tail in RESHAPING) or op.layer_kind in _NEUTRAL:
        return _ends_of(source, op.inputs[0] if op.inputs else (), ending, depth, seen)
    return []
