"""Whether a module class, or one of its methods, provably computes differently in train and in eval mode."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.classes import Function, ModuleClass, layer_mode_dependence
from auditor.static.models import BUILTINS, HARMLESS_METHODS
from auditor.static.tree import walk_scope

if TYPE_CHECKING:
    from auditor.static.source import Source

Answers = dict[str, bool | None]


_HARMLESS_BASES = frozenset({"object", "abc.ABC", "typing.Generic", "typing.Protocol"})


def has_unseen_base(source: Source, node: ast.ClassDef, depth: int = 10) -> bool:
    """Whether a class inherits from something that neither this file nor torch.nn nor Python itself defines."""
    for base in node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
        names = source.resolve(plain) or frozenset([plain.id] if isinstance(plain, ast.Name) else [""])
        for name in names:
            parents = [item for item in source.names.definitions.get(name, []) if isinstance(item, ast.ClassDef)]
            if any(parent is not node and depth and has_unseen_base(source, parent, depth - 1) for parent in parents):
                return True
            if not parents and name not in _HARMLESS_BASES and not name.startswith("torch.nn."):
                return True
    return False


def class_dependence(source: Source, facts: ModuleClass, seen: frozenset[str] = frozenset()) -> bool | None:
    """Whether eval() changes what the class computes: True only for layers that it builds without condition (or that
    look at `self.training`), False only if everything it builds is known; otherwise None."""
    if facts.name in seen:
        return False
    seen |= {facts.name}
    unknown = has_unseen_base(source, facts.node)
    for owner in (facts, *facts.ancestors):
        if owner.reads_training:
            return True
        for method in owner.methods.values():
            if method.name == "forward":
                continue
            for node in walk_scope(method):
                if isinstance(node, ast.Call):
                    depends = construction_dependence(source, node, seen)
                    if depends and not _is_conditional(source, node, method):
                        return True
                    unknown = unknown or depends is not False
    return None if unknown else False


def construction_dependence(source: Source, call: ast.Call, seen: frozenset[str] = frozenset()) -> bool | None:
    """Whether the layer that `call` builds depends on its mode; False for a call that builds none."""
    kind = source.layer_kind(call)
    local = source.module_class(kind) if kind else None
    if local is not None:
        return class_dependence(source, local, seen)
    depends = layer_mode_dependence(source, call, kind)
    if depends is None and not kind and isinstance(call.func, ast.Attribute):
        owner = call.func.value
        own = isinstance(owner, ast.Name) and owner.id == "self"
        if own or isinstance(owner, ast.Call) or call.func.attr in HARMLESS_METHODS:
            return False  # a method of its own (read where it stands), of super(), or of a list of layers
    if depends is None and isinstance(call.func, ast.Name) and call.func.id in BUILTINS:
        return False
    return depends


def method_dependence(source: Source, facts: ModuleClass, name: str, seen: frozenset[str] = frozenset()) -> bool | None:
    """Whether a call of the method `name` reaches something that depends on the mode; None if that is not known."""
    if name == "forward":
        return class_dependence(source, facts)
    method = facts.method(name)
    if method is None or name in seen:
        return None
    for node in walk_scope(method):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            if node.attr == "training":
                return True
            if node.attr in facts.attributes and _attribute_depends(source, facts, node.attr):
                return True
            if facts.method(node.attr) and method_dependence(source, facts, node.attr, seen | {name}):
                return True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "self":
            return class_dependence(source, facts)
    return None


def _attribute_depends(source: Source, facts: ModuleClass, name: str) -> bool:
    for attribute in facts.attributes[name]:
        for node in ast.walk(attribute.value):
            if isinstance(node, ast.Call) and construction_dependence(source, node):
                return not _is_conditional(source, node, attribute.method)
    return False


def _is_conditional(source: Source, node: ast.AST, method: Function) -> bool:
    """Whether `node` is reached only under a condition that is not true by default."""
    below = node
    for above in source.tree.ancestors(node):
        if above is method:
            return False
        if isinstance(above, (ast.If, ast.IfExp)) and below is not above.test:
            body = above.body if isinstance(above.body, list) else [above.body]
            if source.constant(above.test) is not (below in body):
                return True
        below = above
    return False
