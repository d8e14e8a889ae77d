"""The dropout rates that a file hands over: to which call, in which expression, and with what value."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.rule import span
from auditor.static.constants import binding
from auditor.static.layers import ATTENTION, CONVS, DROPOUTS, EMBEDDINGS, LINEARS, NN, RECURRENT, TRANSFORMERS
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.finding import Location
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.flow import Op
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
    **dict.fromkeys(DROPOUTS, ("p", 0)),
    **{name: ("dropout", 6 if name == NN + "RNN" else 5) for name in RECURRENT},
    **dict.fromkeys(ATTENTION, ("dropout", 2)),
    **{name: ("dropout", 5 if name == NN + "Transformer" else 3) for name in TRANSFORMERS},
}
for _stack in ("TransformerEncoder", "TransformerDecoder"):  # built from a layer; they take no rate
    del LAYERS[NN + _stack]


class Rate(NamedTuple):
    """A rate in a call. `kind`: dotted name of the layer or function called, or of a module class of the file.

    `value` is None where it cannot be known without running; `origin` is the expression that holds the number, such as
    a parameter's default, or the expression handed over itself.
    """

    call: ast.Call
    kind: str
    expression: ast.expr
    origin: ast.expr
    value: float | None

    def names(self, source: Source) -> list[str]:
        """The names that stand near it: in the expression, of the argument, of what the call is assigned to."""
        names = [keyword.arg or "" for keyword in self.call.keywords if keyword.value is self.expression]
        nodes = [*walk(self.expression)]
        statement = source.statement_of(self.call)
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            nodes += [node for target in targets for node in walk(target)]
        for node in nodes:
            names += [node.id] if isinstance(node, ast.Name) else [node.attr] if isinstance(node, ast.Attribute) else []
        return names


def rates(source: Source) -> Sequence[Rate]:
    """All rates handed over in the file: to torch's layers and functions, then to the file's own modules that hand them
    on, from a parameter of their constructor, to one of these."""
    return source.once(_rates)


def _rates(source: Source) -> tuple[Rate, ...]:
    return tuple(_handed_over(source))


def _handed_over(source: Source) -> Iterator[Rate]:
    found = deque(_torch_rates(source))
    known: set[tuple[str, str]] = set()
    while found:
        rate = found.popleft()
        yield rate
        place = source.method_of(rate.call)
        start = place[0].methods.get("__init__") if place is not None else None
        if place is None or start is None:
            continue
        facts, method = place
        parameter = _parameter_name(facts, start, method, rate.expression)
        if parameter and (facts.name, parameter) not in known:
            known.add((facts.name, parameter))
            for call in source.calls_to(facts.name):
                found += _rate(source, call, facts.name, source.argument(call, parameter, _position(start, parameter)))


def _torch_rates(source: Source) -> Iterator[Rate]:
    for call in source.calls_to(*LAYERS):
        kind = min(source.resolve(call.func))
        yield from _rate(source, call, kind, source.argument(call, *LAYERS[kind]))
    for call in source.calls_to(*FUNCTIONS):
        kind = min(source.resolve(call.func))
        name, position, switch, at = FUNCTIONS[kind]
        if not switch or source.constant(source.argument(call, switch, at)) is not False:
            yield from _rate(source, call, kind, source.argument(call, name, position))


def _rate(source: Source, call: ast.Call, kind: str, expression: object) -> Iterator[Rate]:
    if isinstance(expression, ast.expr):
        value = source.constant(expression)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        yield Rate(call, kind, expression, origin(source, expression), float(value) if number else None)


def _position(start: Function, parameter: str) -> int | None:
    """Where a constructor's parameter stands in a call."""
    names = [argument.arg for argument in (*start.args.posonlyargs, *start.args.args)][1:]
    return names.index(parameter) if parameter in names else None


def _parameter_name(facts: ModuleClass, start: Function, method: Function, expression: ast.expr) -> str:
    """The parameter of the constructor `start` that `expression`, standing in `method`, surely holds; "" if none."""
    match expression:
        case ast.Name(id=name) if method is start and _is_parameter(facts.source, start, name):
            return name
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            assigned = facts.own_attributes.get(attr, [])
            if len(assigned) == 1 and assigned[0].method is start and isinstance(assigned[0].value, ast.Name):
                return _parameter_name(facts, start, start, assigned[0].value)
    return ""


def _is_parameter(source: Source, function: Function, name: str) -> bool:
    """Whether `name` is a parameter of `function` that it never binds anew."""
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    stored = any(source.function_of(store) is function for store in source.names.stores(name))
    return not stored and any(argument.arg == name for argument in arguments)


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
    return not any(isinstance(node, (ast.Name, ast.Attribute, ast.Call)) for node in walk(expression))


def surroundings(source: Source, rate: Rate) -> tuple[str, int | None]:
    """What a rate acts on, and the width of that layer where it is a linear one of known width; in the words of
    `auditor.reference.dropout.advised_range`."""
    tail = rate.kind.rpartition(".")[2]
    if rate.kind in RECURRENT:
        return "a recurrent layer", None
    if rate.kind in ATTENTION | TRANSFORMERS or "attention" in tail:
        return "attention weights", None
    place = source.method_of(rate.call)
    flow = source.flow(place[0]) if place is not None else None
    op = next((op for op in flow.ops if rate.call in (op.layer, op.node)), None) if flow is not None else None
    if op is not None:
        return _behind(source, op)
    return "a convolution" if tail in ("Dropout2d", "Dropout3d", "dropout2d", "dropout3d") else "a hidden layer", None


def _behind(source: Source, op: Op) -> tuple[str, int | None]:
    user = op.only_user()
    if user is not None and isinstance(user.node, ast.BinOp) and isinstance(user.node.op, ast.Add):
        return "a residual branch", None
    flattened = False
    current = op.only_producer()
    while current is not None:
        if current.layer_kind in LINEARS and current.layer is not None:
            width = source.constant(source.argument(current.layer, "out_features", 1))
            return "linear", width if isinstance(width, int) else None
        if current.layer_kind in CONVS:
            return "pooled features" if flattened else "a convolution", None
        if current.layer_kind in RECURRENT:
            return "a recurrent layer", None
        if current.layer_kind in EMBEDDINGS:
            return "an embedding", None
        if "softmax" in (current.layer_kind or current.target).lower():
            return "attention weights", None
        flattened = flattened or current.target.endswith("flatten") or current.layer_kind == NN + "Flatten"
        current = current.only_producer() if current.kind != "unknown" else None
    return "a hidden layer", None


def written_at(source: Source, location: Location, value: float) -> ast.expr | None:
    """The literal that gives the call at `location` (of a run: a row only) its rate `value`; None if it is computed."""
    for rate in rates(source):
        at = span(rate.call, source.path)
        here = at == location or (not location.end_row and at.row <= location.row <= at.end_row)
        if here and rate.value == value and is_literal(rate.origin):
            return rate.origin
    return None
