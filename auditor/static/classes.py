"""Facts about one class: whether it is an nn.Module, what its attributes hold, what depends on its mode."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.layers import MODULE_BASES
from auditor.static.project import Definition, imported, project
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.source import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith, ast.IfExp)


class Attribute(NamedTuple):
    """One `self.name = value` of a class. `conditional`: inside a branch or a loop, so that it may not happen."""

    name: str
    value: ast.expr
    statement: ast.stmt
    method: Function
    conditional: bool


class ModuleClass:
    """One class of a file (all classes get one; `is_module` says which of them are nn.Modules)."""

    def __init__(self, source: Source, node: ast.ClassDef) -> None:
        self.source = source
        self.node = node
        self.name = node.name
        self.bases = [source.resolve(base) for base in node.bases]
        self.methods: dict[str, Function] = {
            statement.name: statement
            for statement in node.body
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef))
        }

    @property
    def forward(self) -> Function | None:
        return self.methods.get("forward")

    def spans(self, node: ast.expr | ast.stmt) -> bool:
        """Whether `node` stands in the class."""
        return self.node.lineno <= node.lineno <= (self.node.end_lineno or 0)

    def is_module(
        self, classes: Mapping[ast.ClassDef, ModuleClass], depth: int = 10, look_further: bool = False
    ) -> bool:
        """Whether this is an nn.Module: a base is torch's or another such class of the file, or (a base imported from
        elsewhere) it has a `forward(self, …)` and calls `super().__init__`, as only modules do.

        Other files of the project are read for classes with a `forward`, in which there is something to check, for
        those that they inherit from, and where `look_further` asks for it.
        """
        look_further = look_further or self.forward is not None
        for names in self.bases:
            for name in names:
                if _is_module_name(name):
                    return True
                parent = next((facts for facts in classes.values() if facts.name == name), None)
                known = parent is not None and parent is not self and depth > 0
                if known and parent.is_module(classes, depth - 1, look_further):  # type: ignore[union-attr]
                    return True
        return bool(self.node.bases) and (self._looks_like_one() or (look_further and self._inherits_one()))

    def _inherits_one(self) -> bool:
        """Whether a base is a module class of another file of the project."""
        found = (found for names in self.bases for found in imported(self.source, sorted(names)))
        return any(project().ask(_is_module, item) for item in found)

    def _looks_like_one(self) -> bool:
        forward = self.forward
        if forward is None or not forward.args.args or forward.args.args[0].arg != "self":
            return False
        names = {name for names in self.bases for name in names}
        if names & {"torch.autograd.Function", "torch.autograd.function.Function"}:
            return False
        start = self.methods.get("__init__")
        return start is not None and any(
            isinstance(node, ast.Attribute) and node.attr == "__init__" for node in walk_scope(start)
        )

    @cached_property
    def ancestors(self) -> list[ModuleClass]:
        """The module classes of this file that this one inherits from, nearest first."""
        found: list[ModuleClass] = []
        todo = [name for names in self.bases for name in sorted(names)]
        while todo:
            parent = self.source.module_class(todo.pop(0))
            if parent is not None and parent is not self and parent not in found:
                found.append(parent)
                todo += [name for names in parent.bases for name in sorted(names)]
        return found

    @property
    def has_unseen_base(self) -> bool:
        return has_unseen_base(self.source, self.node)

    def method(self, name: str) -> Function | None:
        """The method that a call of `self.name` reaches, also an inherited one of this file."""
        for facts in (self, *self.ancestors):
            if name in facts.methods:
                return facts.methods[name]
        return None

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """Class attributes."""
        found: dict[str, ast.expr] = {}
        for statement in self.node.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                found[statement.targets[0].id] = statement.value
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                found[statement.target.id] = statement.value
        return found

    @cached_property
    def own_attributes(self) -> dict[str, list[Attribute]]:
        """What each `self.name` is assigned in this class, in document order, also by `add_module` and `setattr`."""
        found: dict[str, list[Attribute]] = {}
        for method in self.methods.values():
            for node in self.source.self_writes.get(method, ()):
                for name, value in _assigned(node):
                    statement = self.source.statement_of(node)
                    attribute = Attribute(name, value, statement, method, self._is_conditional(node, method))
                    found.setdefault(name, []).append(attribute)
        return found

    @cached_property
    def attributes(self) -> dict[str, list[Attribute]]:
        """`own_attributes`, with those of the file's classes it inherits from where it does not set them itself."""
        found = dict(self.own_attributes)
        for parent in self.ancestors:
            for name, assigned in parent.own_attributes.items():
                found.setdefault(name, assigned)
        return found

    def _is_conditional(self, node: ast.AST, method: Function) -> bool:
        for above in self.source.tree.ancestors(node):
            if above is method:
                return False
            if isinstance(above, _BRANCHES):
                return True
        return False

    def layers(self, name: str) -> list[ast.Call]:
        """The layer constructions that `self.name` may hold, those inside Sequential, ModuleList, ModuleDict,
        comprehensions and conditional expressions included (the containers too)."""
        found: list[ast.Call] = []
        for attribute in self.attributes.get(name, []):
            found += self.constructions(attribute.value)
        return found

    def constructions(self, value: ast.AST) -> list[ast.Call]:
        """All layer constructions inside the expression `value`."""
        inner = [node for node in walk(value) if isinstance(node, ast.Call)]
        return [call for call in inner if self.source.layer_kind(call)]

    @cached_property
    def reads_training(self) -> bool:
        """Whether a method of its own looks at `self.training`."""
        return any(
            isinstance(node, ast.Attribute)
            and node.attr == "training"
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and isinstance(node.ctx, ast.Load)
            for method in self.methods.values()
            for node in walk_scope(method)
        )


def _is_module(source: Source, node: Definition) -> bool:
    return isinstance(node, ast.ClassDef) and source.classes[node].is_module(source.classes, look_further=True)


_HARMLESS_BASES = frozenset({"object", "abc.ABC", "typing.Generic", "typing.Protocol"})


def has_unseen_base(source: Source, node: ast.ClassDef, depth: int = 10) -> bool:
    """Whether a class inherits from something that neither this file nor torch.nn nor Python itself defines."""
    for base in node.bases:
        if is_unseen(source, node, base):
            return True
        parents = _parents(source, node, base)
        if depth and any(has_unseen_base(source, parent, depth - 1) for parent in parents):
            return True
    return False


def is_unseen(source: Source, node: ast.ClassDef, base: ast.expr) -> bool:
    """Whether a base of a class is defined neither in this file nor by torch.nn nor by Python itself."""
    known = {parent.name for parent in _parents(source, node, base)} | {node.name}
    return any(
        name not in known and name not in _HARMLESS_BASES and not name.startswith("torch.nn.")
        for name in _base_names(source, base)
    )


def _parents(source: Source, node: ast.ClassDef, base: ast.expr) -> list[ast.ClassDef]:
    """The classes of this file that a base of a class may be."""
    found = [item for name in sorted(_base_names(source, base)) for item in source.names.definitions.get(name, [])]
    return [item for item in found if isinstance(item, ast.ClassDef) and item is not node]


def _base_names(source: Source, base: ast.expr) -> frozenset[str]:
    plain = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
    return source.resolve(plain) or frozenset([plain.id] if isinstance(plain, ast.Name) else [""])


def _is_module_name(name: str) -> bool:
    if name in MODULE_BASES:
        return True
    tail = name.rpartition(".")[2]
    return (
        name.startswith("torch.nn.") and tail[:1].isupper() and not name.startswith(("torch.nn.utils", "torch.nn.init"))
    )


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The attributes of `self` that a statement or call sets, with their values."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                yield from _targets(target, value)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield from _targets(target, value)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="self"), attr="add_module" | "register_module"),
            args=[ast.Constant(value=str() as name), value, *_],
        ):
            yield name, value
        case ast.Call(
            func=ast.Name(id="setattr"), args=[ast.Name(id="self"), ast.Constant(value=str() as name), value, *_]
        ):
            yield name, value


def _targets(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match target:
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            yield attr, value
        case ast.Tuple(elts=targets) if isinstance(value, ast.Tuple) and len(value.elts) == len(targets):
            for inner, inner_value in zip(targets, value.elts, strict=True):
                yield from _targets(inner, inner_value)
