"""How values flow through a module's `forward`: which layer or function is applied to what, and who uses the result.

An abstract run of the method: names hold sets of the operations they may come from, branches are joined, loops run
twice, `nn.Sequential` and `nn.ModuleList` are opened, helper methods of the same class are entered. Nothing is guessed:
what cannot be followed becomes an operation of kind `"unknown"`, which still uses its inputs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source


class Op:
    """One operation.

    `kind`: `input` (a parameter of forward) · `layer` (a submodule called; `target` is the attribute, `layer` its
    construction where it is known, `layer_kind` its dotted name) · `call` (`target` is a dotted function name) ·
    `method` (`target` is a tensor method's name) · `operator` · `index` · `output` (returned) · `unknown`.
    `inputs`: for each data argument (the receiver of a method first), the operations it may come from.
    """

    __slots__ = ("inputs", "kind", "layer", "layer_kind", "node", "target", "users")

    def __init__(
        self, kind: str, node: ast.AST, target: str = "", layer: ast.Call | None = None, layer_kind: str = ""
    ) -> None:
        self.kind = kind
        self.node = node
        self.target = target
        self.layer = layer
        self.layer_kind = layer_kind
        self.inputs: list[set[Op]] = []
        self.users: list[Op] = []

    @property
    def producers(self) -> set[Op]:
        """Every operation that any input may come from."""
        return {op for argument in self.inputs for op in argument}

    def only_user(self) -> Op | None:
        """The one operation that uses the result, if it is the only one."""
        return self.users[0] if len(self.users) == 1 else None

    def only_producer(self) -> Op | None:
        """The one operation that the first input comes from on every path."""
        return next(iter(self.inputs[0])) if self.inputs and len(self.inputs[0]) == 1 else None


Value = frozenset[Op]
NO_VALUE: Value = frozenset()
# Attributes of a tensor that say something about it without being its values.
_METADATA = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "names", "size", "dim", "numel"}


class _Layers(NamedTuple):
    """What a loop variable over a ModuleList, or an alias of a submodule, stands for."""

    attribute: str
    calls: tuple[ast.Call, ...]


class Flow:
    """The operations of one method of a module class, in the order they were first met."""

    def __init__(self, source: Source, owner: ModuleClass, method: Function) -> None:
        self.source = source
        self.owner = owner
        self.ops: list[Op] = []
        self.outputs: list[Op] = []
        self._known: dict[tuple[object, ...], Op] = {}
        self._context: tuple[object, ...] = ()
        self._depth = 0
        environment: dict[str, Value | _Layers] = {}
        for argument in _parameters(method)[1:]:
            environment[argument.arg] = frozenset([self._op("input", argument, argument.arg, [])])
        returned = self._body(method.body, environment)
        for value in returned:
            self.outputs += sorted(value, key=lambda op: self.ops.index(op))

    def layer_ops(self) -> list[Op]:
        return [op for op in self.ops if op.kind == "layer"]

    # Operations -----------------------------------------------------------------------------------------------------

    def _op(
        self,
        kind: str,
        node: ast.AST,
        target: str,
        inputs: Sequence[Value],
        layer: ast.Call | None = None,
        layer_kind: str = "",
    ) -> Op:
        key = (kind, node, layer, *self._context)
        op = self._known.get(key)
        if op is None:
            op = self._known[key] = Op(kind, node, target, layer, layer_kind)
            self.ops.append(op)
        for position, value in enumerate(inputs):
            if position == len(op.inputs):
                op.inputs.append(set())
            for producer in value:
                if producer not in op.inputs[position]:
                    op.inputs[position].add(producer)
                    if op not in producer.users:
                        producer.users.append(op)
        return op

    # Statements -----------------------------------------------------------------------------------------------------

    def _body(self, body: Sequence[ast.stmt], env: dict[str, Value | _Layers]) -> list[Value]:
        returned: list[Value] = []
        for statement in body:
            returned += self._statement(statement, env)
            if isinstance(statement, (ast.Return, ast.Raise)):
                break
        return returned

    def _statement(self, statement: ast.stmt, env: dict[str, Value | _Layers]) -> list[Value]:
        match statement:
            case ast.Return(value=value):
                result = self._value(value, env)
                return [frozenset([self._op("output", statement, "", [result])])] if not self._depth else [result]
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._assign(target, value, env)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, value, env)
            case ast.AugAssign(target=target, value=value):
                both = [self._value(target, env), self._value(value, env)]
                self._bind(target, self._some("operator", statement, "", both), env)
            case ast.Expr(value=value):
                self._value(value, env)
            case ast.If(test=test, body=body, orelse=orelse):
                self._value(test, env)
                return self._branches([body, orelse], env)
            case ast.For(target=target, iter=iterable, body=body, orelse=orelse):
                return self._loop(target, iterable, body, orelse, env)
            case ast.While(body=body, orelse=orelse):
                return self._branches([[*body, *body], []], env) + self._body(orelse, env)
            case ast.With(body=body):
                return self._body(body, env)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                paths = [[*body, *orelse], *[handler.body for handler in handlers]]
                return self._branches(paths, env) + self._body(final, env)
        return []

    def _branches(self, bodies: Iterable[Sequence[ast.stmt]], env: dict[str, Value | _Layers]) -> list[Value]:
        returned: list[Value] = []
        after = []
        for body in bodies:
            branch = dict(env)
            returned += self._body(body, branch)
            if not (body and isinstance(body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))):
                after.append(branch)
        if after:
            env.clear()
            env.update(_join(after))
        return returned

    def _loop(
        self,
        target: ast.expr,
        iterable: ast.expr,
        body: Sequence[ast.stmt],
        orelse: Sequence[ast.stmt],
        env: dict[str, Value | _Layers],
    ) -> list[Value]:
        layers = self._iterated_layers(iterable)
        returned: list[Value] = []
        rounds: list[tuple[ast.Call, ...]] = [(call,) for call in layers.calls] if layers else []
        name = _layer_variable(target, iterable)
        outer = self._context
        for index, calls in enumerate(rounds[:16] or [(), ()]):
            before = dict(env)
            if layers and name:
                env[name] = _Layers(layers.attribute, calls)
                self._context = (*outer, iterable, index)
            else:
                self._bind(target, self._value(iterable, env), env)
            returned += self._branches([body], env)
            if not rounds:
                merged = _join([before, env])
                env.clear()
                env.update(merged)
        self._context = outer
        return returned + self._body(orelse, env)

    def _iterated_layers(self, iterable: ast.expr) -> _Layers | None:
        """The submodules that `for layer in self.layers` goes through, in order."""
        match iterable:
            case ast.Call(func=ast.Name(id="enumerate" | "reversed" | "zip"), args=[first, *_]):
                return self._iterated_layers(first)
            case ast.Call(func=ast.Attribute(value=inner, attr="values" | "children")):
                return self._iterated_layers(inner)
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                held = self.owner.attributes.get(attr, [])
                if len(held) == 1:
                    calls = children(self.source, held[0].value)
                    return _Layers(attr, tuple(calls)) if calls else None
        return None

    def _assign(self, target: ast.expr, value: ast.expr, env: dict[str, Value | _Layers]) -> None:
        sequences = (ast.Tuple, ast.List)
        if isinstance(target, sequences) and isinstance(value, sequences) and len(target.elts) == len(value.elts):
            values = [self._value(item, env) for item in value.elts]
            for inner, inner_value in zip(target.elts, values, strict=True):
                self._bind(inner, inner_value, env)
            return
        if isinstance(target, ast.Name) and isinstance(value, ast.Attribute):
            match value:
                case ast.Attribute(value=ast.Name(id="self"), attr=attr) if self.owner.layers(attr):
                    env[target.id] = _Layers(attr, tuple(self._held(attr)))
                    return
        self._bind(target, self._value(value, env), env)

    def _bind(self, target: ast.expr, value: Value, env: dict[str, Value | _Layers]) -> None:
        match target:
            case ast.Name(id=name):
                env[name] = value
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for element in elements:
                    self._bind(element, value, env)
            case ast.Starred(value=inner):
                self._bind(inner, value, env)
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                env[f"self.{attr}"] = value
                self._some("unknown", target, attr, [value])
            case ast.Subscript(value=ast.Name(id=name)):
                held = env.get(name, NO_VALUE)
                env[name] = value | held if not isinstance(held, _Layers) else value
                self._some("unknown", target, "", [value])
            case _:
                self._some("unknown", target, "", [value])

    # Expressions ----------------------------------------------------------------------------------------------------

    def _some(self, kind: str, node: ast.AST, target: str, inputs: Sequence[Value]) -> Value:
        """An operation, if any of its inputs comes from one."""
        return frozenset([self._op(kind, node, target, inputs)]) if any(inputs) else NO_VALUE

    def _value(self, node: ast.AST | None, env: dict[str, Value | _Layers]) -> Value:
        match node:
            case None | ast.Constant() | ast.Lambda():
                return NO_VALUE
            case ast.Name(id=name):
                value = env.get(name, NO_VALUE)
                return NO_VALUE if isinstance(value, _Layers) else value
            case ast.Call():
                return self._call(node, env)
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                value = env.get(f"self.{attr}", NO_VALUE)
                return NO_VALUE if isinstance(value, _Layers) else value
            case ast.Attribute(value=inner, attr=attr):
                value = self._value(inner, env)
                return NO_VALUE if attr in _METADATA else value
            case ast.BinOp(left=left, right=right):
                return self._some("operator", node, "", [self._value(left, env), self._value(right, env)])
            case ast.UnaryOp(operand=operand):
                return self._some("operator", node, "", [self._value(operand, env)])
            case ast.BoolOp(values=values):
                return frozenset().union(*[self._value(value, env) for value in values])
            case ast.Compare(left=left, comparators=comparators):
                return self._some("operator", node, "", [self._value(item, env) for item in (left, *comparators)])
            case ast.Subscript(value=inner, slice=index):
                return self._some("index", node, "", [self._value(inner, env), self._value(index, env)])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self._value(test, env)
                return self._value(body, env) | self._value(orelse, env)
            case ast.NamedExpr(target=target, value=inner):
                value = self._value(inner, env)
                self._bind(target, value, env)
                return value
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                return self._comprehension(node, env)
            case ast.expr():
                parts = [self._value(part, env) for part in ast.iter_child_nodes(node)]
                return frozenset().union(*parts) if parts else NO_VALUE
            case ast.keyword(value=inner):
                return self._value(inner, env)
        return NO_VALUE

    def _comprehension(
        self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp, env: dict[str, Value | _Layers]
    ) -> Value:
        inner = dict(env)
        for generator in node.generators:
            layers, name = self._iterated_layers(generator.iter), _layer_variable(generator.target, generator.iter)
            if layers and name:
                inner[name] = layers
            else:
                self._bind(generator.target, self._value(generator.iter, inner), inner)
        if isinstance(node, ast.DictComp):
            return self._value(node.value, inner)
        return self._value(node.elt, inner)

    def _call(self, call: ast.Call, env: dict[str, Value | _Layers]) -> Value:
        values = [self._value(argument, env) for argument in (*call.args, *call.keywords)]
        function = call.func
        match function:
            case ast.Name(id=name) if isinstance(held := env.get(name), _Layers):
                return self._layers(call, held.attribute, held.calls, values)
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                method = self.owner.method(attr)
                if method is not None and not self.owner.layers(attr):
                    return self._enter(call, method, values, env)
                return self._layers(call, attr, self._held(attr), values)
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id="self"), attr=attr)):
                return self._layers(call, attr, [], values)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attr):
                for parent in self.owner.ancestors:
                    if attr in parent.methods:
                        return self._enter(call, parent.methods[attr], values, env)
                return self._some("unknown", call, attr, values)
        names = self.source.resolve(function)
        if len(names) == 1:
            (name,) = names
            if self.source.layer_kind(call):
                return self._some("unknown", call, name, values)
            return self._some("call", call, name, values)
        if isinstance(function, ast.Call) and self.source.layer_kind(function):  # nn.Softmax(dim=1)(x)
            return self._layers(call, "", [function], values)
        if isinstance(function, ast.Attribute):
            receiver = self._value(function.value, env)
            if function.attr in _METADATA:
                return NO_VALUE
            return self._some("method", call, function.attr, [receiver, *values])
        return self._some("unknown", call, "", values)

    def _held(self, attribute: str) -> list[ast.Call]:
        """The construction that `self.attribute` holds, if there is exactly one that surely does."""
        held = self.owner.attributes.get(attribute, [])
        if len(held) == 1 and self.source.layer_kind(held[0].value) and isinstance(held[0].value, ast.Call):
            return [held[0].value]
        return []

    def _layers(self, call: ast.Call, attribute: str, held: Sequence[ast.Call], values: Sequence[Value]) -> Value:
        """A submodule called; a Sequential becomes the chain of its layers."""
        if len(held) != 1:
            return self._some("layer", call, attribute, values)
        chain = _opened(self.source, held[0])
        result = list(values)
        outer = self._context
        for position, layer in enumerate(chain):
            if layer in chain[:position]:  # the element of a comprehension once more: an operation of its own
                self._context = (*outer, position)
            kind = self.source.layer_kind(layer)
            result = [
                self._some("layer", call, attribute, result)
                if not kind
                else frozenset([self._op("layer", call, attribute, result, layer, kind)])
                if any(result)
                else NO_VALUE
            ]
            self._context = outer
        return result[0] if result else NO_VALUE

    def _enter(
        self, call: ast.Call, method: Function, values: Sequence[Value], env: dict[str, Value | _Layers]
    ) -> Value:
        """The result of a helper method of the same class, its body followed with the arguments given."""
        if self._depth >= 4 or any(method is item for item in self._context):
            return self._some("unknown", call, method.name, values)
        inner: dict[str, Value | _Layers] = {key: held for key, held in env.items() if key.startswith("self.")}
        parameters = _parameters(method)
        static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in method.decorator_list)
        names = [parameter.arg for parameter in parameters][0 if static else 1 :]
        inner.update(zip(names, values[: len(call.args)], strict=False))
        for keyword, value in zip(call.keywords, values[len(call.args) :], strict=True):
            if keyword.arg:
                inner[keyword.arg] = value
        outer, self._context = self._context, (*self._context, call, method)
        self._depth += 1
        returned = self._body(method.body, inner)
        self._depth -= 1
        self._context = outer
        env.update({key: held for key, held in inner.items() if key.startswith("self.")})
        return frozenset().union(*returned) if returned else NO_VALUE


def children(source: Source, value: ast.expr | None) -> list[ast.Call]:
    """The layer constructions directly inside a container expression, in order: the elements of a Sequential,
    ModuleList or ModuleDict, of a list or of a comprehension (whose element stands twice: it follows itself).
    Empty if any element cannot be named."""
    match value:
        case ast.Call() if source.layer_kind(value) in (
            "torch.nn.Sequential",
            "torch.nn.ModuleList",
            "torch.nn.ModuleDict",
        ):
            if len(value.args) == 1 and not isinstance(value.args[0], ast.Call):
                return children(source, value.args[0])
            if len(value.args) == 1 and source.is_any(value.args[0].func, "collections.OrderedDict"):  # type: ignore[attr-defined]
                return children(source, value.args[0].args[0]) if value.args[0].args else []  # type: ignore[attr-defined]
            return children(source, ast.List(elts=value.args)) if value.args else []
        case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
            inner = children(source, ast.List(elts=[element]))
            return inner * 2
        case ast.Starred(value=inner_value):
            return children(source, inner_value)
        case ast.Dict(values=values):
            return children(source, ast.List(elts=values))
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            found: list[ast.Call] = []
            for element in elements:
                match element:
                    case ast.Tuple(elts=[ast.Constant(), layer]):  # ("name", layer) of an OrderedDict
                        element = layer
                if isinstance(element, ast.Starred):
                    inner = children(source, element.value)
                    if not inner:
                        return []
                    found += inner
                elif isinstance(element, ast.Call) and source.layer_kind(element):
                    found.append(element)
                else:
                    return []
            return found
        case ast.Name() as name:
            from auditor.static.constants import binding

            bound = binding(source, name)
            return children(source, bound) if bound is not None and _never_changed(source, name) else []
    return []


def _never_changed(source: Source, name: ast.Name) -> bool:
    """Whether no method of the list called `name` (append, insert, …) is used in its function."""
    function = source.function_of(name)
    return not any(
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == name.id
        for call in source.calls_named("append", "extend", "insert", "pop", "remove")
        if source.function_of(call) is function
    )


def _opened(source: Source, layer: ast.Call) -> list[ast.Call]:
    """A Sequential as the list of its layers (nested ones too); any other layer as itself."""
    if source.layer_kind(layer) != "torch.nn.Sequential":
        return [layer]
    inner = children(source, layer)
    return [item for child in inner for item in _opened(source, child)] if inner else [layer]


def _parameters(function: Function) -> list[ast.arg]:
    arguments = function.args
    special = [item for item in (arguments.vararg, arguments.kwarg) if item]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *special]


def _layer_variable(target: ast.expr, iterable: ast.expr) -> str:
    """The loop variable that holds the layer: `layer`, or the second of `for i, layer in enumerate(…)`."""
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Tuple) and isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name):
        position = 1 if iterable.func.id == "enumerate" else 0
        if len(target.elts) > position and isinstance(inner := target.elts[position], ast.Name):
            return inner.id
    return ""


def _join(environments: Sequence[dict[str, Value | _Layers]]) -> dict[str, Value | _Layers]:
    joined: dict[str, Value | _Layers] = {}
    for name in {name: None for env in environments for name in env}:
        values = [env[name] for env in environments if name in env]
        sets = [value for value in values if not isinstance(value, _Layers)]
        joined[name] = frozenset().union(*sets) if sets else values[0]
    return joined
