"""Calls, evaluated over states of objects.py: mode switches, constructions, functions of the file and others."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.static.classes import has_unseen_base
from auditor.static.modes import libraries
from auditor.static.modes.dependence import unknown_bases
from auditor.static.modes.linked import ClassFacts, FunctionFacts, may_build
from auditor.static.modes.objects import (
    DEPTH,
    ENTRY,
    EVAL,
    NOT_KNOWN,
    NOTHING,
    TRAIN,
    UNKNOWN,
    Built,
    Function,
    Kind,
    ModelCall,
    Modes,
    Object,
    Objects,
    Part,
    Place,
    Saved,
    Setting,
    State,
    Summary,
    order,
    tail_of,
)
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.modes.statements import Interpreter

_MODE_FUNCTIONS = frozenset({"torch.nn.Module.train", "torch.nn.Module.eval"})
_TRACERS = frozenset({"torch.jit.trace", "torch.jit.trace_module"})


class CallVisit:
    """One call expression, evaluated in a state."""

    def __init__(self, interpreter: Interpreter, node: ast.Call, state: State) -> None:
        self.interpreter = interpreter
        self.analysis = interpreter.analysis
        self.source = interpreter.source
        self.node = node
        self.state = state
        self.names = self.source.resolve(node.func)
        self.tail = tail_of(node.func)

    def value(self) -> Objects:
        node, state = self.node, self.state
        receiver = NOTHING
        if isinstance(node.func, ast.Attribute) and not self._is_library():
            receiver = self.interpreter.value(node.func.value, state)
        elif not isinstance(node.func, (ast.Name, ast.Attribute)):
            callee = self.interpreter.value(node.func, state)
            self.positional = [self.interpreter.value(argument, state) for argument in node.args]
            self.keywords = {k.arg or "**": self.interpreter.value(k.value, state) for k in node.keywords}
            return self._called(callee) if callee else self._unseen(NOTHING)
        self.positional = [self.interpreter.value(argument, state) for argument in node.args]
        self.keywords = {k.arg or "**": self.interpreter.value(k.value, state) for k in node.keywords}
        if isinstance(node.func, ast.Attribute) and not self._is_library():
            return self._method(receiver)
        return self._function()

    def _is_library(self) -> bool:
        """Whether the callee is reached through an import (`torch.load`, `F.relu`)."""
        if not self.names:
            return False
        root: ast.expr = self.node.func
        while isinstance(root, ast.Attribute):
            root = root.value
        return isinstance(root, ast.Name) and root.id in self.source.names.aliases

    @property
    def given(self) -> Objects:
        return frozenset().union(*self.positional, *self.keywords.values())

    # Plain functions and constructors ------------------------------------------------------------------------------

    def _function(self) -> Objects:
        func = self.node.func
        if isinstance(func, ast.Name):
            definition = self.analysis.definition(self.interpreter.scope, func.id)
            if isinstance(definition, ast.ClassDef):
                return self._construct(definition)
            if isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return self._apply(definition, None)
            if not self.names and func.id == "super":
                return self.interpreter.name("self", self.state)
            if not self.names and func.id not in libraries.BUILTINS:
                callee = self.interpreter.name(func.id, self.state)
                if callee:
                    return self._called(callee)
        return self._library()

    def _library(self) -> Objects:
        first = self.positional[0] if self.positional else NOTHING
        if self.names & _MODE_FUNCTIONS and first:
            return self._switch(first, self.tail, self.node.args[1:])
        if libraries.is_wrapper(self.names, self.tail) and first:
            return first
        if self.names & {"copy.deepcopy", "copy.copy"} or (not self.names and self.tail == "deepcopy"):
            return self._clone(first)
        if self.names & _TRACERS:
            for model in sorted(first, key=order):
                self._record(model, self.state.mode(model), traced=True)
            return frozenset({Place(self.node, "")})
        known = self.analysis.linked(self.node) if may_build(self.node) or self._models_given() else None
        if known is not None:
            return self._imported(known)
        kind = self.analysis.call_kind(self.node)
        if kind.module:
            return self._module(kind)
        if libraries.is_loader(self.names):
            return frozenset({Place(self.node, "")})
        if self.tail == "from_pretrained":
            return self._loaded()
        if (
            self.names
            and all(name.startswith("torch.") for name in self.names)
            and libraries.is_harmless(self.names, "")
        ):
            self._callbacks()
            return NOTHING
        return self._unseen(NOTHING)

    def _imported(self, known: ClassFacts | FunctionFacts) -> Objects:
        """A class or function of another file of the project."""
        if isinstance(known, ClassFacts):
            return self._model(known) if known.module else self._unseen(NOTHING)
        self._callbacks()
        given = [*zip(known.parameters, self.positional, strict=False), *self.keywords.items()]
        if any(isinstance(argument, ast.Starred) for argument in self.node.args) or "**" in self.keywords:
            return self._unseen(NOTHING)
        expressions = dict(zip(known.parameters, self.node.args, strict=False))
        expressions.update({word.arg: word.value for word in self.node.keywords if word.arg})
        for name, objects in given:
            for held in sorted(objects, key=order):
                if name in known.evaluated and isinstance(held, (Built, Place)):
                    self._record(held, self.state.mode(held), evaluated=expressions[name])
        for name, objects in given:
            after = known.effects.get(name, UNKNOWN)
            if after != ENTRY:
                new = frozenset({Setting(after, self.node)})
                for held in sorted(objects, key=order):
                    self.interpreter.set_mode(held, new if len(objects) == 1 else NOT_KNOWN, self.state)
        if known.returns is not None:
            return self._model(known.returns)
        return frozenset({Place(self.node, "")})

    def _model(self, known: ClassFacts) -> Objects:
        """A model that another file defines or builds."""
        kind = Kind(True, known.depends)
        self.analysis.remember(self.node, kind)
        built = self._module(kind)
        if not known.fresh:
            self.interpreter.forget(built, self.state, self.node)
        return built

    def _loaded(self) -> Objects:
        """`from_pretrained` returns its model in eval mode."""
        built = Built(self.node)
        self.analysis.remember(self.node, Kind(module=True))
        self.state.modes[built] = frozenset({Setting(EVAL, self.node, built=True)})
        return frozenset({built})

    def _module(self, kind: Kind) -> Objects:
        """A layer or container of torch, or a library's model."""
        built = Built(self.node)
        inside = [self.analysis.kind(held).depends for held in self.given]
        if kind.depends is None and any(inside):
            self.analysis.remember(self.node, kind._replace(depends=True))
        for index, held in enumerate(self.positional):
            if held:
                self.state.fields[built, str(index)] = held
        self.state.modes[built] = frozenset({Setting(TRAIN, self.node, built=True)})
        return frozenset({built})

    def _construct(self, definition: ast.ClassDef) -> Objects:
        """An instance of a class of this file."""
        built = Built(self.node)
        self.analysis.remember(self.node, self.analysis.class_kind(definition))
        facts = self.analysis.class_facts(definition)
        if self.source.module_class(definition):
            fresh = not unknown_bases(self.source, facts) and not switches_itself(facts)
            setting = Setting(TRAIN if fresh else UNKNOWN, self.node, built=True)
            self.state.modes[built] = frozenset({setting})
        start = self.analysis.method(definition, "__init__")
        if start is not None:
            self._apply(start, frozenset({built}))
        elif self.given:
            self.interpreter.forget(self.given, self.state, self.node)
        if facts.has_unseen_base and not self.source.module_class(definition):
            self.interpreter.forget(self.given, self.state, self.node)
        return frozenset({built})

    def _clone(self, originals: Objects) -> Objects:
        kinds = [self.analysis.kind(held) for held in originals]
        if not originals or not all(isinstance(held, (Built, Place)) for held in originals):
            return NOTHING
        built = Built(self.node)
        self.analysis.remember(self.node, self.analysis.common_kind(kinds))
        self.state.modes[built] = frozenset().union(*(self.state.mode(held) for held in originals))
        return frozenset({built})

    # Methods -------------------------------------------------------------------------------------------------------

    def _method(self, receivers: Objects) -> Objects:
        known = self._own_methods(receivers)
        if known is not None:
            return known
        if self.tail in ("train", "eval") and self._looks_like_switch():
            return self._switch(receivers, self.tail, self.node.args or [k.value for k in self.node.keywords])
        if self.tail in libraries.CHAINING:
            return receivers
        if self.tail in libraries.SUBMODULES:
            return frozenset(Part(held) for held in receivers if isinstance(held, (Place, Built)))
        if self.tail == "forward":
            return self._called(receivers)
        if self.tail == "apply":
            self._apply_to_all(receivers)
            return receivers
        if self.tail == "from_pretrained":
            return self._loaded()
        if self.tail in libraries.HARMLESS_METHODS:
            self._callbacks()
            if self.tail in ("append", "extend", "update"):
                for held in receivers:
                    self.interpreter.store(frozenset({held}), "*", self.given, self.state)
            return NOTHING
        attribute = self.interpreter.attribute(receivers, self.tail, self.state)
        called = frozenset(held for held in attribute if self._may_be_model(held))
        if called:
            return self._called(called)
        owner = self.node.func.value if isinstance(self.node.func, ast.Attribute) else self.node
        if tail_of(owner) in self.analysis.switched:
            for held in sorted(receivers, key=order):
                self._record(held, self.state.mode(held), method=self.tail)
        return self._unseen(receivers)

    def _record_method(self, receivers: Sequence[Object]) -> None:
        """A method of its own that runs a model (`model.encode(x)`) is a call of the model."""
        for held in receivers:
            if self.analysis.kind(held).module and self.interpreter.outside_models:
                self._record(held, self.state.mode(held), method=self.tail)

    def _leaves_alone(self, receiver: Object) -> bool:
        """Whether a method that is not seen very likely leaves its receiver's mode alone, judging by its name."""
        holder = self.analysis.kind(receiver).node if isinstance(receiver, (Place, Built)) else None
        inherits = holder is not None and has_unseen_base(self.source, holder)
        return not inherits and not libraries.may_switch(self.tail)

    def _may_be_model(self, held: Object) -> bool:
        """Whether an attribute that is called may be a model (`self.net(x)`) rather than a method."""
        if isinstance(held, (Built, Saved)):
            return isinstance(held, Built)
        if not isinstance(held, Place) or held.opaque:
            return False
        if held in self.state.modes or self.analysis.kind(held).module:
            return True
        owner = held.owner
        holder = self.analysis.kind(owner).node if owner is not None else None
        return holder is not None and held.attributes[-1] in self.analysis.class_facts(holder).attributes

    def _own_methods(self, receivers: Objects) -> Objects | None:
        """The call of a method that classes of this file define, for all receivers; None if it is no such call."""
        targets = []
        for held in sorted(receivers, key=order):
            holder = self.analysis.kind(held).node if isinstance(held, (Place, Built)) else None
            if holder is None:
                return None
            function = self.analysis.method(holder, self.tail)
            if function is None or (self.tail in ("train", "eval", "forward") and self.analysis.kind(held).module):
                return None
            targets.append((held, function))
        if not targets:
            return None
        self._record_method([held for held, _ in targets])
        returned = NOTHING
        for held, function in targets:
            static = any(tail_of(decorator) == "staticmethod" for decorator in function.decorator_list)
            returned |= self._apply(function, None if static else frozenset({held}))
        return returned

    def _looks_like_switch(self) -> bool:
        """`train()` or `eval()` of a module, not `trainer.train(loader)` or `pandas.eval(text)`."""
        arguments = [*self.node.args, *(keyword.value for keyword in self.node.keywords)]
        if self.tail == "eval":
            return not arguments
        if len(arguments) > 1 or any(keyword.arg != "mode" for keyword in self.node.keywords):
            return False
        if not arguments:
            return True
        held = self.positional[0] if self.positional else next(iter(self.keywords.values()))
        if isinstance(arguments[0], ast.Constant):
            return isinstance(arguments[0].value, bool)
        words = ("mode", "train", "was", "is_", "prev", "state", "status", "flag", "old", "orig")
        text = ast.unparse(arguments[0]).lower()
        return any(isinstance(item, Saved) for item in held) or any(word in text for word in words)

    def _switch(self, receivers: Objects, tail: str, arguments: Sequence[ast.expr]) -> Objects:
        """`train(…)` or `eval()` on `receivers`."""
        modes: Modes | None = frozenset({Setting(EVAL if tail == "eval" else TRAIN, self.node)})
        if tail == "train" and arguments:
            modes = self._train_argument(arguments[0])
        for held in sorted(receivers, key=order):
            saved = self._saved_modes(held) if modes is None else modes
            kind = self.analysis.kind(held)
            if kind.node is not None and kind.module and switches_itself(self.analysis.class_facts(kind.node)):
                saved = NOT_KNOWN
            new = saved if len(receivers) == 1 else saved | self.state.mode(held)
            self.interpreter.set_mode(held, new, self.state)
        return receivers

    def _train_argument(self, argument: ast.expr) -> Modes | None:
        """What `train(argument)` sets; None: what was saved earlier, or unknown."""
        if isinstance(argument, ast.Constant):
            return frozenset({Setting(TRAIN if argument.value else EVAL, self.node)})
        return None

    def _saved_modes(self, receiver: Object) -> Modes:
        found = [held for held in self.given if isinstance(held, Saved)]
        own = [held for held in found if held.whole == receiver] or found
        return frozenset().union(*(held.modes for held in own)) or NOT_KNOWN

    def _apply_to_all(self, receivers: Objects) -> None:
        """`model.apply(function)`: harmless, unless the function switches modes or cannot be seen."""
        argument = self.node.args[0] if self.node.args else None
        function = (
            self.analysis.definition(self.interpreter.scope, argument.id) if isinstance(argument, ast.Name) else None
        )
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            switched = any(
                isinstance(node, ast.Attribute) and node.attr in ("train", "eval", "training")
                for node in walk(function)
            )
        else:
            switched = argument is None or not any(w in ast.unparse(argument).lower() for w in ("init", "weight"))
        if switched:
            self.interpreter.forget(receivers, self.state, self.node)

    # Calls of models and of code that is not seen ------------------------------------------------------------------

    def _called(self, callees: Objects) -> Objects:
        """An object is called: if it is a model, this is its forward."""
        for held in sorted(callees, key=order):
            if isinstance(held, (Place, Built)):
                self._record(held, self.state.mode(held))
        self.interpreter.forget(self._models_given(), self.state, self.node)
        return frozenset({Place(self.node, "")})

    def _record(
        self,
        model: Object,
        modes: Modes,
        method: str = "",
        traced: bool = False,
        evaluated: ast.expr | None = None,
    ) -> None:
        if isinstance(model, Place) and model.opaque and _all_unknown(modes):
            return
        depends = self.analysis.dependence(model, method)
        scope = self.interpreter.scope
        self.interpreter.record(ModelCall(self.node, model, modes, (), scope, depends, method, traced, evaluated))

    def _models_given(self) -> Objects:
        """The arguments that surely are models, or hold some."""
        return frozenset(held for held in self.given if isinstance(held, Built) or held in self.state.modes)

    def _unseen(self, receivers: Objects) -> Objects:
        """A function that is not in this file: what it is given, and what it is a method of, may change mode."""
        self._callbacks()
        if not libraries.is_harmless(self.names, self.tail):
            self.interpreter.forget(self.given, self.state, self.node)
            self.interpreter.forget([held for held in receivers if not self._leaves_alone(held)], self.state, self.node)
        return frozenset({Place(self.node, "")})

    def _callbacks(self) -> None:
        """Functions of this file that are handed over are called there."""
        for argument in (*self.node.args, *(keyword.value for keyword in self.node.keywords)):
            if isinstance(argument, ast.Name):
                function = self.analysis.definition(self.interpreter.scope, argument.id)
                if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    self._apply(function, None, unknown_arguments=True)

    # Functions of this file ----------------------------------------------------------------------------------------

    def _apply(self, function: Function, bound: Objects | None, unknown_arguments: bool = False) -> Objects:
        """What a call of `function` does to the state, and returns."""
        summary = self.analysis.summary(function)
        if summary is None or summary.exit is None:
            return NOTHING
        if any(changes_mode(decorator) for decorator in function.decorator_list):
            self.interpreter.forget(self.given | (bound or NOTHING), self.state, self.node)
            return frozenset({Place(self.node, "")})
        arguments = {} if unknown_arguments else self._matched(function, bound)
        return _Application(self, function, summary, arguments).value()

    def _matched(self, function: Function, bound: Objects | None) -> dict[str, Objects]:
        """The objects each parameter is given."""
        parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        values = ([bound] if bound is not None else []) + self.positional
        found: dict[str, Objects] = {}
        for index, objects in enumerate(values):
            argument = index - (bound is not None)
            if argument >= 0 and isinstance(self.node.args[argument], ast.Starred):
                break
            if index < len(parameters):
                found[parameters[index]] = objects
        found.update({name: objects for name, objects in self.keywords.items() if name != "**"})
        return found


class _Application:
    """A function's summary, put into the words of a caller."""

    def __init__(self, call: CallVisit, function: Function, summary: Summary, arguments: dict[str, Objects]) -> None:
        self.call = call
        self.interpreter = call.interpreter
        self.state = call.state
        self.before = call.state.copy()
        self.function = function
        self.summary = summary
        self.arguments = arguments

    def value(self) -> Objects:
        assert self.summary.exit is not None
        for model_call in self.summary.calls:
            self._lift_call(model_call)
        end = self.summary.exit
        kept = self._reachable(end)
        for held, modes in sorted(end.modes.items(), key=lambda item: order(item[0])):
            if isinstance(held, Place) and not held.opaque:
                self._set(held, modes)
            elif held in kept:
                for lifted in self.lift(held):
                    self.state.modes[lifted] = self.lift_modes(modes, lifted)
        for (owner, attribute), objects in end.fields.items():
            if owner in kept or (isinstance(owner, Place) and not owner.opaque):
                self.interpreter.store(self.lift(owner), attribute, self.lift_all(objects), self.state)
        for name, objects in end.names.items():
            if isinstance(name, Place) and name.scope is not self.function:
                key: str | Place = name.name if name.scope is self.interpreter.scope else name
                self.state.names[key] = self.lift_all(objects)
        return self.lift_all(self.summary.returned)

    def _reachable(self, end: State) -> set[Object]:
        """What the function built and handed out."""
        found: set[Object] = set()
        todo: list[Object] = list(self.summary.returned)
        for name, objects in end.names.items():
            if isinstance(name, Place):
                todo += objects
        for (owner, _), objects in end.fields.items():
            if isinstance(owner, Place):
                todo += objects
        while todo:
            held = todo.pop()
            if isinstance(held, Built) and held not in found:
                found.add(held)
                todo += [inner for (owner, _), objects in end.fields.items() if owner == held for inner in objects]
        return found

    def lift_all(self, objects: Objects) -> Objects:
        return frozenset().union(*(self.lift(held) for held in objects)) if objects else NOTHING

    def lift(self, held: Object) -> Objects:
        """The caller's objects that an object of the function stands for."""
        if isinstance(held, Built):
            return frozenset({held._replace(via=(self.call.node, *held.via)[:DEPTH])})
        if isinstance(held, Place):
            return frozenset({held}) if held.opaque else self._place(held)
        if isinstance(held, Part):
            wholes = self.lift(held.whole)
            return frozenset(Part(whole) for whole in wholes if isinstance(whole, (Place, Built)))
        wholes = self.lift(held.whole)
        return frozenset(
            Saved(whole, self.lift_modes(held.modes, whole)) for whole in wholes if isinstance(whole, (Place, Built))
        )

    def _place(self, place: Place) -> Objects:
        if place.scope is self.function:
            objects = self.arguments.get(place.name, NOTHING)
        elif place.scope is self.interpreter.scope:
            objects = self.before.names.get(place.name, NOTHING)
        else:
            root = place.root
            objects = self.before.names.get(root) or frozenset({root})
        for attribute in place.attributes:
            objects = frozenset().union(*(self.interpreter.child(held, attribute, self.before) for held in objects))
        return objects

    def lift_modes(self, modes: Modes, model: Object) -> Modes:
        """Modes at some point of the function, for the caller's `model`."""
        lifted: set[Setting] = set()
        for setting in modes:
            if setting.mode == ENTRY:
                lifted |= self.before.mode(model)
            else:
                lifted.add(setting._replace(via=(self.call.node, *setting.via)[:DEPTH]))
        return frozenset(lifted)

    def _set(self, place: Place, modes: Modes) -> None:
        targets = self.lift(place)
        for target in sorted(targets, key=order):
            new = self.lift_modes(modes, target)
            if len(targets) > 1:
                new |= self.before.mode(target)
            if isinstance(target, Part) or new != self.state.mode(target):
                self.interpreter.set_mode(target, new, self.state)

    def _lift_call(self, inner: ModelCall) -> None:
        """A call of a model inside the function, seen from here, unless all about it was known there."""
        if not isinstance(inner.model, Place) or inner.model.opaque or len(inner.chain) >= DEPTH:
            return
        settled = inner.depends is not None and all(setting.mode != ENTRY for setting in inner.modes)
        if settled:
            return
        chain = (self.call.node, *inner.chain)
        for model in sorted(self.lift(inner.model), key=order):
            if not isinstance(model, (Place, Built)):
                continue
            modes = self.lift_modes(inner.modes, model)
            if isinstance(model, Place) and model.opaque and _all_unknown(modes):
                continue
            depends = self.call.analysis.dependence(model, inner.method)
            depends = inner.depends if depends is None else depends
            scope = self.interpreter.scope
            lifted = inner._replace(model=model, modes=modes, chain=chain, scope=scope, depends=depends)
            self.interpreter.record(lifted)


def changes_mode(decorator: ast.expr) -> bool:
    """Whether a decorator may set the mode of what it wraps (`@eval_mode`), which torch's own do not."""
    tail = tail_of(decorator).lower()
    return any(word in tail for word in ("eval", "mode", "infer", "train")) and tail not in (
        "inference_mode", "evaluate", "train",
    )  # fmt: skip


def switches_itself(facts: ModuleClass) -> bool:
    """Whether a module class overrides how its mode is set, other than to hold back some layers."""
    for name in ("train", "eval"):
        method = facts.method(name)
        if method is not None:
            calls: Iterator[ast.AST] = walk_scope(method)
            if not any(
                isinstance(node, ast.Call) and tail_of(node.func) == name and not _false(node) for node in calls
            ):
                return True
    return False


def _all_unknown(modes: Modes) -> bool:
    return all(setting.mode == UNKNOWN for setting in modes)


def _false(call: ast.Call) -> bool:
    return any(isinstance(argument, ast.Constant) and argument.value is False for argument in call.args)
