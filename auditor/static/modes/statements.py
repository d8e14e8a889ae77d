"""Statements and expressions of one function, run over states of objects.py. See analysis.py for the whole."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from auditor.static.modes import libraries
from auditor.static.modes.calls import CallVisit
from auditor.static.modes.objects import (
    DEPTH,
    EVAL,
    NOT_KNOWN,
    NOTHING,
    TRAIN,
    UNKNOWN,
    Built,
    Chain,
    ModelCall,
    Modes,
    Object,
    Objects,
    Part,
    Place,
    Saved,
    Scope,
    Setting,
    State,
    Summary,
    arguments,
    field_before,
    join,
    order,
    tail_of,
)

if TYPE_CHECKING:
    from auditor.static.modes.analysis import ModeAnalysis

_PASSES = 3  # over a loop's body: first iteration, second iteration, and what that one adds
_CALLS = 96  # model calls that one function's summary holds at most
_UNROLL = 8  # elements of a literal list that a loop is run over one by one


class Interpreter:
    """Runs one scope's statements over states."""

    def __init__(self, analysis: ModeAnalysis, scope: Scope) -> None:
        self.analysis = analysis
        self.source = analysis.source
        self.scope = scope
        self.locals = analysis.locals(scope)
        self.active = analysis.active
        self.outside_models = self.source.method_of(scope) is None and not self._is_module_method(scope)
        self.loops: list[tuple[list[State], list[State]]] = []
        self.exits: list[State] = []
        self.returned: Objects = NOTHING
        self.calls: dict[tuple[ast.Call, Object, Chain], ModelCall] = {}

    def _is_module_method(self, scope: Scope) -> bool:
        owner = self.source.tree.parent(scope)
        return isinstance(owner, ast.ClassDef) and self.source.module_class(owner) is not None

    def run(self) -> Summary:
        state = State({}, {}, {})
        if not isinstance(self.scope, ast.Module):
            for argument in arguments(self.scope):
                state.names[argument.arg] = frozenset({Place(self.scope, argument.arg)})
        end = self.block(self.scope.body, state)
        for other in self.exits:
            end = other.joined(end)
        return Summary(end, self.returned, list(self.calls.values()))

    # Statements ----------------------------------------------------------------------------------------------------

    def block(self, statements: Sequence[ast.stmt], state: State | None) -> State | None:
        """The state after `statements`; None if they never end (return, raise, break)."""
        for statement in statements:
            if state is None:
                return None
            state = self.statement(statement, state)
        return state

    def statement(self, node: ast.stmt, state: State) -> State | None:
        match node:
            case ast.Expr(value=value):
                if node in self.active:
                    self.value(value, state)
            case ast.Assign(targets=targets, value=value):
                self.assignment(targets, value, state)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.assignment([target], value, state)
            case ast.If():
                return self.branch(node, state)
            case ast.For() | ast.AsyncFor():
                return self.for_loop(node, state)
            case ast.While():
                self.visit(node.test, state)
                endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
                return self.loop(node.body, node.orelse, state, at_least_once=endless, endless=endless)
            case ast.With() | ast.AsyncWith():
                return self.with_block(node, state)
            case ast.Try() | ast.TryStar():
                return self.try_block(node, state)
            case ast.Match():
                return self.match(node, state)
            case ast.Return():
                if node.value is not None:
                    self.returned |= self.value(node.value, state)
                self.exits.append(state)
                return None
            case ast.Raise():
                return None
            case ast.Break():
                if self.loops:
                    self.loops[-1][0].append(state)
                return None
            case ast.Continue():
                if self.loops:
                    self.loops[-1][1].append(state)
                return None
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return state
            case _:
                self.visit(node, state)
        return state

    def assignment(self, targets: Sequence[ast.expr], value: ast.expr, state: State) -> None:
        for target in targets:
            sequences = (ast.Tuple, ast.List)
            pairwise = isinstance(target, sequences) and isinstance(value, sequences)
            if pairwise and len(target.elts) == len(value.elts):  # type: ignore[attr-defined]
                objects = [self.value(element, state) for element in value.elts]  # type: ignore[attr-defined]
                for element, held in zip(target.elts, objects, strict=True):  # type: ignore[attr-defined]
                    self.bind(element, held, state)
            else:
                self.bind(target, self.value(value, state), state)

    def bind(self, target: ast.expr, objects: Objects, state: State) -> None:
        match target:
            case ast.Name(id=name):
                state.names[self.key(name)] = objects
            case ast.Attribute(value=owner, attr="training"):
                self.forget(self.value(owner, state), state, target)
            case ast.Attribute(value=owner, attr=name):
                self.store(self.value(owner, state), name, objects, state)
            case ast.Subscript(value=owner, slice=index):
                name = str(index.value) if isinstance(index, ast.Constant) else "*"
                self.store(self.value(owner, state), name, objects, state)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for position, element in enumerate(elements):
                    if isinstance(element, ast.Starred):
                        self.bind(element.value, NOTHING, state)
                    else:
                        self.bind(element, self.children(objects, str(position), state), state)

    def store(self, owners: Objects, name: str, objects: Objects, state: State) -> None:
        for owner in sorted(owners, key=order):
            key = (owner, name)
            if objects or key in state.fields:
                strong = len(owners) == 1 and name != "*"
                state.fields[key] = objects if strong else objects | state.fields.get(key, field_before(key))

    def key(self, name: str) -> str | Place:
        """Under what a variable is kept: a local by its name, an outer one by its place."""
        if name in self.locals:
            return name
        home = self.analysis.scope_of(self.scope, name)
        return Place(home, name) if home is not None else name

    def branch(self, node: ast.If, state: State) -> State | None:
        saved = self.saved_test(node.test, state)
        if saved is not None:
            return self.restore(node, saved, state)
        self.visit(node.test, state)
        if _is_main_guard(node.test):
            return self.block(node.body, state)
        if isinstance(node.test, ast.Constant):
            return self.block(node.body if node.test.value else node.orelse, state)
        other = self.block(node.orelse, state.copy())
        return join(self.block(node.body, state), other)

    def saved_test(self, test: ast.expr, state: State) -> list[Saved] | None:
        """The saved modes that a test looks at (`if was_training:`, `if not model.training:`)."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test = test.operand
        if isinstance(test, (ast.Name, ast.Attribute)):
            found = [held for held in self.value(test, state) if isinstance(held, Saved)]
            return found or None
        return None

    def restore(self, node: ast.If, saved: Sequence[Saved], state: State) -> State | None:
        """A branch on a saved mode: where it sets the model's mode, it gives it back."""
        before = {item.whole: state.mode(item.whole) for item in saved}
        other = self.block(node.orelse, state.copy())
        taken = self.block(node.body, state)
        after = join(taken, other)
        if after is not None and taken is not None:
            for item in saved:
                if taken.mode(item.whole) != before[item.whole]:
                    self.set_mode(item.whole, item.modes, after)
        return after

    def for_loop(self, node: ast.For | ast.AsyncFor, state: State) -> State | None:
        objects = self.value(node.iter, state)
        elements = self.elements(objects, state)
        if elements is not None:
            self.loops.append(([], []))
            current: State | None = state
            for element in elements:
                if current is not None:
                    self.bind(node.target, element, current)
                    current = self.block(node.body, current)
                _, continues = self.loops[-1]
                while continues:
                    current = join(continues.pop(), current)
            for other in self.loops.pop()[0]:
                current = join(other, current)
            return self.block(node.orelse, current)
        self.bind(node.target, self.children(objects, "*", state), state)
        return self.loop(node.body, node.orelse, state, at_least_once=True)

    def elements(self, objects: Objects, state: State) -> list[Objects] | None:
        """The elements of a literal list or tuple of models."""
        if len(objects) != 1:
            return None
        (held,) = objects
        if not (isinstance(held, Built) and isinstance(held.node, (ast.Tuple, ast.List))):
            return None
        if not 0 < len(held.node.elts) <= _UNROLL:
            return None
        found = [state.fields.get((held, str(index)), NOTHING) for index in range(len(held.node.elts))]
        return found if any(found) else None

    def loop(
        self,
        body: Sequence[ast.stmt],
        orelse: Sequence[ast.stmt],
        state: State,
        at_least_once: bool = False,
        endless: bool = False,
    ) -> State | None:
        """Repeats `body` until the state at its start no longer changes.

        A `for` loop is taken to run at least once: one that never runs trains and evaluates nothing.
        """
        start, end = state, None
        breaks: list[State] = []
        for _ in range(_PASSES):
            self.loops.append(([], []))
            end = self.block(body, start.copy())
            breaks, continues = self.loops.pop()
            for other in continues:
                end = join(other, end)
            after = start.joined(end)
            if after == start:
                break
            start = after
        leaving = None if endless else end if at_least_once and end is not None else start
        leaving = self.block(orelse, leaving)
        for other in breaks:
            leaving = join(other, leaving)
        return leaving

    def with_block(self, node: ast.With | ast.AsyncWith, state: State) -> State | None:
        """Inside a context manager that was given a model its mode is unknown; after it, it is what it was before if
        the manager's name says so or this file defines it."""
        given_back: dict[Object, Modes] = {}
        for item in node.items:
            call = item.context_expr
            before = dict(state.modes)
            given, receivers = self.context_objects(call, state)
            modes = {held: state.mode(held) for held in (*given, *receivers)}
            objects = self.value(call, state)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, objects, state)
            changed = [held for held in receivers if state.mode(held) != modes[held]] + given
            if changed and isinstance(call, ast.Call) and self.gives_back(call):
                given_back.update({held: modes[held] for held in changed})
                given_back.update({held: old for held, old in before.items() if state.modes.get(held) != old})
            self.forget(changed, state, call)
        end = self.block(node.body, state)
        if end is not None:
            end.modes.update(given_back)
        return end

    def context_objects(self, call: ast.expr, state: State) -> tuple[list[Object], list[Object]]:
        """What a context manager is given, and what it is a method of."""
        if not isinstance(call, ast.Call):
            return [], []
        names, tail = self.source.resolve(call.func), tail_of(call.func)
        if tail in libraries.HARMLESS_METHODS or (names and all(name.startswith("torch.") for name in names)):
            return [], []
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        receiver = [call.func.value] if isinstance(call.func, ast.Attribute) else []
        return self.held(arguments, state), self.held(receiver, state)

    def held(self, expressions: Iterable[ast.expr], state: State) -> list[Object]:
        """The objects that variables and attributes among `expressions` hold."""
        named = [item for item in expressions if isinstance(item, (ast.Name, ast.Attribute))]
        return sorted({held for item in named for held in self.value(item, state)}, key=order)

    def gives_back(self, call: ast.Call) -> bool:
        """Whether a context manager undoes its changes of mode."""
        defined = isinstance(call.func, ast.Name) and self.analysis.definition(self.scope, call.func.id) is not None
        return defined or _names_scope(tail_of(call.func))

    def try_block(self, node: ast.Try | ast.TryStar, state: State) -> State | None:
        before, left = state.copy(), len(self.exits)
        end = self.block(node.body, state)
        reached = before.joined(end)
        after = self.block(node.orelse, end)
        for handler in node.handlers:
            after = join(self.block(handler.body, reached.copy()), after)
        if node.finalbody:
            early = self.exits[left:]
            del self.exits[left:]
            for exit_state in early:
                final = self.block(node.finalbody, exit_state)
                if final is not None:
                    self.exits.append(final)
            after = self.block(node.finalbody, after)
        return after

    def match(self, node: ast.Match, state: State) -> State | None:
        self.visit(node.subject, state)
        after: State | None = state
        for case in node.cases:
            after = join(self.block(case.body, state.copy()), after)
        return after

    # Expressions ---------------------------------------------------------------------------------------------------

    def visit(self, node: ast.AST, state: State) -> None:
        """The effects of the calls inside `node`."""
        if node in self.active:
            if isinstance(node, ast.expr):
                self.value(node, state)
            else:
                for child in ast.iter_child_nodes(node):
                    self.visit(child, state)

    def value(self, node: ast.expr, state: State) -> Objects:
        """The objects `node` can be; evaluates the calls inside it."""
        match node:
            case ast.Name(id=name):
                return self.name(name, state)
            case ast.Attribute(value=owner, attr=attribute):
                return self.attribute(self.value(owner, state), attribute, state)
            case ast.Call():
                return CallVisit(self, node, state).value()
            case ast.Constant():
                return NOTHING
            case ast.Subscript(value=owner, slice=index):
                self.visit(index, state)
                name = str(index.value) if isinstance(index, ast.Constant) else "*"
                return self.children(self.value(owner, state), name, state)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return self.container(node, [(str(i), element) for i, element in enumerate(elements)], state)
            case ast.Dict(keys=keys, values=values):
                pairs = [
                    (str(k.value) if isinstance(k, ast.Constant) else "*", v) for k, v in zip(keys, values, strict=True)
                ]
                return self.container(node, pairs, state)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.visit(test, state)
                return self.value(body, state) | self.value(orelse, state)
            case ast.BoolOp(values=values):
                found = [self.value(value, state) for value in values]
                return frozenset().union(*found)
            case ast.NamedExpr(target=target, value=value):
                objects = self.value(value, state)
                self.bind(target, objects, state)
                return objects
            case ast.Await(value=value) | ast.Starred(value=value):
                return self.value(value, state)
            case ast.Lambda():
                return NOTHING
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehension(node, state)
        if node in self.active:
            for child in ast.iter_child_nodes(node):
                self.visit(child, state)
        return NOTHING

    def comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, state: State
    ) -> Objects:
        if node not in self.active:
            return NOTHING
        for generator in node.generators:
            self.bind(generator.target, self.children(self.value(generator.iter, state), "*", state), state)
            for condition in generator.ifs:
                self.visit(condition, state)
        if isinstance(node, ast.DictComp):
            self.visit(node.key, state)
        held = self.value(node.value if isinstance(node, ast.DictComp) else node.elt, state)
        if not any(isinstance(item, Built) and self.analysis.kind(item).module for item in held):
            return NOTHING
        built = Built(node)
        state.fields[built, "*"] = held  # one object stands for all that are built
        return frozenset({built})

    def name(self, name: str, state: State) -> Objects:
        if name in self.locals:
            return state.names.get(name, NOTHING)
        home = self.analysis.scope_of(self.scope, name)
        if home is None:
            return NOTHING
        place = Place(home, name)
        return state.names.get(place) or frozenset({place})

    def attribute(self, owners: Objects, name: str, state: State) -> Objects:
        if name == "module":  # what DataParallel wraps
            return owners
        if name == "training":
            return frozenset(Saved(owner, state.mode(owner)) for owner in owners if isinstance(owner, (Place, Built)))
        return self.children(owners, name, state)

    def children(self, owners: Objects, name: str, state: State) -> Objects:
        if not owners:
            return NOTHING
        return frozenset().union(*(self.child(owner, name, state) for owner in owners))

    def child(self, owner: Object, name: str, state: State) -> Objects:
        held = state.fields.get((owner, name))
        if held is not None:
            return held
        if isinstance(owner, Place):
            return field_before((owner, name))
        if isinstance(owner, Part):
            return frozenset({owner})
        if isinstance(owner, Built) and self.analysis.kind(owner).module:
            return frozenset({Part(owner)})
        if isinstance(owner, Built):
            return state.fields.get((owner, "*"), NOTHING)  # one of those that a comprehension built
        return NOTHING

    def container(self, node: ast.expr, pairs: Sequence[tuple[str, ast.expr]], state: State) -> Objects:
        held = [(name, self.value(element, state)) for name, element in pairs]
        if not any(objects for _, objects in held):
            return NOTHING
        built = Built(node)
        for name, objects in held:
            state.fields[built, name] = objects
        return frozenset({built})

    # Modes ---------------------------------------------------------------------------------------------------------

    def set_mode(self, model: Object, modes: Modes, state: State, depth: int = DEPTH) -> None:
        """Puts `model` and all it contains in `modes`."""
        if isinstance(model, Saved):
            return
        switched = all(setting.mode in (TRAIN, EVAL) for setting in modes)
        if isinstance(model, Part):
            if switched:
                state.modes[model.whole] = state.mode(model.whole) | NOT_KNOWN
            return
        if isinstance(model, Place):
            self._below(model, state)
            if switched:
                self._mark_owners(model, state)
        elif switched and depth == DEPTH:
            self._mark_holders(model, state)
        state.modes[model] = modes
        if depth:
            for (owner, _), held in list(state.fields.items()):
                if owner == model:
                    for inner in held:
                        if isinstance(inner, (Place, Built)) and inner != model:
                            self.set_mode(inner, modes, state, depth - 1)

    def _below(self, place: Place, state: State) -> None:
        """What lies below a place now follows it."""
        depth = len(place.attributes)
        for other in list(state.modes):
            if isinstance(other, Place) and len(other.attributes) > depth:
                above = other._replace(attributes=other.attributes[:depth])
                if above == place:
                    del state.modes[other]

    def _mark_holders(self, part: Object, state: State) -> None:
        for (holder, _), held in state.fields.items():
            if part in held and isinstance(holder, Built) and self.analysis.kind(holder).module:
                state.modes[holder] = state.mode(holder) | NOT_KNOWN

    def _mark_owners(self, place: Place, state: State) -> None:
        """A model of which a part was switched is in neither mode as a whole."""
        owner = place.owner
        while owner is not None:
            kind = self.analysis.kind(owner)
            if kind.module or (kind.node is None and owner.owner is None):
                state.modes[owner] = state.mode(owner) | NOT_KNOWN
            owner = owner.owner

    def forget(self, objects: Iterable[Object], state: State, node: ast.AST) -> None:
        """At `node`, these objects went to code that is not seen."""
        unknown = frozenset({Setting(UNKNOWN, node)})
        for held in sorted(objects, key=order):
            if isinstance(held, (Place, Built)):
                self.set_mode(held, unknown, state)

    def record(self, call: ModelCall) -> None:
        known = self.calls.get(call.key)
        if known is not None:
            self.calls[call.key] = known._replace(modes=known.modes | call.modes)
        elif len(self.calls) < _CALLS:
            self.calls[call.key] = call


def _is_main_guard(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def _names_scope(tail: str) -> bool:
    """Whether a context manager's name says that it gives back what it changes."""
    return any(word in tail.lower() for word in ("eval", "train", "infer", "mode", "ema", "average", "grad", "freeze"))
