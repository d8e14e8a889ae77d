"""Parts of a module whose parameters are frozen while their BatchNorm goes on learning from each batch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.plain_tensors import run_by_forward
from auditor.static.modes.dependence import holds_batch_norm
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import Attribute, Function, ModuleClass
    from auditor.static.source import Source


class FrozenNorm(NamedTuple):
    """`self.attribute`, frozen by the statement `frozen` of the class's constructor. `alone`: no other part of the
    class surely holds a BatchNorm."""

    owner: ModuleClass
    attribute: str
    built: Attribute
    frozen: ast.stmt
    alone: bool


def frozen_norms(source: Source) -> Iterator[FrozenNorm]:
    """The parts that the file's classes freeze as a whole, that surely hold a BatchNorm, and that nothing in the file
    keeps in eval mode, thaws or leaves out of the forward; in document order."""
    if "requires_grad" not in source.text:
        return
    for facts in source.module_classes:
        start = facts.methods.get("__init__")
        if start is None or facts.method("train") is not None or _unknown_base(facts):
            continue
        for name, frozen in _frozen(start):
            attributes = facts.own_attributes.get(name, [])
            if not attributes or not _holds(source, attributes) or _is_looked_after(source, facts, name):
                continue
            if _runs(facts, name) and _trains_something(source, facts, name):
                others = (held for other, held in facts.own_attributes.items() if other != name)
                alone = not any(_holds(source, held) for held in others)
                yield FrozenNorm(facts, name, attributes[0], frozen, alone)


def _unknown_base(facts: ModuleClass) -> bool:
    """Whether a base that is not seen may look after the mode; Lightning's does not."""
    seen = all(name.rpartition(".")[2] in ("Module", "LightningModule") for names in facts.bases for name in names)
    return facts.has_unseen_base and not seen


def _frozen(start: Function) -> Iterator[tuple[str, ast.stmt]]:
    """The attributes of `self` all of whose parameters the constructor freezes, with the statement that does."""
    for node in walk(start):
        match node:
            case ast.For(
                iter=ast.Call(
                    func=ast.Attribute(
                        value=ast.Attribute(value=ast.Name(id="self"), attr=name),
                        attr="parameters" | "named_parameters",
                    )
                ),
                body=[only],
            ) if _switches_off(only):
                yield name, node
            case ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(
                        value=ast.Attribute(value=ast.Name(id="self"), attr=name), attr="requires_grad_"
                    ),
                    args=[ast.Constant(value=False)],
                )
            ):
                yield name, node


def _switches_off(statement: ast.stmt) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Attribute(attr="requires_grad")], value=ast.Constant(value=False)):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="requires_grad_"), args=[ast.Constant(value=False)])):
            return True
    return False


def _holds(source: Source, attributes: list[Attribute]) -> bool:
    """Whether everything that may be assigned to an attribute holds a BatchNorm."""
    for attribute in attributes:
        calls = [node for node in walk(attribute.value) if isinstance(node, ast.Call)]
        if not any(holds_batch_norm(source, call) for call in calls):
            return False
    return True


def _is_looked_after(source: Source, facts: ModuleClass, name: str) -> bool:
    """Whether the file puts the part, or single layers, in eval mode, or makes it learn again."""
    for call in source.calls_named("eval", "train", "requires_grad_", "apply"):
        if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, (ast.Name, ast.Attribute)):
            continue
        receiver = call.func.value
        tail = receiver.attr if isinstance(receiver, ast.Attribute) else receiver.id
        inside = facts.spans(call)
        thaws = call.func.attr == "requires_grad_" and ast.unparse(call)[-7:] != "(False)"
        if (tail == name and (call.func.attr != "requires_grad_" or thaws)) or (inside and call.func.attr == "eval"):
            return True
        if call.func.attr == "eval" and tail in ("m", "module", "layer", "bn", "mod", "child"):
            return True
    return any(
        isinstance(node.targets[0], ast.Attribute)
        and node.targets[0].attr == "requires_grad"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        for node in source.tree.all(ast.Assign)
    )


def _runs(facts: ModuleClass, name: str) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == name
        for method in run_by_forward(facts)
        for node in walk(method)
    )


def _trains_something(source: Source, facts: ModuleClass, name: str) -> bool:
    """Whether the class has a layer of its own beside the frozen part."""
    return any(facts.layers(other) for other in facts.own_attributes if other != name)
