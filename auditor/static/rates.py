"""The dropout rates that a file hands over: to which call, in which expression, and with what value."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditor.static.constants import binding
from auditor.static.layers import ATTENTION, DROPOUTS, NN, RECURRENT, TRANSFORMERS
from auditor.static.source import HIDDEN

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.flow import Flow, Op
    from auditor.static.source import Source

_F = "torch.nn.functional."
_NAMES = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# Functions that drop: name and position of the rate, name and position of the switch ("" where there is none).
FUNCTIONS: dict[str, tuple[str, int, str, int]] = {
    **{_F + name: ("p", 1, "training", 2) for name in _NAMES},
    **{"torch." + name: ("p", 1, "train", 2) for name in ("dropout", "alpha_dropout", "feature_dropout")},
    _F + "scaled_dot_product_attention": ("dropout_p", 4, "", -1),
    _F + "multi_head_attention_forward": ("dropout_p", 10, "training", 13),
}
# Layers with a rate among their arguments: its name and position.
LAYERS: dict[str, tuple[str, int]] = {
    **{name: ("p", 0) for name in DROPOUTS},
    **{name: ("dropout", 6 if name == NN + "RNN" else 5) for name in RECURRENT},
    **{name: ("dropout", 2) for name in ATTENTION},
    **{name: ("dropout", 5 if name == NN + "Transformer" else 3) for name in TRANSFORMERS},
}
for _stack in ("TransformerEncoder", "TransformerDecoder"):  # built from a layer; they take no rate
    del LAYERS[NN + _stack]


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in a call. `kind`: dotted name of the layer or function called, or of a module class of the file.

    `value` is None where it cannot be known without running; `origin` is the expression that holds the number, such as
    a parameter's default, or the expression handed over itself.
    """

    call: ast.Call
    kind: str
    expression: ast.expr
    origin: ast.expr
    value: float | None


def rates(source: Source) -> Iterator[Rate]:
    """All rates handed over in the file, to torch's layers and functions and to the file's own modules, in the order
    of these three."""
    for kind, (name, position) in LAYERS.items():
        for call in source.calls_to(kind):
            yield from _rate(source, call, kind, source.argument(call, name, position))
    for kind, (name, position, switch, at) in FUNCTIONS.items():
        for call in source.calls_to(kind):
            if not switch or source.constant(source.argument(call, switch, at)) is not False:
                yield from _rate(source, call, kind, source.argument(call, name, position))
    for facts in source.module_classes:
        for parameter, index in rate_parameters(source, facts).items():
            for call in source.calls_to(facts.name):
                yield from _rate(source, call, facts.name, source.argument(call, parameter, index))


def _rate(source: Source, call: ast.Call, kind: str, expression: object) -> Iterator[Rate]:
    if isinstance(expression, ast.expr) and expression is not HIDDEN:
        value = source.constant(expression)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        yield Rate(call, kind, expression, origin(source, expression), float(value) if number else None)


def rate_parameters(source: Source, facts: ModuleClass, depth: int = 4) -> dict[str, int]:
    """The parameters of a class's constructor that it uses as dropout rates, with their positions in a call: handed
    on as they are, also through an attribute, to a layer, a functional dropout or another module of the file."""
    start = facts.methods.get("__init__")
    if start is None or depth == 0:
        return {}
    names = [argument.arg for argument in (*start.args.posonlyargs, *start.args.args)][1:]
    names += [argument.arg for argument in start.args.kwonlyargs]
    found: dict[str, int] = {}
    for method in facts.methods.values():
        for call in (node for node in ast.walk(method) if isinstance(node, ast.Call)):
            for expression in _handed_on(source, call, depth):
                name = _parameter_name(facts, start, method, expression)
                if name in names:
                    found[name] = names.index(name)
    positional = len(start.args.posonlyargs) + len(start.args.args) - 1
    return {name: index if index < positional else -1 for name, index in found.items()}


def _handed_on(source: Source, call: ast.Call, depth: int) -> Sequence[ast.expr]:
    """The expressions that `call` takes as rates."""
    resolved = source.resolve(call.func)
    if len(resolved) != 1:
        return ()
    (kind,) = resolved
    if kind in LAYERS or kind in FUNCTIONS:
        wanted = [LAYERS[kind] if kind in LAYERS else FUNCTIONS[kind][:2]]
    else:
        inner = source.module_class(kind)
        wanted = list(rate_parameters(source, inner, depth - 1).items()) if inner is not None else []
    arguments = [source.argument(call, name, position) for name, position in wanted]
    return [argument for argument in arguments if isinstance(argument, ast.expr)]


def _parameter_name(facts: ModuleClass, start: Function, method: Function, expression: ast.expr) -> str:
    """The parameter of the constructor `start` that `expression`, standing in `method`, surely holds; "" if none."""
    match expression:
        case ast.Name(id=name) if method is start and not _rebound(facts.source, start, name):
            return name
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            assigned = facts.own_attributes.get(attr, [])
            if len(assigned) == 1 and assigned[0].method is start and isinstance(assigned[0].value, ast.Name):
                return _parameter_name(facts, start, start, assigned[0].value)
    return ""


def _rebound(source: Source, function: Function, name: str) -> bool:
    return any(source.function_of(store) is function for store in source.names.stores(name))


def origin(source: Source, expression: ast.expr, depth: int = 8) -> ast.expr:
    """The expression that the value of `expression` is written in: follows variables bound once, defaults of
    parameters, attributes and class attributes as `Source.constant` does."""
    step: ast.expr | None = None
    match expression:
        case ast.Name():
            step = binding(source, expression)
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            owner = source.class_of(expression)
            facts = source.module_class(owner) if owner is not None else None
            assigned = facts.attributes.get(attr, []) if facts is not None else []
            if len(assigned) == 1:
                step = assigned[0].value
            elif facts is not None and not assigned:
                step = facts.constants.get(attr)
    return expression if step is None or depth == 0 else origin(source, step, depth - 1)


def is_literal(expression: ast.expr) -> bool:
    """Whether `expression` is written in numbers alone, so that another number can stand in its place."""
    return not any(isinstance(node, (ast.Name, ast.Attribute, ast.Call)) for node in ast.walk(expression))


def operations(source: Source, call: ast.Call) -> Iterator[tuple[Flow, Op]]:
    """Where a layer built by `call`, or the functional call itself, is applied in its class's forward."""
    place = source.method_of(call)
    flow = source.flow(place[0]) if place is not None else None
    if flow is not None:
        for op in flow.ops:
            if op.layer is call or op.node is call:
                yield flow, op
