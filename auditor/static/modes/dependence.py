"""Whether a module class, or one of its methods, provably computes differently in train and in eval mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.static.classes import Function, ModuleClass, is_unseen
from auditor.static.layers import (
    ACTIVATIONS,
    ATTENTION,
    BATCH_NORMS,
    CONTAINERS,
    DROPOUTS,
    INSTANCE_NORMS,
    RECURRENT,
    TRANSFORMERS,
)
from auditor.static.modes.libraries import BUILTINS, HARMLESS_METHODS, builds_library_model, library_dependence
from auditor.static.modes.linked import linked_class
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.source import Source


def class_dependence(source: Source, facts: ModuleClass, seen: frozenset[str] = frozenset()) -> bool | None:
    """Whether eval() changes what the class computes: True only for layers that it builds without condition (or that
    look at `self.training`), False only if everything it builds is known; otherwise None."""
    if facts.name in seen:
        return False
    seen |= {facts.name}
    unknown = False
    for base in _bases_elsewhere(source, facts):
        inherited = linked_class(source, base)
        if inherited is not None and inherited.depends:
            return True
        unknown = unknown or inherited is None or inherited.depends is None
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


def unknown_bases(source: Source, facts: ModuleClass) -> bool:
    """Whether the class inherits from something that is not a class of torch.nn or of the project."""
    known = [linked_class(source, base) for base in _bases_elsewhere(source, facts)]
    return any(found is None or not found.fresh for found in known)


def _bases_elsewhere(source: Source, facts: ModuleClass) -> Iterator[ast.expr]:
    """The bases, of the class and those of its file that it inherits from, that neither the file nor torch defines."""
    for owner in (facts, *facts.ancestors):
        for base in owner.node.bases:
            if is_unseen(source, owner.node, base):
                yield base.value if isinstance(base, ast.Subscript) else base


def construction_dependence(source: Source, call: ast.Call, seen: frozenset[str] = frozenset()) -> bool | None:
    """Whether the layer that `call` builds depends on its mode; False for a call that builds none."""
    kind = source.layer_kind(call)
    local = source.module_class(kind) if kind else None
    if local is not None:
        return class_dependence(source, local, seen)
    known = linked_class(source, call.func)
    if known is not None and known.module:
        return known.depends
    depends = _layer_dependence(source, call, kind)
    if depends is None and not kind and isinstance(call.func, ast.Attribute):
        owner = call.func.value
        own = isinstance(owner, ast.Name) and owner.id == "self"
        if own or isinstance(owner, ast.Call) or call.func.attr in HARMLESS_METHODS:
            return False  # a method of its own (read where it stands), of super(), or of a list of layers
    return depends


def _layer_dependence(source: Source, call: ast.Call, kind: str) -> bool | None:
    """Whether the layer that `call` builds computes differently in train and eval mode; None if unknown."""
    tail = kind.rpartition(".")[2]
    if kind in BATCH_NORMS:
        return source.constant(source.argument(call, "track_running_stats"), default=True) is not False
    if kind in DROPOUTS:
        return _positive(source, call, "p", 0, 0.5)
    if kind in INSTANCE_NORMS:
        return source.constant(source.argument(call, "track_running_stats", 4)) is True
    if kind in RECURRENT:
        return _positive(source, call, "dropout", 6 if kind == "torch.nn.RNN" else 5, 0.0)
    if kind in ATTENTION:
        return _positive(source, call, "dropout", 2, 0.0)
    if kind in TRANSFORMERS:
        return (
            None if tail in ("TransformerEncoder", "TransformerDecoder") else _positive(source, call, "dropout", 3, 0.1)
        )
    if kind == "torch.nn.RReLU":
        return True
    if kind.startswith("torch.nn.") or kind in ACTIVATIONS | CONTAINERS:
        return False
    names = source.resolve(call.func)
    if any(name.startswith(("timm.layers.DropPath", "timm.models.layers.DropPath")) for name in names):
        return True
    harmless = ("torch.", "math.", "numpy.", "functools.partial")
    builtin = isinstance(call.func, ast.Name) and call.func.id in BUILTINS
    return False if builtin or (names and all(name.startswith(harmless) for name in names)) else None


def _positive(source: Source, call: ast.Call, name: str, position: int, default: float) -> bool | None:
    """Whether a rate is above zero: True for a known positive one, False for zero, None if it cannot be known."""
    argument = source.argument(call, name, position)
    value = default if argument is None else source.constant(argument)
    return value > 0 if isinstance(value, (int, float)) else None


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


# Library models without BatchNorm, by the beginning of their names.
_WITHOUT_BATCH_NORM = re.compile(r"(?i)alexnet|squeezenet|vgg\d+$|vit|swin|convnext|maxvit|deit|beit|mixer")


def holds_batch_norm(source: Source, built: ast.Call | ModuleClass | None, seen: frozenset[str] = frozenset()) -> bool:
    """Whether what a call builds, or a class builds without condition, surely holds a BatchNorm with statistics."""
    if isinstance(built, ast.Call):
        kind = source.layer_kind(built)
        local = source.module_class(kind) if kind else None
        if local is not None:
            return holds_batch_norm(source, local, seen)
        if kind in BATCH_NORMS:
            return source.constant(source.argument(built, "track_running_stats"), default=True) is not False
        inside = [node for node in walk(built) if isinstance(node, ast.Call) and node is not built]
        return _library_batch_norm(source, built) or any(holds_batch_norm(source, node, seen) for node in inside)
    if built is None or built.name in seen:
        return False
    seen |= {built.name}
    for owner in (built, *built.ancestors):
        for call in (call for method in owner.methods.values() for call in source.constructions.get(method, ())):
            if holds_batch_norm(source, call, seen) and not _is_conditional(source, call, _method_of(source, call)):
                return True
        for attributes in owner.own_attributes.values():
            for item in attributes:
                library = [node for node in walk(item.value) if isinstance(node, ast.Call)]
                if not item.conditional and any(_library_batch_norm(source, node) for node in library):
                    return True
    return False


def _method_of(source: Source, call: ast.Call) -> Function:
    method = source.function_of(call)
    assert method is not None
    return method


def _library_batch_norm(source: Source, call: ast.Call) -> bool:
    names = source.resolve(call.func)
    if not builds_library_model(names):
        return False
    first = source.constant(source.argument(call, "model_name", 0))
    name = first if names == {"timm.create_model"} else next(iter(names)).rpartition(".")[2]
    depends = library_dependence(names, first)
    return bool(depends) and isinstance(name, str) and not _WITHOUT_BATCH_NORM.search(name)


def _attribute_depends(source: Source, facts: ModuleClass, name: str) -> bool:
    for attribute in facts.attributes[name]:
        for node in walk(attribute.value):
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
