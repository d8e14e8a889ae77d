"""Which weights of a file are initialised, by which statement, and with what distribution.

`events` runs a class's constructor abstractly, in order: calls of `nn.init`, in-place methods (`w.data.zero_()`),
assignments of `.data`, loops over `self.modules()` or `self.parameters()` with their `isinstance` tests,
`self.apply(f)`, and the helpers that these go through. `Initialisers` then says how each layer's tensors start. What
cannot be followed makes a tensor's start unknown; it never makes a guess.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.layers import CONTAINERS, CONVS, LINEARS, NN
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

INIT = "torch.nn.init."
DEPTH = 5

# Distributions ------------------------------------------------------------------------------------------------------


class Distribution(NamedTuple):
    """What a tensor is filled with: `zero`, `constant` (`mean`), `normal` (`mean`, `std`), `uniform` (`mean`, `std`),
    `xavier`, `kaiming` (`gain`, `mode`), `orthogonal` (`gain`), `default` (as torch built the layer) or `unknown`.

    Numbers that are not known are NaN.
    """

    kind: str
    mean: float = 0.0
    std: float = math.nan
    gain: float = math.nan
    mode: str = "fan_in"

    def second_moment(self, fan_in: int, fan_out: int) -> float | None:
        """E[w²] of a weight with these fans; None if it is not known."""
        match self.kind:
            case "zero" | "constant":
                moment = self.mean**2
            case "normal" | "uniform":
                moment = self.mean**2 + self.std**2
            case "xavier":
                moment = self.gain**2 * 2 / (fan_in + fan_out)
            case "kaiming":
                moment = self.gain**2 / {"fan_in": fan_in, "fan_out": fan_out}.get(self.mode, math.nan)
            case "orthogonal":
                moment = self.gain**2 / max(fan_in, fan_out)
            case "default":
                moment = 1 / (3 * fan_in)
            case _:
                return None
        return None if math.isnan(moment) else moment


UNKNOWN = Distribution("unknown")
DEFAULT = Distribution("default")
_GAINS = {"linear": 1.0, "sigmoid": 1.0, "relu": math.sqrt(2), "tanh": 5 / 3, "selu": 0.75}
_GAINS |= {f"conv{rank}d": 1.0 for rank in (1, 2, 3)} | {f"conv_transpose{rank}d": 1.0 for rank in (1, 2, 3)}


class _Reader:
    """Reads the arguments of one call."""

    def __init__(self, source: Source, call: ast.Call, offset: int = 0) -> None:
        self.source, self.call, self.offset = source, call, offset

    def number(self, name: str, position: int, default: float) -> float:
        argument = self.source.argument(self.call, name, position - self.offset)
        value = default if argument is None else self.source.constant(argument)
        return float(value) if isinstance(value, (int, float)) else math.nan

    def word(self, name: str, position: int, default: str) -> str:
        argument = self.source.argument(self.call, name, position - self.offset)
        value = default if argument is None else self.source.constant(argument)
        return value if isinstance(value, str) else ""

    def gain(self) -> float:
        argument = self.source.argument(self.call, "gain", 1 - self.offset)
        if isinstance(argument, ast.Call) and self.source.is_any(argument.func, INIT + "calculate_gain"):
            inner = _Reader(self.source, argument)
            return _gain(inner.word("nonlinearity", 0, ""), inner.number("param", 1, 0.01))
        return self.number("gain", 1, 1.0)


def _gain(nonlinearity: str, slope: float) -> float:
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + slope**2))
    return _GAINS.get(nonlinearity, math.nan)


def _normal(mean: float, std: float) -> Distribution:
    return Distribution("zero") if mean == 0 and std == 0 else Distribution("normal", mean, std)


def _uniform(low: float, high: float) -> Distribution:
    return Distribution("uniform", (low + high) / 2, abs(high - low) / math.sqrt(12))


def _constant(value: float) -> Distribution:
    return Distribution("zero" if value == 0 else "constant", value)


def _filled(name: str, arguments: _Reader) -> Distribution:
    """The distribution of the initialiser `name` (`xavier_uniform_`, `fill_`); arguments count from the tensor."""
    number = arguments.number
    match name.rstrip("_"):
        case "zeros" | "zero":
            return Distribution("zero")
        case "ones":
            return _constant(1.0)
        case "constant":
            return _constant(number("val", 1, math.nan))
        case "fill":
            return _constant(number("value", 1, math.nan))
        case "normal":
            return _normal(number("mean", 1, 0.0), number("std", 2, 1.0))
        case "trunc_normal":
            mean, std = number("mean", 1, 0.0), number("std", 2, 1.0)
            near = number("a", 3, -2.0) <= mean - 2 * std and number("b", 4, 2.0) >= mean + 2 * std
            return _normal(mean, std) if near else UNKNOWN
        case "uniform":
            return _uniform(number("a", 1, 0.0), number("b", 2, 1.0))
        case "xavier_uniform" | "xavier_normal":
            return Distribution("xavier", gain=arguments.gain())
        case "kaiming_uniform" | "kaiming_normal":
            gain = _gain(arguments.word("nonlinearity", 3, "leaky_relu"), number("a", 1, 0.0))
            return Distribution("kaiming", gain=gain, mode=arguments.word("mode", 2, "fan_in"))
        case "orthogonal":
            return Distribution("orthogonal", gain=arguments.gain())
    return UNKNOWN


def _created(source: Source, value: ast.expr) -> Distribution:
    """The distribution of a tensor that an expression makes: `torch.zeros(…)`, `0.01 * torch.randn(…)`."""
    match value:
        case ast.Call(func=function, args=[inner, *_]) if source.is_any(function, "torch.nn.Parameter"):
            return _created(source, inner)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            for factor, tensor in ((left, right), (right, left)):
                scale, made = source.constant(factor), _created(source, tensor)
                if isinstance(scale, (int, float)) and made.kind in ("normal", "uniform", "zero", "constant"):
                    mean, std = made.mean * scale, made.std * abs(scale)
                    return _constant(mean) if made.kind in ("zero", "constant") else made._replace(mean=mean, std=std)
        case ast.Call():
            names = source.resolve(value.func)
            tail = next(iter(names)).removeprefix("torch.") if len(names) == 1 else ""
            match tail.removesuffix("_like"):
                case "zeros":
                    return Distribution("zero")
                case "ones":
                    return _constant(1.0)
                case "full":
                    return _constant(_Reader(source, value).number("fill_value", 1, math.nan))
                case "randn":
                    return _normal(0.0, 1.0)
                case "rand":
                    return _uniform(0.0, 1.0)
    return UNKNOWN


# Writes -------------------------------------------------------------------------------------------------------------


class Write(NamedTuple):
    """One statement or call that fills a tensor. `tensor`: the expression that names it (`m.weight`), without `.data`.

    `owner` and `name` are its two halves (`m`, `weight`); for a plain variable, `owner` is the variable and `name` is
    empty. `partial`: it fills only a part.
    """

    node: ast.Call | ast.stmt
    tensor: ast.expr
    owner: ast.expr
    name: str
    distribution: Distribution


_NO_WRITES = {"requires_grad_", "detach_", "share_memory_"}


def write_of(source: Source, node: ast.AST) -> Write | None:
    """What `node`, a call or an assignment, fills; None if it fills nothing.

    A call that ends in `_` on a tensor counts even where its effect is not known (`m.weight.copy_(other)`).
    """
    match node:
        case ast.Call(func=ast.Attribute(value=receiver, attr=attr)) if not source.resolve(node.func):
            if attr.endswith("_") and not attr.startswith("_") and attr not in _NO_WRITES:
                return _write(source, node, receiver, _filled(attr, _Reader(source, node, offset=1)))
        case ast.Call(func=function, args=[tensor, *_]):
            names = source.resolve(function)
            tails = {name.rpartition(".")[2] for name in names}
            if names and all(name.startswith(INIT) for name in names):
                made = {_filled(tail, _Reader(source, node)) for tail in tails}
                return _write(source, node, tensor, made.pop() if len(made) == 1 else UNKNOWN)
            if tails == {"trunc_normal_"}:  # timm's and its copies
                return _write(source, node, tensor, _filled("trunc_normal_", _Reader(source, node)))
            if _tail(function).endswith("_") and not _tail(function).endswith("__"):
                return _write(source, node, tensor, UNKNOWN)
        case ast.Assign(targets=[ast.Attribute(value=tensor, attr="data")], value=value):
            return _write(source, node, tensor, _created(source, value))
        case ast.Assign(targets=[ast.Subscript(value=tensor)]):
            return _write(source, node, tensor, UNKNOWN) if _is_tensor_name(_stripped(tensor)[0]) else None
        case ast.Assign(targets=[ast.Attribute(attr="weight" | "bias") as tensor], value=value):
            return _write(source, node, tensor, _created(source, value))
        case ast.AugAssign(target=ast.Attribute() as tensor) if _is_tensor_name(_stripped(tensor)[0]):
            return _write(source, node, tensor, UNKNOWN)
    return None


def weight_kinds(source: Source) -> frozenset[str]:
    """The kinds of all known distributions that the file fills tensors with, biases left out."""
    nodes: list[ast.AST] = [*source.calls_ending("_")]
    nodes += [node for node in source.tree.all(ast.Assign) if _may_fill(node.targets[0])]
    writes = [write for node in nodes if (write := write_of(source, node)) is not None]
    return frozenset(write.distribution.kind for write in writes if write.name != "bias") - {UNKNOWN.kind}


def _may_fill(target: ast.expr) -> bool:
    if target.__class__ is ast.Attribute:
        return target.attr in ("data", "weight", "bias")  # type: ignore[attr-defined]
    return target.__class__ is ast.Subscript


def _write(source: Source, node: ast.Call | ast.stmt, tensor: ast.expr, made: Distribution) -> Write | None:
    tensor, partial = _stripped(tensor)
    made = UNKNOWN if partial else made
    match tensor:
        case ast.Attribute(value=owner, attr=name):
            return Write(node, tensor, owner, name, made)
        case ast.Name():
            return Write(node, tensor, tensor, "", made)
    return None


def _stripped(tensor: ast.expr) -> tuple[ast.expr, bool]:
    """The tensor under `.data`, `.detach()` and indices, and whether there was an index."""
    match tensor:
        case (
            ast.Attribute(value=inner, attr="data") | ast.Call(func=ast.Attribute(value=inner, attr="detach"), args=[])
        ):
            return _stripped(inner)
        case ast.Subscript(value=inner) if isinstance(_stripped(inner)[0], ast.Attribute) and _is_tensor_name(
            _stripped(inner)[0]
        ):
            return _stripped(inner)[0], True
    return tensor, False


def _is_tensor_name(tensor: ast.expr) -> bool:
    return isinstance(tensor, ast.Attribute) and tensor.attr.startswith(("weight", "bias"))


def _tail(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


# Which layers a variable stands for ---------------------------------------------------------------------------------


class Test(NamedTuple):
    """One condition on a layer (`isinstance`, or a text in its class name) or on a parameter (a text in its name, at
    least so many dimensions). `known` False: a condition that is not understood."""

    on: str
    names: frozenset[str] = frozenset()
    negated: bool = False

    def holds(self, kind: str, tensor: str) -> bool | None:
        """For the parameter `tensor` of a layer of class `kind`; None if it cannot be told."""
        truth = self._plain(kind, tensor)
        return truth if truth is None else truth is not self.negated

    def _plain(self, kind: str, tensor: str) -> bool | None:
        tail = kind.rpartition(".")[2]
        match self.on:
            case "type":
                return None if "" in self.names else any(_is_a(kind, name) for name in self.names)
            case "class name":
                return any(name in tail for name in self.names)
            case "class name is":
                return tail in self.names
            case "parameter name":
                return True if any(name == tensor for name in self.names) else _absent(self.names, tensor)
            case "matrix":
                return tensor == "weight" if kind in LINEARS | CONVS else None
            case "has":
                return True if self.names <= {"weight"} and kind in LINEARS | CONVS else None
        return None


def _is_a(kind: str, name: str) -> bool:
    if kind == name or name == NN + "Module":
        return True
    if name in (NN + "_ConvNd", NN + "conv._ConvNd") or name.endswith("conv._ConvNd"):
        return kind in CONVS
    return name == "torch.nn.modules.Module"


def _absent(names: frozenset[str], tensor: str) -> bool | None:
    """Whether none of `names` can be in a parameter's full path, whose last part is `tensor`."""
    return False if all(name in ("weight", "bias") for name in names) else None


class Reach(NamedTuple):
    """The layers that a variable may stand for: those built by `calls`, or (None) all below the object.

    `deep`: with everything inside them. `parameters`: the variable is one of their parameters, not the layer.
    """

    calls: frozenset[ast.Call] | None
    deep: bool = False
    parameters: bool = False
    tests: tuple[Test, ...] = ()
    itself: bool = False

    def narrowed(self, test: Test) -> Reach:
        return self._replace(tests=(*self.tests, test))


class Event(NamedTuple):
    """A write that happens while an object is constructed. `certain`: on every path."""

    write: Write
    reach: Reach
    certain: bool

    def hits(self, call: ast.Call, kind: str, tensor: str, below: frozenset[ast.Call]) -> bool | None:
        """Whether it fills `tensor` of the layer that `call` builds; `below`: constructions that `call` is part of."""
        if self.reach.itself or (not self.reach.parameters and self.write.name not in (tensor, "")):
            return False
        if self.reach.calls is not None and call not in self.reach.calls:
            inside = self.reach.deep and bool(below & self.reach.calls)
            if not inside:
                return False
        truths = [test.holds(kind, tensor) for test in self.reach.tests]
        if False in truths:
            return False
        return None if None in truths or not self.certain else True

    def could_fill(self, kind: str) -> bool:
        """Whether its tests let it reach the weight of a layer of this kind."""
        return all(test.holds(kind, "weight") is not False for test in self.reach.tests)


Body = Sequence[ast.stmt]
Environment = dict[str, Reach]


class _Run:
    """An abstract run of one class's construction."""

    def __init__(self, source: Source, facts: ModuleClass | None) -> None:
        self.source = source
        self.facts = facts
        self.events: list[Event] = []
        self.entered: set[Function] = set()
        self.paths: dict[str, str] = {}  # the variable that holds a name → the one that holds the object
        self.certain = True
        self.depth = 0

    def body(self, statements: Body, env: Environment) -> None:
        for statement in statements:
            self.statement(statement, env)

    def statement(self, statement: ast.stmt, env: Environment) -> None:
        match statement:
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__")), body=body):
                self.body(body, env)
            case ast.If(test=test, body=body, orelse=orelse):
                self.branch(test, body, orelse, env)
            case ast.For(target=target, iter=iterable, body=body):
                self.expressions(iterable, env)
                self.loop(target, iterable, body, env)
            case ast.With(body=body) | ast.Try(body=body):
                self.body(body, env)
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                return
            case ast.While(body=body):
                self.unsure(body, env)
            case _:
                self.simple(statement, env)

    def simple(self, statement: ast.stmt, env: Environment) -> None:
        self.expressions(statement, env)
        write = write_of(self.source, statement)
        if write is not None:
            self.note(write, env)
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                env.pop(name, None)
                reach = self.reach(value, env)
                if reach is not None:
                    env[name] = reach

    def expressions(self, node: ast.AST, env: Environment) -> None:
        """The calls in one statement, innermost first."""
        for call in reversed([inner for inner in walk(node) if isinstance(inner, ast.Call)]):
            before = self.certain
            self.certain = before and not self.conditional(call, node)
            write = write_of(self.source, call)
            if write is not None:
                self.note(write, env)
            else:
                self.call(call, env)
            self.certain = before

    def conditional(self, call: ast.Call, node: ast.AST) -> bool:
        """Whether an expression inside `node` decides whether `call` happens."""
        for above in self.source.tree.ancestors(call):
            if isinstance(above, (ast.IfExp, ast.BoolOp)):
                return True
            if above is node:
                return False
        return False

    def note(self, write: Write, env: Environment) -> None:
        reach = self.reach(write.owner, env)
        if reach is None:
            return
        if write.name == "" and not reach.parameters:
            return
        self.events.append(Event(write, reach, self.certain))

    # Control flow

    def branch(self, test: ast.expr, body: Body, orelse: Sequence[ast.stmt], env: Environment) -> None:
        narrowing = self.tests(test, env)
        if narrowing is None:
            self.unsure(body, env)
            self.unsure(orelse, env)
            return
        for statements, negated in ((body, False), (orelse, True)):
            inner = dict(env)
            if negated and len(narrowing) > 1:  # not (a and b): neither is known
                inner.update({name: env[name].narrowed(Test("?")) for name, _ in narrowing})
            else:
                for name, item in narrowing:
                    inner[name] = inner[name].narrowed(item._replace(negated=item.negated is not negated))
            self.body(statements, inner)
        if body and isinstance(body[-1], (ast.Continue, ast.Return, ast.Raise)):
            for name, item in narrowing:
                env[name] = env[name].narrowed(
                    item._replace(negated=not item.negated) if len(narrowing) == 1 else Test("?")
                )

    def unsure(self, body: Body, env: Environment) -> None:
        before, self.certain = self.certain, False
        self.body(body, dict(env))
        self.certain = before

    def tests(self, test: ast.expr, env: Environment) -> list[tuple[str, Test]] | None:
        """A condition as tests on variables, all of which must hold; None if it is about something else."""
        match test:
            case ast.BoolOp(op=ast.And(), values=values):
                parts = [self.tests(value, env) for value in values]
                known = [item for part in parts if part is not None for item in part]
                if any(part is None for part in parts):
                    return [*known, *[(name, Test("?")) for name, _ in known[:1]]] if known else None
                return known
            case ast.BoolOp(op=ast.Or(), values=values):
                each = [self.tests(value, env) for value in values]
                single = [part[0] for part in each if part is not None and len(part) == 1]
                if len(single) == len(values) and len({(name, item.on, item.negated) for name, item in single}) == 1:
                    name, first = single[0]
                    return [(name, first._replace(names=frozenset().union(*[item.names for _, item in single])))]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.tests(operand, env)
                if inner is not None and len(inner) == 1:
                    return [(inner[0][0], inner[0][1]._replace(negated=not inner[0][1].negated))]
            case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), types]) if name in env:
                return [(name, Test("type", self.types(types)))]
            case ast.Compare(left=ast.Call(func=ast.Name(id="type"), args=[ast.Name(id=name)]), comparators=[types]):
                if name in env and isinstance(test.ops[0], (ast.Eq, ast.In, ast.Is)):
                    return [(name, Test("type", self.types(types)))]
            case ast.Call(func=ast.Name(id="hasattr"), args=[ast.Name(id=name), ast.Constant(value=str() as attr)]):
                return [(name, Test("has", frozenset([attr])))] if name in env else None
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.comparison(left, op, right, env)
        return None

    def comparison(
        self, left: ast.expr, op: ast.cmpop, right: ast.expr, env: Environment
    ) -> list[tuple[str, Test]] | None:
        match left, op, right:
            case ast.Constant(value=str() as text), ast.In() | ast.NotIn(), text_of:
                found = self.name_text(text_of, env)
                return [(found[0], Test(found[1], frozenset([text]), isinstance(op, ast.NotIn)))] if found else None
            case ast.Call(
                func=ast.Attribute(value=text_of, attr="find"), args=[ast.Constant(value=str() as text)]
            ), _, _:
                found = self.name_text(text_of, env)
                minus_one = isinstance(right, ast.UnaryOp) and isinstance(op, ast.NotEq)
                return [(found[0], Test(found[1], frozenset([text])))] if found and minus_one else None
            case text_of, ast.Eq(), ast.Constant(value=str() as text):
                found = self.name_text(text_of, env)
                return [(found[0], Test(found[1] + " is", frozenset([text])))] if found else None
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="dim"), args=[]
            ), ast.Gt() | ast.GtE(), bound:
                least = {ast.Gt: 1, ast.GtE: 2}[type(op)]
                if name in env and self.source.constant(bound) == least:
                    return [(name, Test("matrix"))]
            case ast.Attribute(value=ast.Name(id=name), attr="bias"), ast.IsNot(), ast.Constant(value=None):
                return [(name, Test("type", frozenset([NN + "Module"])))] if name in env else None
        return None

    def name_text(self, text: ast.expr, env: Environment) -> tuple[str, str] | None:
        """The variable whose class name or parameter name `text` is, and which of them."""
        match text:
            case ast.Name(id=name) if name in self.paths and self.paths[name] in env:
                owner = self.paths[name]
                return owner, "parameter name" if env[owner].parameters else "?"
            case ast.Name():
                from auditor.static.constants import binding

                bound = binding(self.source, text)
                return self.name_text(bound, env) if bound is not None and not isinstance(bound, ast.Name) else None
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id=name), attr="__class__"), attr="__name__"):
                return (name, "class name") if name in env else None
            case ast.Attribute(value=ast.Call(func=ast.Name(id="type"), args=[ast.Name(id=name)]), attr="__name__"):
                return (name, "class name") if name in env else None
        return None

    def types(self, types: ast.expr) -> frozenset[str]:
        """The classes of an isinstance test; `""` among them for one that is not known."""
        match types:
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                return frozenset().union(*[self.types(element) for element in elements])
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self.types(left) | self.types(right)
        names = self.source.resolve(types)
        if not names and isinstance(types, ast.Name):
            from auditor.static.constants import binding

            bound = binding(self.source, types)
            return self.types(bound) if isinstance(bound, ast.Tuple) else frozenset([""])
        return names if len(names) == 1 else frozenset([""])

    # Loops

    def loop(self, target: ast.expr, iterable: ast.expr, body: Body, env: Environment) -> None:
        inner = dict(env)
        reach = self.iterated(iterable, env)
        names = [item.id for item in walk(target) if isinstance(item, ast.Name)]
        for name in names:
            inner.pop(name, None)
        if reach is not None and names:
            inner[names[-1]] = reach
            if len(names) == 2:
                self.paths[names[0]] = names[1]
        self.body(body, inner)

    def iterated(self, iterable: ast.expr, env: Environment) -> Reach | None:
        match iterable:
            case ast.Call(func=ast.Name(id="enumerate" | "list" | "reversed" | "zip" | "tuple"), args=[first, *_]):
                return self.iterated(first, env)
            case ast.Call(func=ast.Attribute(value=inner, attr="modules" | "named_modules"), args=[]):
                return self._all(inner, env)
            case ast.Call(func=ast.Attribute(value=inner, attr="parameters" | "named_parameters")):
                reach = self._all(inner, env)
                return None if reach is None else reach._replace(parameters=True)
            case ast.Call(func=ast.Attribute(value=inner, attr="children" | "named_children" | "values" | "items")):
                return self.members(inner, env)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                parts = [self.reach(element, env) for element in elements]
                return _union(parts)
        return self.members(iterable, env)

    def _all(self, inner: ast.expr, env: Environment) -> Reach | None:
        reach = self.reach(inner, env)
        if reach is None or reach.tests:
            return None
        return Reach(None, deep=True) if reach.itself else reach._replace(deep=True)

    def members(self, container: ast.expr, env: Environment) -> Reach | None:
        """The layers directly inside a container, or inside `self`."""
        reach = self.reach(container, env)
        if reach is None or reach.tests:
            return None
        if reach.itself:
            held = self.facts.attributes.values() if self.facts else ()
            return Reach(frozenset(call for items in held for item in items for call in self.held(item.value)))
        return reach._replace(calls=frozenset(inner for call in reach.calls or () for inner in self.inside(call)))

    def top(self, value: ast.expr) -> list[ast.Call]:
        return [value] if isinstance(value, ast.Call) and self.source.layer_kind(value) else []

    def inside(self, call: ast.Call) -> list[ast.Call]:
        """The constructions directly inside a container's construction."""
        if self.source.layer_kind(call) not in CONTAINERS:
            return []
        found: list[ast.Call] = []
        todo: list[ast.AST] = [*call.args]
        while todo:
            node = todo.pop(0)
            if isinstance(node, ast.Call) and self.source.layer_kind(node):
                found.append(node)
            else:
                todo += ast.iter_child_nodes(node)
        return found

    # Expressions

    def reach(self, expression: ast.expr, env: Environment) -> Reach | None:
        """The layers that an expression stands for; None if not known."""
        match expression:
            case ast.Name(id=name):
                return env.get(name)
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in env and env[name].itself:
                held = self.facts.attributes.get(attr, []) if self.facts else []
                calls = frozenset(call for item in held for call in self.held(item.value))
                return Reach(calls) if calls else None
            case ast.Subscript(value=inner, slice=index):
                reach = self.reach(inner, env)
                if reach is None or reach.calls is None:
                    return None
                members = [item for call in reach.calls for item in self.inside(call)]
                position = self.source.constant(index)
                plain = all(isinstance(argument, ast.Call) for call in reach.calls for argument in call.args)
                if (
                    isinstance(position, int)
                    and plain
                    and len(reach.calls) == 1
                    and -len(members) <= position < len(members)
                ):
                    return Reach(frozenset([members[position]]))
                return Reach(frozenset(members), tests=(Test("?"),)) if members else None
            case ast.Call() if self.source.layer_kind(expression):
                return Reach(frozenset([expression]))
        return None

    def held(self, value: ast.expr) -> list[ast.Call]:
        """The construction that an attribute's value is, also through one variable."""
        if isinstance(value, ast.Name):
            from auditor.static.constants import binding

            bound = binding(self.source, value)
            return self.held(bound) if bound is not None and not isinstance(bound, ast.Name) else []
        if isinstance(value, ast.ListComp):
            return self.held(value.elt)
        if isinstance(value, ast.List):
            return [call for element in value.elts for call in self.held(element)]
        if isinstance(value, ast.Call) and not self.source.layer_kind(value) and len(value.args) >= 1:
            return self.held(value.args[0])  # init_(nn.Linear(…)), spectral_norm(nn.Conv2d(…))
        return self.top(value)

    def call(self, call: ast.Call, env: Environment) -> None:
        """A call that may initialise something inside: `apply`, a method of the class, a function of the file."""
        function = call.func
        match function:
            case ast.Attribute(value=inner, attr="apply") if len(call.args) == 1:
                reach = self._all(inner, env)
                if reach is not None:
                    self.applied(call.args[0], reach, env)
                return
            case ast.Attribute(value=ast.Name(id=name), attr="post_init") if name in env and env[name].itself:
                method = self.method("_init_weights")
                if method is not None:
                    self.enter(method, [Reach(None, itself=True), Reach(None, deep=True)])
                return
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in env and env[name].itself:
                method = self.method(attr)
                if method is not None and attr != "forward":
                    self.enter(method, [Reach(None, itself=True), *self.arguments(call, env)], call)
                return
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attr):
                owner = self.source.class_of(call)
                facts = self.source.module_class(owner) if owner else None
                for parent in facts.ancestors if facts else ():
                    if attr in parent.methods:
                        self.enter(parent.methods[attr], [Reach(None, itself=True), *self.arguments(call, env)], call)
                        return
        definition = self.function(function)
        if definition is not None:
            self.enter(definition, self.arguments(call, env), call)

    def method(self, name: str) -> Function | None:
        return self.facts.method(name) if self.facts else None

    def arguments(self, call: ast.Call, env: Environment) -> list[Reach | None]:
        return [self.reach(argument, env) for argument in call.args]

    def function(self, function: ast.expr) -> Function | None:
        """The function of this file that a name stands for, if there is one."""
        names = self.source.resolve(function)
        found = self.source.names.definitions.get(next(iter(names)), []) if len(names) == 1 else []
        if isinstance(function, ast.Name) and not found:
            found = [
                node
                for node in self.source.tree.all(ast.FunctionDef)
                if node.name == function.id and self.source.function_of(node) is self.source.function_of(function)
            ]
        return found[0] if len(found) == 1 and isinstance(found[0], ast.FunctionDef) else None

    def applied(self, argument: ast.expr, reach: Reach, env: Environment) -> None:
        """`x.apply(argument)`."""
        match argument:
            case ast.Lambda(args=ast.arguments(args=[parameter]), body=body):
                self.expressions(body, {**env, parameter.arg: reach})
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in env and env[name].itself:
                method = self.method(attr)
                if method is not None:
                    static = any(
                        isinstance(item, ast.Name) and item.id == "staticmethod" for item in method.decorator_list
                    )
                    self.enter(method, [reach] if static else [Reach(None, itself=True), reach])
            case ast.Call(func=function, args=[inner, *_]) if self.source.is_any(function, "functools.partial"):
                self.applied(inner, reach, env)
            case ast.Name() | ast.Attribute():
                definition = self.function(argument)
                if definition is not None:
                    self.enter(definition, [reach])

    def enter(self, function: Function, values: Sequence[Reach | None], call: ast.Call | None = None) -> None:
        """The body of a function of the file, with what its first parameters stand for."""
        if self.depth >= DEPTH:
            return
        self.entered.add(function)
        parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        env = {name: value for name, value in zip(parameters, values, strict=False) if value is not None}
        self.depth += 1
        self.body(function.body, env)
        self.depth -= 1


def _union(parts: Sequence[Reach | None]) -> Reach | None:
    known = [part for part in parts if part is not None and part.calls is not None and not part.tests]
    if not known or len(known) != len(parts):
        return None
    return Reach(frozenset().union(*[part.calls or frozenset() for part in known]))


# One class ------------------------------------------------------------------------------------------------------------


class Initialisers:
    """How the weight layers that one module class constructs start, as far as this file says."""

    def __init__(self, source: Source, facts: ModuleClass) -> None:
        self.source = source
        self.facts = facts

    @cached_property
    def events(self) -> list[Event]:
        """Every write that may reach a layer of the class, in order: by its own constructor, by methods that nothing
        here calls (never certain), by the classes that hold it, by functions that build one of these."""
        found = events(self.source, self.facts)
        for owner in owners(self.source, self.facts):
            found += [event for event in events(self.source, owner) if event.reach.deep]
        return found + _outside(self.source)

    @cached_property
    def _constructions(self) -> frozenset[ast.Call]:
        """The calls of the file that construct the class, or one that holds it."""
        names = {self.facts.name, *[owner.name for owner in owners(self.source, self.facts)]}
        return frozenset(call for call in self.source.calls_named(*names) if self.source.layer_kind(call) in names)

    def start(self, layer: ast.Call, tensor: str = "weight") -> tuple[Distribution, Write | None]:
        """What `tensor` of the layer constructed by `layer` holds at the start, and the write that put it there."""
        start: tuple[Distribution, Write | None] = (UNKNOWN if self.facts.has_unseen_base else DEFAULT, None)
        kind = self.source.layer_kind(layer)
        below = self._constructions | {call for call in self.source.tree.ancestors(layer) if isinstance(call, ast.Call)}
        for event in self.events:
            hit = event.hits(layer, kind, tensor, below)
            if hit:
                start = event.write.distribution, event.write
            elif hit is None:
                start = UNKNOWN, None
        return start


def events(source: Source, facts: ModuleClass) -> list[Event]:
    """The writes that constructing an object of the class makes, in order."""
    run = _Run(source, facts)
    constructor = facts.method("__init__")
    itself = Reach(None, itself=True)
    if constructor is not None:
        run.enter(constructor, [itself])
    run.certain = False
    for holder in (facts, *facts.ancestors):
        for name, method in holder.methods.items():
            if method not in run.entered and facts.method(name) is method and name != "forward":
                run.enter(method, [itself, *[Reach(None, deep=True) for _ in method.args.args[1:2]]])
    return run.events


def owners(source: Source, facts: ModuleClass) -> list[ModuleClass]:
    """The module classes of the file that hold one of these, directly or not."""
    found: list[ModuleClass] = []
    names = {facts.name}
    grown = True
    while grown:
        grown = False
        for other in source.module_classes:
            if other is facts or other in found:
                continue
            if source.once(_kinds, other) & names:
                found.append(other)
                names.add(other.name)
                grown = True
    return found


def _kinds(source: Source, facts: ModuleClass) -> frozenset[str]:
    """The layers that the class holds in its attributes."""
    values = [attribute.value for assigned in facts.attributes.values() for attribute in assigned]
    calls = [node for value in values for node in walk(value) if isinstance(node, ast.Call)]
    return frozenset(source.layer_kind(call) for call in calls)


def _outside(source: Source) -> list[Event]:
    """The writes of functions and module-level code that build a model: `net = Net(); net.apply(init)`."""
    classes = {facts.name for facts in source.module_classes}
    run = _Run(source, None)
    scopes = {}
    for call in source.calls_named(*classes):
        if source.layer_kind(call) in classes and source.method_of(call) is None:
            scope = source.function_of(call) or source.tree.root
            scopes[scope] = scope.body
    for body in scopes.values():
        run.body(body, {})
    return run.events


# Spelling -------------------------------------------------------------------------------------------------------------


def spelled(source: Source, name: str) -> str:
    """How this file's imports spell a dotted name (`torch.nn.init.zeros_` → `nn.init.zeros_`); "" if they cannot."""
    for alias, meanings in sorted(source.names.aliases.items(), key=lambda item: (-len(min(item[1])), item[0])):
        (meaning, *more) = meanings
        if not more and (name == meaning or name.startswith(meaning + ".")):
            return alias + name.removeprefix(meaning)
    return ""
