"""What one round of a training loop does, in order: zero_grad, backward, clip, unscale_, step, scheduler.step.

The body of every loop is read in the order in which it runs, and so are the file's own functions and methods that it
calls, closures handed to `step` included. Optimisers, schedulers and scalers are told apart by where they were built.
Calls of code that is not seen stay in the list, so that a rule can tell what it does not know.
"""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.values import held
from auditor.static.modes.libraries import BUILTINS, HARMLESS_METHODS
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Function, Source

Loop = ast.For | ast.AsyncFor | ast.While
LOOPS = (ast.For, ast.AsyncFor, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_DEPTH = 5
_HARMLESS_MODULES = ("torch.", "numpy.", "tqdm", "time.", "os.", "math.", "random.", "logging.", "json.", "sys.")

_SCHEDULERS = "torch.optim.lr_scheduler."
_SCALERS = re.compile(r"^torch\.(?:cuda\.amp|amp|cpu\.amp)\.(?:grad_scaler\.)?GradScaler$")
_CLIPS = re.compile(r"^torch\.nn\.utils\.(?:clip_grad\.)?clip_grad_(?:norm|value)_?$")
_OPTIMIZERS = frozenset(
    {
        "Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "SparseAdam", "ASGD",
        "Rprop", "Adafactor", "Muon",
    }
)  # fmt: skip


class Act(enum.Enum):
    """What a call does to gradients, weights or the learning rate."""

    ZERO = "zero"
    BACKWARD = "backward"
    CLIP = "clip"
    UNSCALE = "unscale"
    STEP = "step"
    SCHEDULE = "schedule"
    UNSEEN = "unseen"  # a call of code that this file does not show


class Thing(NamedTuple):
    """An optimiser, scheduler or scaler: how it is written, and the constructions that surely made it."""

    text: str
    made: frozenset[ast.Call]

    def is_surely(self, other: Thing) -> bool:
        """Whether both are one object, as far as names and constructions tell."""
        if len(self.made) == 1 and len(other.made) == 1:
            return self.made == other.made
        return self.text == other.text


class Event(NamedTuple):
    """One call of a round.

    `thing`: the optimiser (also for `scaler.step(optimizer)`), the scheduler, or what is clipped or differentiated;
    `known`: it was surely built as such (torch's own optimiser or scheduler, torch's own clipping); `chain`: the calls
    of the file's functions that lead here, outermost first; `branches`: the branches around it inside the round;
    `loops`: the loops around it inside the round; `scaled`: through a GradScaler.
    """

    act: Act
    call: ast.Call
    thing: Thing
    known: bool
    chain: tuple[ast.Call, ...]
    branches: tuple[tuple[ast.AST, str], ...]
    loops: tuple[Loop, ...]
    scaled: bool = False

    @property
    def certain(self) -> bool:
        """Whether every round comes here exactly once."""
        return not self.branches and not self.loops

    def happens_with(self, other: Event) -> bool:
        """Whether this surely happens in every round in which `other` does."""
        return set(self.branches) <= set(other.branches) and set(self.loops) <= set(other.loops)


class Round(NamedTuple):
    """One round of `loop`. `escapes`: the body can leave it early (`break`, `continue`, `return`)."""

    loop: Loop
    events: tuple[Event, ...]

    def all(self, *acts: Act) -> list[Event]:
        return [event for event in self.events if event.act in acts]

    def between(self, one: Event, other: Event) -> tuple[Event, ...]:
        """The events after `one` and before `other` of the same round."""
        return self.events[self.events.index(one) + 1 : self.events.index(other)]


def rounds(source: Source) -> list[Round]:
    """One round of every loop in which something is differentiated or stepped, in document order, computed once."""
    return source.once(_rounds)


def is_optimizer(source: Source, call: ast.Call) -> bool:
    """Whether a construction surely makes one of torch's optimisers that step without a closure."""
    names = source.resolve(call.func)
    return bool(names) and all(
        name.startswith("torch.optim.") and not name.startswith(_SCHEDULERS) and name.rpartition(".")[2] in _OPTIMIZERS
        for name in names
    )


def is_scheduler(source: Source, call: ast.Call) -> bool:
    """Whether a construction surely makes one of torch's schedulers that count epochs or steps."""
    names = source.resolve(call.func)
    return bool(names) and all(name.startswith(_SCHEDULERS) and "Plateau" not in name for name in names)


def is_scaler(source: Source, call: ast.Call) -> bool:
    """Whether a construction surely makes a GradScaler of torch."""
    names = source.resolve(call.func)
    return bool(names) and all(_SCALERS.match(name) for name in names)


def touches_gradients(nodes: Sequence[ast.AST]) -> bool:
    """Whether code reads or writes `.grad` itself, or mentions zeroing in a way that is no plain call."""
    return any(isinstance(node, ast.Attribute) and node.attr == "grad" for top in nodes for node in walk(top))


_TRAINS = re.compile(r"zero|optim|step|train|update|grad|backward|fit|learn|closure|engine", re.IGNORECASE)


def may_be_done_elsewhere(source: Source, events: Sequence[Event], *things: Thing) -> bool:
    """Whether code that is not seen may zero, differentiate or step: it gets one of `things` or the whole object, is
    an unseen method of the object, or says so by its name."""
    for event in events:
        if event.act is not Act.UNSEEN:
            continue
        function = event.call.func
        tail = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        given = [*event.call.args, *(keyword.value for keyword in event.call.keywords)]
        texts = {ast.unparse(part) for part in given}
        if _TRAINS.search(tail) or "self" in texts or texts & {thing.text for thing in things}:
            return True
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            receiver = function.value.id
            if receiver == "self" and not _is_attribute(source, event.call, tail):
                return True
            if receiver in {thing.text for thing in things}:
                return True
    return False


def _is_attribute(source: Source, call: ast.Call, name: str) -> bool:
    """Whether `self.name` is a variable that the class around `call` assigns."""
    owner = source.class_of(call)
    return owner is not None and any(
        isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)
        for node in walk(owner)
    )


def functions_of(source: Source, events: Sequence[Event]) -> list[Function]:
    """The file's functions in which events of a round stand."""
    found = [source.function_of(event.call) for event in events]
    return list(dict.fromkeys(function for function in found if function is not None))


# Reading a body -------------------------------------------------------------------------------------------------------


def _rounds(source: Source) -> list[Round]:
    if ".step(" not in source.text and "backward" not in source.text:
        return []
    found: list[Round] = []
    reader = _Reader(source)
    loops: list[Loop] = [*source.tree.all(ast.For), *source.tree.all(ast.AsyncFor), *source.tree.all(ast.While)]
    for loop in sorted(loops, key=lambda node: node.lineno):
        events = tuple(reader.body(loop.body, _Place((), (), ())))
        if any(event.act in (Act.BACKWARD, Act.STEP) for event in events):
            found.append(Round(loop, events))
    return found


class _Place(NamedTuple):
    chain: tuple[ast.Call, ...]
    branches: tuple[tuple[ast.AST, str], ...]
    loops: tuple[Loop, ...]

    def inside(self, branch: ast.AST, arm: str) -> _Place:
        return self._replace(branches=(*self.branches, (branch, arm)))


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self._things: dict[tuple[str, ast.AST | None], Thing] = {}

    def body(self, statements: Sequence[ast.stmt], place: _Place) -> Iterator[Event]:
        for statement in statements:
            yield from self._statement(statement, place)

    def _statement(self, statement: ast.stmt, place: _Place) -> Iterator[Event]:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return
            case ast.If(test=test, body=body, orelse=orelse):
                yield from self._expression(test, place)
                yield from self.body(body, place.inside(statement, "body"))
                yield from self.body(orelse, place.inside(statement, "else"))
            case (
                ast.For(iter=iterable, body=body, orelse=orelse) | ast.AsyncFor(iter=iterable, body=body, orelse=orelse)
            ):
                yield from self._expression(iterable, place)
                yield from self.body(body, place._replace(loops=(*place.loops, statement)))
                yield from self.body(orelse, place.inside(statement, "else"))
            case ast.While(test=test, body=body):
                yield from self._expression(test, place)
                yield from self.body(body, place._replace(loops=(*place.loops, statement)))
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                for item in items:
                    yield from self._expression(item.context_expr, place)
                yield from self.body(body, place)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                yield from self.body(body, place)
                for handler in handlers:
                    yield from self.body(handler.body, place.inside(handler, "body"))
                yield from self.body(orelse, place)
                yield from self.body(final, place)
            case ast.Match(subject=subject, cases=cases):
                yield from self._expression(subject, place)
                for case in cases:
                    yield from self.body(case.body, place.inside(case, "body"))
            case _:
                yield from self._expression(statement, place)

    def _expression(self, node: ast.AST, place: _Place) -> Iterator[Event]:
        """The calls of an expression or simple statement, arguments before the call that gets them."""
        if isinstance(node, _FUNCTIONS):
            return
        if isinstance(node, ast.IfExp):
            yield from self._expression(node.test, place)
            yield from self._expression(node.body, place.inside(node, "body"))
            yield from self._expression(node.orelse, place.inside(node, "else"))
            return
        for child in ast.iter_child_nodes(node):
            yield from self._expression(child, place)
        if isinstance(node, ast.Call):
            yield from self._call(node, place)

    def _call(self, call: ast.Call, place: _Place) -> Iterator[Event]:
        event = self._event(call, place)
        if event is not None:
            if event.act is Act.STEP:
                yield from self._closures(call, place)
            yield event
            return
        definition = self._definition(call)
        if definition is None:
            if self._is_unseen(call):
                yield self._make(Act.UNSEEN, call, call.func, place)
        elif len(place.chain) < _DEPTH and call not in place.chain:
            yield from self.body(definition.body, place._replace(chain=(*place.chain, call)))
        else:
            yield self._make(Act.UNSEEN, call, call.func, place)

    def _closures(self, call: ast.Call, place: _Place) -> Iterator[Event]:
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            if isinstance(argument, ast.Name):
                around = self.source.function_of(call)
                for node in self.source.tree.all(ast.FunctionDef):
                    if node.name == argument.id and self.source.function_of(node) is around:
                        yield from self.body(node.body, place._replace(chain=(*place.chain, call)))

    def _event(self, call: ast.Call, place: _Place) -> Event | None:
        """The event that a call is by its own name."""
        names = self.source.resolve(call.func)
        tail = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        if "zero_grad" in tail:
            return self._make(Act.ZERO, call, receiver or call.func, place)
        if "unscale" in tail:
            return self._make(Act.UNSCALE, call, call.args[0] if call.args else call.func, place)
        if "clip" in tail and "grad" in tail:
            known = bool(names) and all(_CLIPS.match(name) for name in names)
            return self._make(Act.CLIP, call, call.args[0] if call.args else call.func, place, known)
        if "backward" in tail and "hook" not in tail and self._definition(call) is None:
            return self._make(Act.BACKWARD, call, receiver or call.func, place)
        if tail == "step" and receiver is not None and not names:
            return self._step(call, receiver, place)
        return None

    def _step(self, call: ast.Call, receiver: ast.expr, place: _Place) -> Event | None:
        made = self.thing(receiver).made
        if made and all(is_scaler(self.source, item) for item in made):
            optimizer = call.args[0] if call.args else receiver
            known = self._is_known_optimizer(optimizer)
            return self._make(Act.STEP, call, optimizer, place, known)._replace(scaled=True)
        if made:
            if all(is_optimizer(self.source, item) for item in made):
                return self._make(Act.STEP, call, receiver, place, known=True)
            if all(is_scheduler(self.source, item) for item in made):
                return self._make(Act.SCHEDULE, call, receiver, place, known=True)
        text = ast.unparse(receiver).rpartition(".")[2].lower()
        if "sched" in text or "warmup" in text:
            return self._make(Act.SCHEDULE, call, receiver, place)
        if "scaler" in text and call.args:
            known = self._is_known_optimizer(call.args[0])
            return self._make(Act.STEP, call, call.args[0], place, known)._replace(scaled=True)
        if "opt" in text:
            return self._make(Act.STEP, call, receiver, place)
        return None

    def _is_known_optimizer(self, expression: ast.expr) -> bool:
        made = self.thing(expression).made
        return bool(made) and all(is_optimizer(self.source, item) for item in made)

    def thing(self, expression: ast.expr) -> Thing:
        text = ast.unparse(expression)
        key = (text, self.source.function_of(expression))
        if key not in self._things:
            plain = isinstance(expression, (ast.Name, ast.Attribute))
            made = held(self.source, expression) if plain else []
            self._things[key] = Thing(text, frozenset(made))
        return self._things[key]

    def _make(self, act: Act, call: ast.Call, thing: ast.expr, place: _Place, known: bool = False) -> Event:
        return Event(act, call, self.thing(thing), known, place.chain, place.branches, place.loops)

    # The file's own functions ----------------------------------------------------------------------------------------

    def _definition(self, call: ast.Call) -> Function | None:
        """The one function or method of the file that a call surely reaches."""
        source = self.source
        match call.func:
            case ast.Name(id=name):
                functions: list[Function] = [*source.tree.all(ast.FunctionDef), *source.tree.all(ast.AsyncFunctionDef)]
                found = [
                    node
                    for node in functions
                    if node.name == name and not isinstance(source.tree.parent(node), ast.ClassDef)
                ]
                return found[0] if len(found) == 1 and not source.names.stores(name) else None
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                owner = source.class_of(call)
                return self._method(owner, attr) if owner is not None else None
            case ast.Attribute(value=receiver, attr=attr) if isinstance(receiver, (ast.Name, ast.Attribute)):
                kinds = {frozenset(source.resolve(item.func)) for item in self.thing(receiver).made}
                if len(kinds) == 1:
                    for name in kinds.pop():
                        for node in source.names.definitions.get(name, []):
                            return self._method(node, attr) if isinstance(node, ast.ClassDef) else None
        return None

    def _method(self, owner: ast.ClassDef, name: str, depth: int = _DEPTH) -> Function | None:
        for statement in owner.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name == name:
                return statement
        for base in owner.bases if depth else []:
            for parent in self.source.resolve(base):
                for node in self.source.names.definitions.get(parent, []):
                    if isinstance(node, ast.ClassDef) and node is not owner:
                        return self._method(node, name, depth - 1)
        return None

    def _is_unseen(self, call: ast.Call) -> bool:
        names = self.source.resolve(call.func)
        if names and all(name.startswith(_HARMLESS_MODULES) for name in names):
            return False
        if isinstance(call.func, ast.Name):
            return not (call.func.id in BUILTINS and not names)
        return not (isinstance(call.func, ast.Attribute) and call.func.attr in HARMLESS_METHODS)
