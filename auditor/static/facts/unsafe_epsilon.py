"""Divisions by a root that a row of zeros makes zero: no ε under it, or one that is added after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.constants import binding
from auditor.static.facts.arithmetic import (
    CENTRED,
    INPUT,
    MEAN_SQUARE,
    VARIANCE,
    Arithmetic,
    Atom,
    Product,
)

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

_SQUARES = ("pow", "square")
_DEPTH = 4


class UnsafeRoot(NamedTuple):
    """`node`: the division, or the call of `rsqrt`. `outside`: an ε is there, but added to the root."""

    owner: ModuleClass
    node: ast.expr
    outside: bool


def unsafe_roots(source: Source) -> Iterator[UnsafeRoot]:
    """Every normalisation by a bare root of a mean square or variance in a method of a module class."""
    divisions = [node for node in source.tree.all(ast.BinOp) if isinstance(node.op, ast.Div)]
    for node in divisions:
        denominator = _followed(source, node.right)
        bare = _bare_root(source, denominator)
        unsafe = bare or (_shifted_root(source, denominator) and not _without_gradient(source, node))
        if unsafe and (owner := _owner(source, node)):
            yield UnsafeRoot(owner, node, not bare)
    for call in source.calls_named("rsqrt"):
        owner = _owner(source, call)
        if owner and _called(source, call) == "rsqrt" and _statistic(source, _operand(source, call)):
            yield UnsafeRoot(owner, call, False)


def _owner(source: Source, node: ast.expr) -> ModuleClass | None:
    """The module class of whose method `node` is a part."""
    found = source.method_of(node)
    return found[0] if found else None


def _without_gradient(source: Source, node: ast.expr) -> bool:
    """Whether it stands in a `with torch.no_grad()` or a function so decorated."""
    for above in source.tree.ancestors(node):
        if isinstance(above, (ast.With, ast.AsyncWith)):
            expressions = [item.context_expr for item in above.items]
        elif isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
            expressions = above.decorator_list
        else:
            continue
        if any("no_grad" in ast.unparse(item) or "inference_mode" in ast.unparse(item) for item in expressions):
            return True
    return False


def _followed(source: Source, node: ast.expr, depth: int = _DEPTH) -> ast.expr:
    """The expression, or what the one assignment of the name holds."""
    while isinstance(node, ast.Name) and depth:
        bound = binding(source, node)
        if bound is None:
            return node
        node, depth = bound, depth - 1
    return node


def _called(source: Source, node: ast.Call) -> str:
    """The tensor method or torch function that is called, by its last name."""
    names = source.resolve(node.func)
    if names:
        return next(iter(names)).rpartition(".")[2] if all(name.startswith("torch.") for name in names) else ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def _operand(source: Source, call: ast.Call) -> ast.expr:
    """The tensor of a method or function call."""
    if source.resolve(call.func):
        return call.args[0] if call.args else call
    return call.func.value if isinstance(call.func, ast.Attribute) else call


def _bare_root(source: Source, node: ast.expr) -> bool:
    match node:
        case ast.Call() if _called(source, node) == "sqrt":
            return _statistic(source, _operand(source, node))
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=0.5)):
            return _statistic(source, left)
    return False


def _shifted_root(source: Source, node: ast.expr) -> bool:
    """`sqrt(…) + eps`, where eps is a number or an attribute of the module."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=ast.Constant() | ast.Attribute() | ast.Name()):
            return _bare_root(source, _followed(source, left))
    return False


def _statistic(source: Source, node: ast.expr) -> bool:
    """Whether this is a mean of squares or a variance, kept as an axis of size 1, and nothing else."""
    node = _followed(source, node)
    if not isinstance(node, ast.Call):
        return False
    keep = next((item.value for item in node.keywords if item.arg == "keepdim"), None)
    if not (isinstance(keep, ast.Constant) and keep.value is True):
        return False
    name = _called(source, node)
    return name == "var" or (name in ("mean", "sum") and _is_square(source, _operand(source, node)))


def _is_square(source: Source, node: ast.expr) -> bool:
    node = _followed(source, node)
    match node:
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=2)):
            return True
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return ast.dump(left) == ast.dump(right)
        case ast.Call():
            name = _called(source, node)
            return name == "square" or (name == "pow" and ast.unparse(node).endswith("2)"))
    return False


# Whole classes --------------------------------------------------------------------------------------------------------


class UnsafeNorm(NamedTuple):
    """A class that is nothing but such a norm. `function` of torch computes it; the other fields are code."""

    function: str
    tensor: str
    weight: str
    epsilon: str


def unsafe_norm(source: Source, owner: ModuleClass, default: str) -> UnsafeNorm | None:
    """The norm over the last axis that `forward` writes out with a bare root; `default`: ε where it names none."""
    forward = owner.forward
    if forward is None:
        return None
    arithmetic = Arithmetic(source, owner)
    value = arithmetic.result(forward)
    if value is None or value.product is None or value.dtype != "input" or value.product.number != 1:
        return None
    tensor = [argument.arg for argument in (*forward.args.posonlyargs, *forward.args.args)][1]
    for function, numerator, square in (("rms_norm", INPUT, MEAN_SQUARE), ("layer_norm", CENTRED, VARIANCE)):
        factors = dict(value.product.factors)
        ((above, _),), ((below, _),) = numerator.factors, square.factors
        if factors.pop(above, None) != 1:
            continue
        parameters = [atom for atom, power in factors.items() if atom.kind == "parameter" and power == 1]
        rest = {atom: power for atom, power in factors.items() if atom not in parameters}
        epsilon = _epsilon(rest, below, arithmetic.codes, default)
        if epsilon and len(parameters) <= 1:
            return UnsafeNorm(function, tensor, f"self.{parameters[0].name}" if parameters else "", epsilon)
    return None


def _epsilon(rest: dict[Atom, Fraction], below: Atom, codes: dict[Product, str], default: str) -> str:
    """The ε of what remains of the product, if that is the bare root; empty if it is not."""
    if len(rest) != 1:
        return ""
    ((atom, power),) = rest.items()
    if atom == below:
        return default if power == Fraction(-1, 2) else ""
    root = Product(frozenset([(below, Fraction(1, 2))]))
    others = atom.parts - {root}
    if atom.kind != "sum" or power != -1 or root not in atom.parts or len(others) != 1:
        return ""
    (epsilon,) = others
    return codes.get(epsilon, repr(epsilon.number) if epsilon.is_number else "")
