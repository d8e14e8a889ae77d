"""Tensors that a module keeps as plain attributes and computes with in its forward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.values import RESHAPING
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import Attribute, Function, ModuleClass
    from auditor.static.source import Source

_MAKES = frozenset(
    f"torch.{name}"
    for name in (
        "tensor", "zeros", "ones", "full", "arange", "linspace", "logspace", "eye", "randn", "rand", "from_numpy",
        "Tensor", "FloatTensor", "as_tensor", "tril", "triu", "empty", "hann_window", "hamming_window", "stack", "cat",
        "zeros_like", "ones_like", "outer", "exp", "log", "sqrt", "cumprod", "cumsum", "flip", "diag",
    )
)  # fmt: skip
_OF_TENSORS = tuple(
    f"torch.{name}" for name in ("exp", "log", "sqrt", "cumprod", "cumsum", "diag", "flip", "tril", "triu", "outer")
)
_PLACES = frozenset(
    {"to", "cuda", "cpu", "type_as", "new_tensor", "pin_memory", "to_sparse", "tolist", "numpy", "item"}
)
# Methods by which a module looks after tensors that torch does not know.
_OWN_CARE = frozenset({"_apply", "to", "cuda", "__getattr__", "__setattr__"})
_ARITHMETIC = (ast.BinOp, ast.Compare, ast.AugAssign)


class PlainTensor(NamedTuple):
    """`self.name`, assigned by `statement`, and the place in the forward where activations meet it."""

    name: str
    statement: ast.Assign
    used: ast.expr


def plain_tensors(source: Source, facts: ModuleClass) -> Iterator[PlainTensor]:
    """The tensors of one axis or more that the constructor of a class makes, that nothing registers, moves or assigns
    again, and that its forward combines with what it is given."""
    start = facts.methods.get("__init__")
    if start is None or not _OWN_CARE.isdisjoint(facts.methods):
        return
    for name, assigned in facts.own_attributes.items():
        if len(assigned) != 1 or not _is_plain(source, assigned[0], start):
            continue
        reads = _uses(source, name)
        if reads is None or any(_is_placed(source, read) for read in reads):
            continue
        methods = run_by_forward(facts)
        used = next((r for r in reads if _meets_activations(source, r, methods)), None)
        if used is not None and isinstance(assigned[0].statement, ast.Assign):
            yield PlainTensor(name, assigned[0].statement, used)


def run_by_forward(facts: ModuleClass, limit: int = 16) -> list[Function]:
    """The forward that the class itself defines, and the methods of its own that it calls, in document order."""
    forward = facts.methods.get("forward")
    found = [forward] if forward is not None else []
    for method in found:
        for node in walk(method):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=attr)):
                    called = facts.methods.get(attr)
                    if called is not None and called not in found and len(found) < limit:
                        found.append(called)
    return sorted(found, key=lambda method: method.lineno)


def _is_plain(source: Source, attribute: Attribute, start: Function) -> bool:
    """Whether `self.name = <tensor>` stands in the constructor, once and for all."""
    plain = isinstance(attribute.statement, ast.Assign) and len(attribute.statement.targets) == 1
    return plain and attribute.method is start and not attribute.conditional and _is_tensor(source, attribute.value)


def _is_tensor(source: Source, value: ast.expr, depth: int = 4) -> bool:
    """Whether `value` surely is a tensor with at least one axis, on the CPU, that wants no gradient."""
    match value:
        case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if not source.resolve(value.func):
            stays = attr in RESHAPING - {"to", "cuda", "requires_grad_"}
            return stays and depth > 0 and _is_tensor(source, inner, depth - 1)
        case ast.Call(args=[first, *_]):
            if not source.resolve(value.func) <= _MAKES or not source.resolve(value.func):
                return False
            if any(keyword.arg in ("device", "requires_grad", None) for keyword in value.keywords):
                return False
            scalar = source.is_any(value.func, "torch.tensor", "torch.as_tensor") and not _is_sequence(source, first)
            empty = isinstance(first, ast.Tuple) and not first.elts
            if source.is_any(value.func, *_OF_TENSORS):
                return depth > 0 and _is_tensor(source, first, depth - 1)
            return not scalar and not empty
        case ast.BinOp(left=left, right=right):
            return depth > 0 and (_is_tensor(source, left, depth - 1) or _is_tensor(source, right, depth - 1))
    return False


def _is_sequence(source: Source, value: ast.expr) -> bool:
    return isinstance(value, (ast.List, ast.ListComp, ast.Tuple)) or isinstance(source.constant(value), (list, tuple))


def _uses(source: Source, name: str) -> list[ast.Attribute] | None:
    """The reads of `self.name`; None if the file names or sets it in any other way (another object's, a string)."""
    reads = []
    for node in source.tree.attributes(name):
        if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            return None
        if isinstance(node.ctx, ast.Load):
            reads.append(node)
    named = any(node.value == name for node in source.tree.all(ast.Constant) if isinstance(node.value, str))
    return None if named else reads


def _climbed(source: Source, node: ast.expr) -> ast.expr:
    """The largest expression that is still a part or a rearrangement of `node`."""
    while True:
        above = source.tree.parent(node)
        if isinstance(above, ast.Subscript) and above.value is node:
            node = above
        elif isinstance(above, ast.Attribute) and above.attr in RESHAPING - {"to", "cuda", "cpu", "type_as"}:
            call = source.tree.parent(above)
            if not isinstance(call, ast.Call) or call.func is not above:
                return node
            node = call
        else:
            return node


def _is_placed(source: Source, read: ast.Attribute) -> bool:
    """Whether this use moves the tensor, asks for its device, or hands it to code that may."""
    whole = _climbed(source, read)
    above = source.tree.parent(whole)
    if isinstance(above, ast.Attribute):
        return above.attr in _PLACES or above.attr == "device"
    if isinstance(above, (ast.Assign, ast.Return, ast.keyword, ast.List, ast.Tuple, ast.NamedExpr)):
        return True  # what becomes of it there is not followed
    if isinstance(above, ast.Call):
        return not _is_torch_call(source, above)
    return False


def _is_torch_call(source: Source, call: ast.Call) -> bool:
    names = source.resolve(call.func)
    if names:
        return all(name.startswith("torch.") for name in names)
    return isinstance(call.func, ast.Attribute) and call.func.attr in _COMBINING


_COMBINING = frozenset(
    {"masked_fill", "masked_fill_", "matmul", "mm", "bmm", "mul", "mul_", "add", "add_", "sub", "div", "where",
     "gather", "index_select", "expand_as"}
)  # fmt: skip


def _meets_activations(source: Source, read: ast.Attribute, methods: list[Function]) -> bool:
    """Whether this use, in the forward, has something else computed from what the forward is given beside it."""
    method = source.function_of(read)
    if method not in methods or method is None:
        return False
    whole = _climbed(source, read)
    above = source.tree.parent(whole)
    if not isinstance(above, _ARITHMETIC) and not (isinstance(above, ast.Call) and _is_torch_call(source, above)):
        return False
    inside = set(walk(whole))
    given = {argument.arg for argument in method.args.args[1:]}
    computed = given | {
        node.id for node in walk(method) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    beside = [node for node in walk(above) if node not in inside]
    return any(isinstance(node, ast.Name) and node.id in computed and not _is_number(source, node) for node in beside)


def _is_number(source: Source, name: ast.Name) -> bool:
    """Whether a name only counts or is asked for its shape: `mask[:n]`, `x.size(1)`."""
    above = source.tree.parent(name)
    if isinstance(above, ast.Attribute) and above.attr in ("shape", "size", "dim", "ndim", "device", "dtype"):
        return True
    function = source.function_of(name)
    for store in source.names.stores(name.id):
        statement = source.tree.parent(store)
        while isinstance(statement, ast.Tuple):
            statement = source.tree.parent(statement)
        if source.function_of(store) is function and isinstance(statement, (ast.For, ast.comprehension)):
            return True
        value = getattr(statement, "value", None)
        if source.function_of(store) is function and value is not None:
            text = ast.unparse(value)
            if ".size(" in text or ".shape" in text or text.startswith("len("):
                return True
    return False
