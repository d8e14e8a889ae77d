"""Train or eval: the mode that each model of a file can be in wherever it is called.

An abstract interpretation of the statements of every function, method and of the module level. Its values are *objects*
(a model built at one place, an instance of a class of the file, a place such as parameter `model` or `self.net` that
holds whatever it held when the function was entered), its facts the modes each of them may be in and what set them.
Branches join, loops are repeated until nothing changes, a function of the file is summarised once (what it does to the
modes of its arguments, of `self.*` and of outer variables, and which models it calls) and the summary is applied at
each call. An object handed to code that is not seen has an unknown mode from there on; so has everything it contains.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from auditor.static.classes import ModuleClass
from auditor.static.modes import libraries
from auditor.static.modes.dependence import (
    class_dependence,
    construction_dependence,
    method_dependence,
)
from auditor.static.modes.linked import ClassFacts, FunctionFacts, linked, may_build
from auditor.static.modes.objects import (
    DEPTH,
    FUNCTIONS,
    SCOPES,
    Built,
    Function,
    Kind,
    ModelCall,
    Object,
    Place,
    Scope,
    Summary,
    arguments,
    tail_of,
)
from auditor.static.modes.statements import Interpreter
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.source import Source

_ANALYSES: WeakKeyDictionary[Source, ModeAnalysis] = WeakKeyDictionary()


_SAME = Kind(module=False, depends=None)


def modes_of(source: Source) -> ModeAnalysis:
    """The analysis of `source`, made once."""
    if source not in _ANALYSES:
        _ANALYSES[source] = ModeAnalysis(source)
    return _ANALYSES[source]


class ModeAnalysis:
    """The modes of one file's models."""

    def __init__(self, source: Source) -> None:
        # Weak: the cache above must not keep the source it is keyed by alive.
        self._source = ref(source)
        self._summaries: dict[Scope, Summary | None] = {}
        self._locals: dict[Scope, frozenset[str]] = {}
        self._kinds: dict[ast.expr, Kind] = {}
        self._linked: dict[ast.Call, ClassFacts | FunctionFacts | None] = {}
        self._classes: dict[ast.ClassDef, ModuleClass] = {}
        self._dependence: dict[ast.ClassDef, bool | None] = {}

    @property
    def source(self) -> Source:
        source = self._source()
        assert source is not None
        return source

    @cached_property
    def calls(self) -> list[ModelCall]:
        """The calls of models, as seen from the module level, from every function, and from every method of a class
        that is no module, in document order."""
        scopes: list[Scope] = [self.source.tree.root]
        for function in self.source.tree.all(ast.FunctionDef) + self.source.tree.all(ast.AsyncFunctionDef):
            owner = self.source.tree.parent(function)
            if not (isinstance(owner, ast.ClassDef) and self.source.module_class(owner)):
                scopes.append(function)
        found = [call for scope in scopes if (summary := self.summary(scope)) for call in summary.calls]
        return sorted(found, key=lambda call: (call.position.lineno, call.position.col_offset, call.call.lineno))

    def summary(self, scope: Scope) -> Summary | None:
        """What `scope` does; None while it is being found out (a recursive call)."""
        if scope not in self._summaries:
            self._summaries[scope] = None
            self._summaries[scope] = Interpreter(self, scope).run()
        return self._summaries[scope]

    # Names ---------------------------------------------------------------------------------------------------------

    @cached_property
    def switched(self) -> frozenset[str]:
        """The last names of what `train()` or `eval()` is called on somewhere in the file."""
        calls = self.source.calls_named("train", "eval")
        receivers = [call.func.value for call in calls if isinstance(call.func, ast.Attribute) and not call.args]
        return frozenset(tail_of(receiver) for receiver in receivers) - {""}

    @cached_property
    def active(self) -> set[ast.AST]:
        """The nodes that contain a call."""
        parents = self.source.tree.parents
        found: set[ast.AST] = set()
        for call in self.source.tree.all(ast.Call):
            node: ast.AST | None = call
            while node is not None and node not in found:
                found.add(node)
                node = parents.get(node)
        return found

    def locals(self, scope: Scope) -> frozenset[str]:
        """The names that `scope` binds itself."""
        if scope not in self._locals:
            bound: set[str] = set()
            outer: set[str] = set()
            for node in walk_scope(scope):
                if isinstance(node, ast.Name):
                    if not isinstance(node.ctx, ast.Load):
                        bound.add(node.id)
                elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                    bound.add(node.name)
                elif isinstance(node, ast.arg):
                    pass
                elif isinstance(node, (ast.Global, ast.Nonlocal)):
                    outer.update(node.names)
            if not isinstance(scope, ast.Module):
                bound.update(argument.arg for argument in arguments(scope))
            self._locals[scope] = frozenset(bound - outer)
        return self._locals[scope]

    def scope_of(self, scope: Scope, name: str) -> Scope | None:
        """The scope whose variable `name` is inside `scope`."""
        current: ast.AST | None = scope
        while current is not None:
            if isinstance(current, SCOPES) and name in self.locals(current):
                return current
            current = self.source.tree.parent(current)
        return None

    @cached_property
    def _definitions(self) -> dict[tuple[ast.AST, str], list[ast.AST]]:
        found: dict[tuple[ast.AST, str], list[ast.AST]] = {}
        for node in self.source.tree.all(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            above = self.source.tree.parent(node)
            while above is not None and not isinstance(above, (*SCOPES, ast.ClassDef)):
                above = self.source.tree.parent(above)
            if above is not None:
                found.setdefault((above, node.name), []).append(node)  # type: ignore[attr-defined]
        return found

    def definition(self, scope: Scope, name: str) -> ast.AST | None:
        """The one function or class of this file that `name` stands for inside `scope`."""
        home = self.scope_of(scope, name)
        found = self._definitions.get((home, name), []) if home is not None else []
        if len(found) != 1 or any(self.source.function_of(store) is home for store in self.source.names.stores(name)):
            return None
        return found[0]

    # Classes and kinds ---------------------------------------------------------------------------------------------

    def class_facts(self, node: ast.ClassDef) -> ModuleClass:
        """Facts about any class of the file, module or not."""
        facts = self.source.module_class(node) or self._classes.get(node)
        if facts is None:
            facts = self._classes[node] = ModuleClass(self.source, node)
        return facts

    def class_named(self, name: str) -> ast.ClassDef | None:
        definition = self.definition(self.source.tree.root, name)
        return definition if isinstance(definition, ast.ClassDef) else None

    def method(self, node: ast.ClassDef, name: str, depth: int = DEPTH) -> Function | None:
        """The method `name` of a class, its own or inherited inside the file."""
        facts = self.class_facts(node)
        if name in facts.methods:
            return facts.methods[name]
        for names in facts.bases:
            for base in sorted(names):
                parent = self.class_named(base)
                if parent is not None and parent is not node and depth:
                    found = self.method(parent, name, depth - 1)
                    if found is not None:
                        return found
        return None

    def kind(self, model: Object) -> Kind:
        """What is known of what `model` is."""
        if isinstance(model, Built):
            return self._kinds.get(model.node, Kind(module=False))
        if isinstance(model, Place) and not model.opaque:
            return self._place_kind(model)
        return Kind(module=False)

    def dependence(self, model: Object, method: str = "") -> bool | None:
        """Whether a call of `model`, or of one of its methods, depends on its mode."""
        kind = self.kind(model)
        facts = self.source.module_class(kind.node) if kind.node is not None else None
        if not method:
            return kind.depends
        return method_dependence(self.source, facts, method) if facts is not None else None

    def built_by(self, model: Object) -> ModuleClass | ast.Call | None:
        """The class of the file that `model` is an instance of, or the call that built it."""
        kind = self.kind(model)
        facts = self.source.module_class(kind.node) if kind.node is not None else None
        if facts is None and isinstance(model, Built) and isinstance(model.node, ast.Call) and kind.module:
            return model.node
        return facts

    def remember(self, node: ast.expr, kind: Kind) -> None:
        self._kinds[node] = kind

    def _place_kind(self, place: Place) -> Kind:
        owner = place.owner
        if owner is None:
            return self._parameter_kind(place)
        holder = self.kind(owner).node
        if holder is None:
            return Kind(module=False)
        facts = self.class_facts(holder)
        values = [attribute.value for attribute in facts.attributes.get(place.attributes[-1], [])]
        if facts.has_unseen_base and not values:
            return Kind(module=False)
        return self.common_kind([self.construction_kind(value) for value in values if not is_none(value)])

    def _parameter_kind(self, place: Place) -> Kind:
        function = place.scope
        if isinstance(function, ast.Module):
            return self._global_kind(place.name)
        if not isinstance(function, FUNCTIONS):
            return Kind(module=False)
        owner = self.source.tree.parent(function)
        parameters = arguments(function)
        if isinstance(owner, ast.ClassDef) and parameters and parameters[0].arg == place.name:
            return Kind(self.source.module_class(owner) is not None, None, owner)
        annotation = next((argument.annotation for argument in parameters if argument.arg == place.name), None)
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            found = self.class_named(annotation.value)
        else:
            found = self.class_named(annotation.id) if isinstance(annotation, ast.Name) else None
        return self.class_kind(found) if found is not None else Kind(module=False)

    def _global_kind(self, name: str) -> Kind:
        """What a variable of the module level holds, by what it is assigned there."""
        values = []
        for store in self.source.names.stores(name):
            if self.source.function_of(store) is None:
                value = self._value_of(store)
                values.append(Kind(module=False) if value is None else self.construction_kind(value, name))
        known = [kind for kind in values if kind is not _SAME]
        return self.common_kind(known)

    def _value_of(self, store: ast.Name) -> ast.expr | None:
        """The expression that an assignment binds to the variable `store`."""
        parent = self.source.tree.parent(store)
        if isinstance(parent, ast.Assign) and store in parent.targets:
            return parent.value
        statement = self.source.tree.parent(parent) if parent is not None else None
        if isinstance(parent, ast.Tuple) and isinstance(statement, ast.Assign):
            pairs = _pairs(parent, statement.value)
            return next((value for target, value in pairs if target is store), None)
        return None

    def class_kind(self, node: ast.ClassDef) -> Kind:
        """The kind of an instance of a class of the file."""
        facts = self.source.module_class(node)
        return Kind(facts is not None, self._class_dependence(facts) if facts else None, node)

    def _class_dependence(self, facts: ModuleClass) -> bool | None:
        if facts.node not in self._dependence:
            self._dependence[facts.node] = class_dependence(self.source, facts)
        return self._dependence[facts.node]

    def common_kind(self, kinds: Sequence[Kind]) -> Kind:
        """What holds for all of several kinds."""
        if not kinds:
            return Kind(module=False)
        depends = {kind.depends for kind in kinds}
        nodes = {kind.node for kind in kinds}
        return Kind(
            all(kind.module for kind in kinds),
            depends.pop() if len(depends) == 1 else None,
            nodes.pop() if len(nodes) == 1 else None,
        )

    def construction_kind(self, value: ast.expr, name: str = "") -> Kind:
        """What the expression `value` builds, wrappers and `.to(device)` looked through; `_SAME` if that is the
        variable `name` itself (`model = model.to(device)`)."""
        while isinstance(value, ast.Call):
            names, tail = self.source.resolve(value.func), tail_of(value.func)
            if value.args and libraries.is_wrapper(names, tail):
                value = value.args[0]
            elif isinstance(value.func, ast.Attribute) and tail in libraries.CHAINING | {"train", "eval"} and not names:
                value = value.func.value
            else:
                return self.call_kind(value)
        return _SAME if isinstance(value, ast.Name) and value.id == name else Kind(module=False)

    def call_kind(self, call: ast.Call) -> Kind:
        """What a call builds, if it is a construction."""
        if call not in self._kinds:
            self._kinds[call] = self._call_kind(call)
        return self._kinds[call]

    def _call_kind(self, call: ast.Call) -> Kind:
        names = self.source.resolve(call.func)
        if libraries.builds_library_model(names):
            first = self.source.argument(call, "model_name", 0)
            return Kind(True, libraries.library_dependence(names, self.source.constant(first)))
        if isinstance(call.func, ast.Name):
            definition = self.definition(self.source.function_of(call) or self.source.tree.root, call.func.id)
            if isinstance(definition, ast.ClassDef):
                return self.class_kind(definition)
        if self.source.layer_kind(call).startswith("torch.nn."):
            return Kind(True, self._layer_dependence(call))
        known = self.linked(call) if may_build(call) else None
        built = known.returns if isinstance(known, FunctionFacts) else known
        return Kind(True, built.depends) if built is not None and built.module else Kind(module=False)

    def linked(self, call: ast.Call) -> ClassFacts | FunctionFacts | None:
        """What is known of the class or function of another file that is called."""
        if call not in self._linked:
            self._linked[call] = linked(self.source, call.func)
        return self._linked[call]

    def _layer_dependence(self, call: ast.Call) -> bool | None:
        """Whether a layer of torch depends on its mode, or one of those written inside its arguments does."""
        unknown = False
        for node in walk(call):
            if isinstance(node, ast.Call):
                depends = construction_dependence(self.source, node)
                if depends:
                    return True
                unknown = unknown or depends is None
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                unknown = unknown or not self.source.resolve(node)
        return None if unknown else False


def is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _pairs(target: ast.Tuple, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """The single assignments of `a, b = x, y`."""
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return []
