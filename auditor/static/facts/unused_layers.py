"""Layers that a module class builds as an attribute and that nothing in the file reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

# What goes through all attributes of a module, or reads them by a name that is computed.
_READS_ALL = {"children", "named_children", "modules", "named_modules", "_modules", "__dict__"}
_BY_NAME = {"getattr", "vars", "eval", "hasattr", "attrgetter"}


class UnusedLayer(NamedTuple):
    """`self.<name> = <value>` of a class, never read."""

    name: str
    value: ast.Call


def unused_layers(source: Source, kinds: Set[str]) -> Iterator[UnusedLayer]:
    """Attributes assigned once, to a layer of one of these kinds, that no code of the file reads.

    Only of classes that are complete in this file: with a forward of their own, no base from elsewhere, no subclass in
    the file, and no access to all their parts or by a computed name.
    """
    for facts in source.module_classes:
        if facts.forward is None or facts.ancestors or facts.has_unseen_base:
            continue
        held = [
            (name, assigned[0].value)
            for name, assigned in facts.own_attributes.items()
            if len(assigned) == 1 and source.layer_kind(assigned[0].value) in kinds
        ]
        unread = [(name, value) for name, value in held if not _is_read(source, facts, name)]
        if not unread or any(facts in other.ancestors for other in source.module_classes) or _is_open(source, facts):
            continue
        for name, value in unread:
            if isinstance(value, ast.Call):
                yield UnusedLayer(name, value)


def _is_open(source: Source, facts: ModuleClass) -> bool:
    """Whether the class goes through its own parts, has no real forward, or hands itself to other code."""
    for method in facts.methods.values():
        for node in walk(method):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=attr) if attr in _READS_ALL:
                    return True
                case ast.Call(func=ast.Name(id=name)) if name in _BY_NAME:
                    return True
                case ast.Call(args=args, keywords=words) if method.name != "__init__" and any(
                    isinstance(item, ast.Name) and item.id == "self" for item in (*args, *(w.value for w in words))
                ):
                    return True
    forward = facts.forward
    return forward is None or all(
        isinstance(node, (ast.Raise, ast.Pass)) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in forward.body
    )


def _is_read(source: Source, facts: ModuleClass, name: str) -> bool:
    """Whether anything reads an attribute of this name: of `self` in the class, or of any other object in the file."""
    for node in source.tree.attributes(name):
        if not isinstance(node.ctx, (ast.Load, ast.Del)):
            continue
        of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        owner = source.class_of(node)
        if not of_self or owner is facts.node or owner is None:
            return True
    return name in source.tree.strings
