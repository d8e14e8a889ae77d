"""What analysis.py computes with: objects, the modes they may be in, states between statements."""

from __future__ import annotations

import ast
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module
Chain = tuple[ast.Call, ...]

TRAIN, EVAL, UNKNOWN, ENTRY = "train", "eval", "unknown", "entry"
DEPTH = 5  # of attribute paths and of call chains that are followed
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Setting(NamedTuple):
    """A mode and what set it: a call of `train` or `eval`, or a construction (`built`).

    `via` are the calls of this file's functions through which the line was reached, outermost first. ENTRY stands for
    the mode at the start of the function, UNKNOWN for that after code that is not seen.
    """

    mode: str
    node: ast.AST | None = None
    via: Chain = ()
    built: bool = False

    @property
    def position(self) -> ast.AST | None:
        """Where this happened in the function that is looked at."""
        return self.via[0] if self.via else self.node


Modes = frozenset[Setting]
AT_ENTRY: Modes = frozenset({Setting(ENTRY)})
NOT_KNOWN: Modes = frozenset({Setting(UNKNOWN)})


class Place(NamedTuple):
    """What the name `name` of `scope` (then its attributes) held on entry to the function that uses it.

    With a call as `scope`, the unknown result of that call.
    """

    scope: ast.AST
    name: str
    attributes: tuple[str, ...] = ()

    @property
    def opaque(self) -> bool:
        return not self.name

    @property
    def owner(self) -> Place | None:
        return self._replace(attributes=self.attributes[:-1]) if self.attributes else None

    @property
    def root(self) -> Place:
        return self._replace(attributes=())


class Built(NamedTuple):
    """A model, a container or another object that the expression `node` makes; `via` tells apart its makings."""

    node: ast.expr
    via: Chain = ()


class Part(NamedTuple):
    """Some submodule of `whole`."""

    whole: Place | Built


class Saved(NamedTuple):
    """The value of `whole.training` when it had the modes `modes`."""

    whole: Place | Built
    modes: Modes


Object = Place | Built | Part | Saved
Objects = frozenset[Object]
NOTHING: Objects = frozenset()


class Kind(NamedTuple):
    """What a built object is: a module (of the class `facts`, if it is one of this file) or an instance of `node`."""

    module: bool
    depends: bool | None = None
    node: ast.ClassDef | None = None


class ModelCall(NamedTuple):
    """A call of a model, with the modes the model can be in there.

    `chain`: the calls that lead from `scope` to the function with the call, outermost first (empty: it is in `scope`
    itself). `depends`: whether the model provably computes differently in train and eval mode.
    """

    call: ast.Call
    model: Object
    modes: Modes
    chain: Chain
    scope: Scope
    depends: bool | None
    method: str = ""  # the method called, where it is not the forward
    traced: bool = False
    evaluated: ast.expr | None = None  # the argument that `call`, of a function of another file, evaluates

    @property
    def position(self) -> ast.Call:
        """Where this happens in `scope`."""
        return self.chain[0] if self.chain else self.call

    @property
    def key(self) -> tuple[ast.Call, Object, Chain]:
        return self.call, self.model, self.chain

    def only(self, mode: str) -> bool:
        """Whether the model is in `mode` for sure."""
        return bool(self.modes) and all(setting.mode == mode for setting in self.modes)


class State:
    """What is known between two statements."""

    __slots__ = ("fields", "modes", "names")

    def __init__(
        self,
        names: dict[str | Place, Objects],
        fields: dict[tuple[Object, str], Objects],
        modes: dict[Object, Modes],
    ) -> None:
        self.names = names
        self.fields = fields
        self.modes = modes

    def copy(self) -> State:
        return State(dict(self.names), dict(self.fields), dict(self.modes))

    def mode(self, model: Object) -> Modes:
        """The modes `model` may be in; what was never set on a place is that of its owner, or as on entry."""
        known = self.modes.get(model)
        if known is not None:
            return known
        if isinstance(model, Place):
            owner = model.owner
            if owner is not None and self.modes:
                return self.mode(owner)
            return NOT_KNOWN if model.opaque else AT_ENTRY
        return NOT_KNOWN

    def joined(self, other: State | None) -> State:
        """What holds after either of two states."""
        if other is None or other is self:
            return self
        names = dict(self.names)
        for name, objects in other.names.items():
            names[name] = objects | names.get(name, as_before(name))
        for name in self.names.keys() - other.names.keys():
            names[name] |= as_before(name)
        fields = dict(self.fields)
        for key, objects in other.fields.items():
            fields[key] = objects | fields.get(key, field_before(key))
        for key in self.fields.keys() - other.fields.keys():
            fields[key] |= field_before(key)
        modes = {
            model: self.mode(model) | other.mode(model)
            if isinstance(model, Place)
            else self.modes.get(model, frozenset()) | other.modes.get(model, frozenset())
            for model in {**self.modes, **other.modes}
        }
        return State(names, fields, modes)


def as_before(name: str | Place) -> Objects:
    return frozenset({name}) if isinstance(name, Place) else NOTHING


def field_before(key: tuple[Object, str]) -> Objects:
    owner, name = key
    if isinstance(owner, Place) and len(owner.attributes) < DEPTH:
        return frozenset({owner._replace(attributes=(*owner.attributes, name))})
    return NOTHING


class Summary(NamedTuple):
    """What a call of a function does: the state it leaves, what it returns, the models it calls."""

    exit: State | None
    returned: Objects
    calls: list[ModelCall]


def join(one: State | None, other: State | None) -> State | None:
    return other if one is None else one.joined(other)


def order(held: Object) -> tuple[int, int, str]:
    """A position to sort objects by, so that results never depend on hash values."""
    if isinstance(held, Built):
        return held.node.lineno, held.node.col_offset, ""
    if isinstance(held, Place):
        row = getattr(held.scope, "lineno", 0)
        return row, getattr(held.scope, "col_offset", 0), ".".join((held.name, *held.attributes))
    return order(held.whole)


def arguments(function: Function) -> list[ast.arg]:
    arguments = function.args
    special = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *special]


def tail_of(expression: ast.expr) -> str:
    """The last part of a dotted name, of a call's callee if it is a call."""
    if isinstance(expression, ast.Call):
        return tail_of(expression.func)
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""
