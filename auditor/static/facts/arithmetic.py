"""What a method computes, as a product of powers: enough algebra to recognise a hand-written normalisation.

`x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w` and `w * (x / torch.sqrt((x * x).mean(-1, True) + eps))`
are the same product, {x: 1, mean(x²) + eps: -1/2, w: 1}, however they are spelled, cast and spread over statements and
helpers. What has no such form is None: unknown, never guessed. All reductions are over the last axis.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

# Products -------------------------------------------------------------------------------------------------------------


class Atom(NamedTuple):
    """A base of a product.

    `kind`: `input` (the tensor given) · `parameter` (1-D, attribute `name`) · `scalar` (a number known by `name`) ·
    `size` (of the last axis) · `mean` (of `parts`, over the last axis, kept as 1) · `sum` (of the terms `parts`) ·
    `floor` (the first of `ordered`, but at least the second) · `optional` (a parameter that is 1 unless `name` holds).
    """

    kind: str
    name: str = ""
    parts: frozenset[Product] = frozenset()
    ordered: tuple[Product, ...] = ()


class Product(NamedTuple):
    """`number` times the product of `atom ** exponent`."""

    factors: frozenset[tuple[Atom, Fraction]] = frozenset()
    number: float = 1.0

    @property
    def is_number(self) -> bool:
        return not self.factors

    @property
    def is_scalar(self) -> bool:
        """Whether it is a Python number, known or not."""
        return all(atom.kind == "scalar" for atom, _ in self.factors)

    def exponent(self, atom: Atom) -> Fraction:
        return dict(self.factors).get(atom, Fraction(0))

    def terms(self) -> frozenset[Product]:
        """The summands, if it is a plain sum; else itself."""
        if len(self.factors) == 1 and self.number == 1:
            ((atom, exponent),) = self.factors
            if atom.kind == "sum" and exponent == 1:
                return atom.parts
        return frozenset([self])


def of(atom: Atom, exponent: Fraction | int = 1) -> Product:
    return Product(frozenset([(atom, Fraction(exponent))]))


INPUT = of(Atom("input"))
SIZE = of(Atom("size"))


def multiply(left: Product, right: Product) -> Product:
    powers = dict(left.factors)
    for atom, exponent in right.factors:
        powers[atom] = powers.get(atom, Fraction(0)) + exponent
    return Product(frozenset((atom, e) for atom, e in powers.items() if e), left.number * right.number)


def power(base: Product, exponent: float) -> Product | None:
    """None where a root of a square would have to be an absolute value."""
    fraction = Fraction(exponent).limit_denominator(64)
    if abs(float(fraction) - exponent) > 1e-9 or (base.number == 0 and exponent < 0):
        return None
    if fraction.denominator != 1:
        signed = any(
            atom.kind in ("input", "parameter", "optional") or (atom.kind == "sum" and own % 2 == 0)
            for atom, own in base.factors
        )
        if signed or base.number < 0:
            return None
    return Product(frozenset((atom, own * fraction) for atom, own in base.factors), base.number**exponent)


def add(left: Product, right: Product) -> Product:
    numbers: dict[frozenset[tuple[Atom, Fraction]], float] = {}
    for term in (*left.terms(), *right.terms()):
        numbers[term.factors] = numbers.get(term.factors, 0.0) + term.number
    terms = frozenset(Product(factors, number) for factors, number in numbers.items() if number)
    if len(terms) <= 1:
        return next(iter(terms), Product(number=0.0))
    return of(Atom("sum", parts=terms))


def mean(product: Product) -> Product:
    """Over the last axis; what does not change along it stands in front."""
    inside = {(atom, e) for atom, e in product.factors if _varies(atom)}
    front = Product(product.factors - inside, product.number)
    return multiply(front, of(Atom("mean", parts=frozenset([Product(frozenset(inside))])))) if inside else product


def _varies(atom: Atom) -> bool:
    """Whether it changes along the last axis."""
    if atom.kind in ("input", "parameter", "optional"):
        return True
    if atom.kind in ("sum", "floor"):
        return any(_varies(inner) for term in (*atom.parts, *atom.ordered) for inner, _ in term.factors)
    return False


CENTRED = add(INPUT, multiply(Product(number=-1.0), mean(INPUT)))
MEAN_SQUARE = mean(multiply(INPUT, INPUT))
VARIANCE = mean(multiply(CENTRED, CENTRED))


# Running a method -----------------------------------------------------------------------------------------------------


class Value(NamedTuple):
    """`dtype`: `input` (that of the tensor given), `float32`, or `unknown`. Without a product it stands for a dtype."""

    product: Product | None
    dtype: str = "input"


Environment = dict[str, Value | None]
_DEPTH = 3
_FULL = ("torch.float32", "torch.float")
_SAME = ("contiguous",)
_NAMESPACES = ("torch.nn.functional", "torch.linalg", "torch", "math")


class Unknown(Exception):
    """The method does something that has no form here."""


class Arithmetic:
    """Symbolic execution of one method of a module class on a tensor.

    `codes`: for each number met, how the method writes it (`self.eps`).
    """

    def __init__(self, source: Source, owner: ModuleClass) -> None:
        self.source = source
        self.owner = owner
        self.codes: dict[Product, str] = {}
        self._depth = 0

    @cached_property
    def parameters(self) -> dict[str, ast.expr]:
        """The parameters with one axis, each with the expression of its length."""
        return dict(_vectors(self.source, self.owner))

    @cached_property
    def _widths(self) -> set[Product]:
        widths = [self._constructor_value(width) for width in self.parameters.values()]
        return {width for width in widths if width is not None and width.is_scalar}

    def result(self, method: Function) -> Value | None:
        """What `method` returns for its first argument; None if that has no form."""
        names = [argument.arg for argument in (*method.args.posonlyargs, *method.args.args)][1:]
        if not names or method.args.vararg:
            return None
        environment: Environment = dict.fromkeys(names)
        environment[names[0]] = Value(INPUT)
        defaults = method.args.defaults
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=False):
            if name != names[0] and isinstance(default, ast.Constant) and isinstance(default.value, float):
                scalar = of(Atom("scalar", f"argument {name}"))
                environment[name] = Value(scalar)
                self.codes[scalar] = name
        try:
            return self._body(method.body, environment)
        except Unknown:
            return None

    # Statements -------------------------------------------------------------------------------------------------------

    def _body(self, body: Sequence[ast.stmt], env: Environment) -> Value | None:
        """The value returned; None where the end is reached without a return.

        `x *= …` is not followed: it may write to the tensor that the caller handed over.
        """
        for statement in body:
            match statement:
                case ast.Return(value=ast.expr() as value):
                    return self._known(value, env)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    env[name] = self._value(value, env)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    env[name] = self._value(value, env)
                case ast.Expr(value=ast.Constant()):
                    continue
                case ast.If(test=test, body=inner, orelse=[]):
                    self._optional(test, inner, env)
                case _:
                    raise Unknown
        return None

    def _optional(self, test: ast.expr, body: Sequence[ast.stmt], env: Environment) -> None:
        """`if self.weight is not None: x = x * self.weight`: each changed value may have gained one parameter."""
        condition = self._own_condition(test)
        inside = dict(env)
        if condition is None or self._body(body, inside) is not None:
            raise Unknown
        for name, after in inside.items():
            before = env.get(name)
            if after == before:
                continue
            if after is None or before is None or after.product is None or before.product is None:
                raise Unknown
            env[name] = Value(_with_optional(before.product, after.product, condition), _wider(before, after))

    def _own_condition(self, test: ast.expr) -> str | None:
        """The code of a test that looks at nothing but this module: `self.affine`, `self.weight is not None`."""
        match test:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr) if attr not in self.parameters:
                return ast.unparse(test)
            case ast.Compare(
                left=ast.Attribute(value=ast.Name(id="self")), ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]
            ):
                return ast.unparse(test)
        return None

    # Expressions ------------------------------------------------------------------------------------------------------

    def _known(self, node: ast.expr, env: Environment) -> Value:
        value = self._value(node, env)
        if value is None:
            raise Unknown
        return value

    def _product(self, node: ast.expr, env: Environment) -> Product:
        product = self._known(node, env).product
        if product is None:
            raise Unknown
        return product

    def _value(self, node: ast.expr, env: Environment) -> Value | None:
        try:
            return self._evaluate(node, env)
        except Unknown:
            return None

    def _evaluate(self, node: ast.expr, env: Environment) -> Value | None:
        match node:
            case ast.Constant(value=bool()):
                return None
            case ast.Constant(value=int() | float() as number):
                product = Product(number=float(number))
                self.codes.setdefault(product, ast.unparse(node))
                return Value(product)
            case ast.Name(id=name):
                return env.get(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                return self._attribute(node, attr)
            case ast.Attribute(value=inner, attr="dtype"):
                value = self._value(inner, env)
                return Value(None, value.dtype if value else "unknown")
            case ast.Attribute() if self.source.is_any(node, *_FULL):
                return Value(None, "float32")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._binary(ast.Mult(), Value(Product(number=-1.0)), self._value(operand, env))
            case ast.BinOp(left=left, op=op, right=right):
                value = self._binary(op, self._value(left, env), self._value(right, env))
                if value is not None and value.product is not None and _reads_only_self(node):
                    self.codes.setdefault(value.product, ast.unparse(node))
                return value
            case ast.Subscript(value=ast.Attribute(value=inner, attr="shape"), slice=axis) if _is_last(axis):
                return Value(SIZE) if self._product(inner, env) == INPUT else None
            case ast.Call():
                return self._call(node, env)
        return None

    def _binary(self, op: ast.operator, left: Value | None, right: Value | None) -> Value | None:
        if left is None or right is None or left.product is None or right.product is None:
            return None
        a, b, result = left.product, right.product, None
        match op:
            case ast.Mult():
                result = multiply(a, b)
            case ast.Div():
                inverse = power(b, -1)
                result = multiply(a, inverse) if inverse else None
            case ast.Add():
                result = add(a, b)
            case ast.Sub():
                result = add(a, multiply(Product(number=-1.0), b))
            case ast.Pow() if b.is_number:
                result = power(a, b.number)
        return Value(result, _wider(left, right)) if result else None

    def _attribute(self, node: ast.expr, attr: str) -> Value | None:
        if attr in self.parameters:
            return Value(of(Atom("parameter", attr)))
        assigned = self.owner.attributes.get(attr, [])
        if len(assigned) > 1 or (assigned and assigned[0].conditional):
            return None
        value = assigned[0].value if assigned else self.owner.constants.get(attr)
        product = self._constructor_value(value) if value is not None else None
        if product is None:
            return None
        sized = _with_sizes(product, self._widths)
        if sized == product:
            self.codes[product] = ast.unparse(node)
        return Value(sized)

    def _constructor_value(self, node: ast.expr) -> Product | None:
        """A number of the constructor: its arguments by name (`hidden_size`, `config.eps`), and arithmetic on them."""
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return Product(number=float(number))
            case ast.Name(id=name) if self._is_plain_argument(node):
                return of(Atom("scalar", name))
            case ast.Attribute(value=ast.Name() as root) if self._is_plain_argument(root):
                return of(Atom("scalar", ast.unparse(node)))
            case ast.Call(func=ast.Name(id="float"), args=[inner]):
                return self._constructor_value(inner)
            case ast.Call(args=[inner]) if self.source.is_any(node.func, "math.sqrt"):
                product = self._constructor_value(inner)
                return power(product, 0.5) if product else None
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self._constructor_value(left), self._constructor_value(right)
                value = self._binary(op, Value(a), Value(b))
                return value.product if value else None
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                product = self._constructor_value(operand)
                return multiply(Product(number=-1.0), product) if product else None
        return None

    def _is_plain_argument(self, name: ast.Name) -> bool:
        function = self.source.function_of(name)
        if function is None or name.id not in {item.arg for item in walk(function.args) if isinstance(item, ast.arg)}:
            return False
        return all(self.source.function_of(store) is not function for store in self.source.names.stores(name.id))

    # Calls ------------------------------------------------------------------------------------------------------------

    def _call(self, call: ast.Call, env: Environment) -> Value | None:
        if any(isinstance(item, ast.Starred) for item in call.args) or any(k.arg is None for k in call.keywords):
            return None
        function = call.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self":
            method = self.owner.method(function.attr)
            return self._enter(method, call, env, skip=1) if method else None
        names = self.source.resolve(function)
        if len(names) == 1:
            (name,) = names
            namespace, _, tail = name.rpartition(".")
            if namespace in _NAMESPACES:
                return self._operation(tail, call, list(call.args), env)
            definitions = self.source.names.definitions.get(name, [])
            if len(definitions) == 1 and isinstance(definitions[0], ast.FunctionDef):
                return self._enter(definitions[0], call, env, skip=0)
            return None
        if isinstance(function, ast.Attribute):
            return self._operation(function.attr, call, [function.value, *call.args], env)
        return None

    def _enter(self, method: Function, call: ast.Call, env: Environment, skip: int) -> Value | None:
        """A helper of the class or the file, its body followed with the arguments given."""
        if self._depth == _DEPTH or method.args.vararg or method.args.kwarg:
            return None
        static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in method.decorator_list)
        names = [item.arg for item in (*method.args.posonlyargs, *method.args.args)][0 if static else skip :]
        inner: Environment = dict.fromkeys([*names, *[item.arg for item in method.args.kwonlyargs]])
        defaults = method.args.defaults
        for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=False):
            inner[name] = self._value(default, {})
        inner.update({name: self._value(argument, env) for name, argument in zip(names, call.args, strict=False)})
        inner.update({str(item.arg): self._value(item.value, env) for item in call.keywords})
        self._depth += 1
        try:
            return self._body(method.body, inner)
        finally:
            self._depth -= 1

    def _operation(self, name: str, call: ast.Call, args: list[ast.expr], env: Environment) -> Value | None:
        if not args:
            return None
        value = self._known(args[0], env)
        arguments = _Arguments(args, {str(item.arg): item.value for item in call.keywords})
        if value.product is None:
            return None
        if name in _SAME:
            return value
        if name == "float":
            return Value(value.product, "float32")
        if name in ("to", "type", "type_as"):
            target = arguments.get("dtype", 1)
            meaning = self._value(target, env) if target is not None and len(args) + len(call.keywords) == 2 else None
            return Value(value.product, meaning.dtype if meaning else "unknown")
        if name == "size":
            axis = arguments.get("dim", 1)
            return Value(SIZE) if axis is not None and _is_last(axis) and value.product == INPUT else None
        if name in _BINARY:
            other = arguments.get("other", 1)
            return self._binary(_BINARY[name], value, self._value(other, env)) if other is not None else None
        return (
            self._reduction(name, value, arguments, env)
            if name in _REDUCTIONS
            else self._unary(name, value, arguments, env)
        )

    def _unary(self, name: str, value: Value, arguments: _Arguments, env: Environment) -> Value | None:
        assert value.product is not None
        product: Product | None = None
        if name in _POWERS:
            product = power(value.product, _POWERS[name])
        elif name == "pow":
            exponent = arguments.get("exponent", 1)
            number = self._product(exponent, env) if exponent is not None else None
            product = power(value.product, number.number) if number is not None and number.is_number else None
        elif name in ("clamp", "clamp_min", "clip") and arguments.get("max", 2) is None:
            least = arguments.get("min", 1)
            product = _floor(value.product, self._product(least, env)) if least is not None else None
        return Value(product, value.dtype) if product else None

    def _reduction(self, name: str, value: Value, arguments: _Arguments, env: Environment) -> Value | None:
        assert value.product is not None
        axis_at, keep_at = _REDUCTIONS[name]
        axis = arguments.get("dim", axis_at)
        if axis is None or not _is_last(axis):
            return None
        if name != "normalize" and not _is_true(arguments.get("keepdim", keep_at)):
            return None
        product = _reduce(name, value.product, arguments, lambda node: self._product(node, env))
        return Value(product, value.dtype) if product else None


_BINARY: dict[str, ast.operator] = {
    "mul": ast.Mult(), "multiply": ast.Mult(), "div": ast.Div(), "divide": ast.Div(), "true_divide": ast.Div(),
    "add": ast.Add(), "sub": ast.Sub(), "subtract": ast.Sub(),
}  # fmt: skip
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
# Where the axis and `keepdim` stand when passed by position, the tensor being at 0.
_REDUCTIONS = {"mean": (1, 2), "sum": (1, 2), "norm": (2, 3), "vector_norm": (2, 3), "normalize": (2, None),
               "var": (1, 3), "std": (1, 3)}  # fmt: skip


class _Arguments(NamedTuple):
    positional: list[ast.expr]
    keywords: dict[str, ast.expr]

    def get(self, name: str, position: int | None = None) -> ast.expr | None:
        if name in self.keywords:
            return self.keywords[name]
        return self.positional[position] if position is not None and position < len(self.positional) else None


def _reduce(
    name: str, product: Product, arguments: _Arguments, evaluate: Callable[[ast.expr], Product]
) -> Product | None:
    if name == "mean":
        return mean(product)
    if name == "sum":
        return multiply(SIZE, mean(product))
    if name in ("var", "std"):
        population = arguments.keywords.get("unbiased") or arguments.get("", 2) or arguments.keywords.get("correction")
        if not (isinstance(population, ast.Constant) and population.value in (False, 0)):
            return None
        difference = add(product, multiply(Product(number=-1.0), mean(product)))
        variance = mean(multiply(difference, difference))
        return variance if name == "var" else power(variance, 0.5)
    order = arguments.get("p", 1) or arguments.keywords.get("ord")
    if order is not None and not (isinstance(order, ast.Constant) and order.value in (2, None)):
        return None
    norm = power(multiply(SIZE, mean(multiply(product, product))), 0.5)
    if norm is None or name != "normalize":
        return norm
    epsilon = arguments.get("eps", 3)
    inverse = power(_floor(norm, Product(number=1e-12) if epsilon is None else evaluate(epsilon)), -1)
    return multiply(product, inverse) if inverse else None


def _floor(product: Product, least: Product) -> Product:
    return of(Atom("floor", ordered=(product, least)))


def _is_last(axis: ast.expr) -> bool:
    """Whether an axis is written -1: a variable may be anything."""
    match axis:
        case ast.Tuple(elts=[inner]) | ast.List(elts=[inner]):
            return _is_last(inner)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1)):
            return True
    return False


def _reads_only_self(node: ast.expr) -> bool:
    return all(name.id == "self" for name in walk(node) if isinstance(name, ast.Name))


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _wider(left: Value, right: Value) -> str:
    kinds = {left.dtype, right.dtype}
    return "unknown" if "unknown" in kinds else "float32" if "float32" in kinds else "input"


def _with_optional(before: Product, after: Product, condition: str) -> Product:
    """`before` times a parameter that is only there under `condition`."""
    inverse = power(before, -1)
    gained = multiply(after, inverse) if inverse is not None else None
    if gained is None or gained.number != 1 or len(gained.factors) != 1:
        raise Unknown
    ((atom, exponent),) = gained.factors
    if atom.kind != "parameter" or exponent != 1:
        raise Unknown
    return multiply(before, of(Atom("optional", condition, frozenset([of(atom)]))))


def _with_sizes(product: Product, widths: set[Product]) -> Product:
    """Numbers that are the length of a parameter, as the size of the axis that the parameter scales."""
    factors = frozenset((Atom("size") if of(atom) in widths else atom, e) for atom, e in product.factors)
    return Product(factors, product.number)


def _vectors(source: Source, owner: ModuleClass) -> Iterator[tuple[str, ast.expr]]:
    """The parameters that surely have one axis (or the shape of one argument), with the expression of their length."""
    assigned = [(name, item.value) for name, items in owner.attributes.items() for item in items]
    for call in source.calls_named("register_parameter"):
        if source.class_of(call) is owner.node and len(call.args) == 2 and isinstance(call.args[0], ast.Constant):
            assigned.append((str(call.args[0].value), call.args[1]))
    found: dict[str, list[ast.expr | None]] = {}
    for name, value in assigned:
        if isinstance(value, ast.Constant) and value.value is None:
            continue
        found.setdefault(name, []).append(_length(source, value))
    for name, lengths in found.items():
        if len({ast.dump(length) if length else "" for length in lengths}) == 1 and lengths[0] is not None:
            yield name, lengths[0]


_FILLED = tuple(
    f"torch.{name}" for name in ("ones", "zeros", "empty", "rand", "randn", "full", "Tensor", "FloatTensor")
)
_PARAMETER = ("torch.nn.Parameter", "torch.nn.parameter.Parameter")


def _length(source: Source, value: ast.expr) -> ast.expr | None:
    match value:
        case ast.Call(args=[ast.Call() as inner, *_]) if source.is_any(value.func, *_PARAMETER):
            if not source.is_any(inner.func, *_FILLED) or not inner.args:
                return None
            if len(inner.args) > 1 and not source.is_any(inner.func, "torch.full"):
                return None
            size = inner.args[0]
            if isinstance(size, (ast.Tuple, ast.List)):
                size = size.elts[0] if len(size.elts) == 1 else ast.Constant(1)
            return None if isinstance(size, (ast.Constant, ast.Starred)) else size
    return None


# Recognising norms ----------------------------------------------------------------------------------------------------


class HandWrittenNorm(NamedTuple):
    """A method that computes `torch.nn.functional.<function>` over the last axis. The other fields are code.

    `tensor`: the argument that is normalised. `weight`, `bias`: empty where there is none. `epsilon`: what stands under
    the root. `stays_float32`: the result is float32 whatever the input is.
    """

    function: str
    tensor: str
    weight: str
    bias: str
    epsilon: str
    shape: str
    stays_float32: bool

    def call(self, functional: str) -> str:
        """The one call that computes the same, `functional` being the name of `torch.nn.functional`."""
        tensor = f"{self.tensor}.float()" if self.stays_float32 else self.tensor
        scale = [self.weight or "None"] + ([self.bias or "None"] if self.function == "layer_norm" else [])
        if scale == ["None"] * len(scale):
            return f"{functional}.{self.function}({tensor}, {self.shape}, eps={self.epsilon})"
        return f"{functional}.{self.function}({tensor}, {self.shape}, {', '.join(scale)}, {self.epsilon})"


def hand_written_norm(source: Source, owner: ModuleClass) -> HandWrittenNorm | None:
    """The norm that the class's own `forward` writes out, if torch has exactly that one."""
    forward = owner.forward
    if forward is None:
        return None
    arithmetic = Arithmetic(source, owner)
    value = arithmetic.result(forward)
    if value is None or value.product is None or value.dtype == "unknown":
        return None
    scaled, bias = _without_bias(value.product)
    found = _rms(scaled) or _layer(scaled)
    if found is None or (bias and found.function == "rms_norm"):
        return None
    parameter, weight = _weight_code(found.weight, arithmetic.codes)
    epsilon = arithmetic.codes.get(found.epsilon) or (repr(found.epsilon.number) if found.epsilon.is_number else None)
    if weight is None or epsilon is None:
        return None
    tensor = [argument.arg for argument in (*forward.args.posonlyargs, *forward.args.args)][1]
    certain = next((name for name in (parameter, bias) if name), "")
    shape = f"self.{certain}.shape" if certain else f"{tensor}.shape[-1:]"
    bias_code = f"self.{bias}" if bias else ""
    return HandWrittenNorm(found.function, tensor, weight, bias_code, epsilon, shape, value.dtype == "float32")


class _Form(NamedTuple):
    function: str
    weight: Product
    epsilon: Product


def _without_bias(product: Product) -> tuple[Product, str]:
    """The product and the name of the parameter added to it."""
    terms = product.terms()
    if len(terms) == 2:
        for term in terms:
            (rest,) = terms - {term}
            match [*term.factors]:
                case [(Atom(kind="parameter", name=name), exponent)] if exponent == 1 and term.number == 1:
                    return rest, name
    return product, ""


def _rms(product: Product) -> _Form | None:
    rest = multiply(product, INPUT._replace(factors=frozenset([(Atom("input"), Fraction(-1))])))
    for atom, exponent in rest.factors:
        if atom.kind == "sum" and exponent == Fraction(-1, 2):
            return _form("rms_norm", MEAN_SQUARE, atom, rest)
        if atom.kind == "floor" and exponent == -1:
            return _normalised(atom, rest)
    return None


def _normalised(atom: Atom, rest: Product) -> _Form | None:
    """`F.normalize(x) * √d`: with a floor this small it is the norm with the square of the floor under the root."""
    norm, least = atom.ordered
    if norm != power(multiply(SIZE, MEAN_SQUARE), 0.5) or not least.is_number or not 0 < least.number <= 1e-10:
        return None
    weight = multiply(rest, multiply(of(atom), Product(frozenset([(Atom("size"), Fraction(-1, 2))]))))
    return _Form("rms_norm", weight, Product(number=least.number**2)) if math.isclose(weight.number, 1) else None


def _layer(product: Product) -> _Form | None:
    centred = next(iter(CENTRED.factors))[0]
    if product.exponent(centred) != 1:
        return None
    rest = multiply(product, of(centred, -1))
    for atom, exponent in rest.factors:
        if atom.kind == "sum" and exponent == Fraction(-1, 2):
            return _form("layer_norm", VARIANCE, atom, rest)
    return None


def _form(function: str, statistic: Product, atom: Atom, rest: Product) -> _Form | None:
    """The sum under the root must be the statistic and a number."""
    others = atom.parts - {statistic}
    if len(others) != 1 or len(atom.parts) != 2:
        return None
    (epsilon,) = others
    weight = multiply(rest, of(atom, Fraction(1, 2)))
    return _Form(function, weight, epsilon) if epsilon.is_scalar and math.isclose(weight.number, 1) else None


def _weight_code(weight: Product, codes: dict[Product, str]) -> tuple[str, str | None]:
    """The name of the parameter that surely has the norm's shape, and the code of the scale; None for any other one."""
    if weight.is_number:
        return "", ""
    if len(weight.factors) != 1:
        return "", None
    ((atom, exponent),) = weight.factors
    if exponent != 1:
        return "", None
    match atom:
        case Atom(kind="parameter", name=name):
            return name, f"self.{name}"
        case Atom(kind="optional", name=condition, parts=parts):
            name = next(inner.name for part in parts for inner, _ in part.factors)
            return (
                "",
                f"self.{name}" if condition == f"self.{name} is not None" else f"self.{name} if {condition} else None",
            )
        case Atom(kind="sum", parts=parts) if Product() in parts and len(parts) == 2:
            (other,) = parts - {Product()}
            name = _weight_code(other, codes)[0]
            return name, codes.get(weight, f"1 + self.{name}") if name else None
    return "", None
