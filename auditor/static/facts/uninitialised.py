"""Parameters made of uninitialised memory, and whether anything in the file fills them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.initialisers import INIT, owners, write_of
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

PARAMETER = ("torch.nn.Parameter", "torch.nn.parameter.Parameter")
EMPTY = ("torch.empty", "torch.empty_like")
LEGACY = ("torch.Tensor", "torch.FloatTensor", "torch.DoubleTensor", "torch.HalfTensor")
# Packed weights are filled by a loader: by class or file.
_QUANTISED = r"(?i)quant|gptq|awq|int4|int8|fp8|4bit|8bit|bnb|marlin|nvfp|mxfp"
_PACKED = r"int|bool|float8|float4"
# Functions that copy the tensors of a list.
_JOINS = ("torch.cat", "torch.concat", "torch.stack", "torch.hstack", "torch.vstack")
# Calls that cannot change what they are given.
_HARMLESS = {"super", "isinstance", "hasattr", "type", "id", "print", "len", "repr", "str", "issubclass"}
_READ_ONLY = ("forward", "extra_repr", "__repr__", "__call__", "_forward", "extra_state")


class Bare(NamedTuple):
    """One `nn.Parameter(torch.empty(…))`. `rank`: its number of dimensions, 0 if not known."""

    name: str
    call: ast.Call
    empty: ast.Call
    statement: ast.stmt
    facts: ModuleClass
    rank: int


def bare_parameters(source: Source) -> Iterator[Bare]:
    """Every parameter that a module class of the file makes of uninitialised memory and gives a name of its own."""
    for call in source.calls_to(*PARAMETER):
        place = source.method_of(call)
        data = source.argument(call, "data", 0)
        if place is None or not isinstance(data, ast.Call) or not _is_empty(source, data):
            continue
        trained = source.argument(call, "requires_grad", 1)
        packed = any(word.arg == "dtype" and re.search(_PACKED, ast.unparse(word.value)) for word in data.keywords)
        if trained is not None or packed:
            continue
        statement = source.statement_of(call)
        name = _attribute(statement, call)
        if name:
            yield Bare(name, call, data, statement, place[0], _rank(source, data))


def _is_empty(source: Source, data: ast.Call) -> bool:
    if source.is_any(data.func, *EMPTY):
        return True
    if not source.is_any(data.func, *LEGACY) or not data.args:
        return False
    if len(data.args) > 1:
        return True
    return _is_size(source, data.args[0])  # torch.Tensor(x) copies x if it is a list


def _is_size(source: Source, argument: ast.expr) -> bool:
    """Whether a lone argument of `torch.Tensor` is surely a number of elements."""
    if isinstance(argument, ast.BinOp) or isinstance(source.constant(argument), int):
        return True
    function = source.function_of(argument)
    if isinstance(argument, ast.Name) and function is not None:
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        annotations = [item.annotation for item in parameters if item.arg == argument.id and item.annotation]
        return any(ast.unparse(annotation) == "int" for annotation in annotations)
    return False


def _attribute(statement: ast.stmt, call: ast.Call) -> str:
    match statement:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=value):
            return name if _is_kept(value, call) else ""
        case ast.AnnAssign(target=ast.Attribute(value=ast.Name(id="self"), attr=name), value=ast.expr() as value):
            return name if _is_kept(value, call) else ""
        case ast.Expr(
            value=ast.Call(
                func=ast.Attribute(value=ast.Name(id="self"), attr="register_parameter"),
                args=[ast.Constant(value=str() as name), value],
            )
        ):
            return name if value is call else ""
    return ""


def _is_kept(value: ast.expr, call: ast.Call) -> bool:
    """Whether the parameter itself is what is assigned, or the element of a ParameterList."""
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            return _is_kept(body, call) or _is_kept(orelse, call)
        case ast.Call(func=ast.Name(id="ParameterList") | ast.Attribute(attr="ParameterList"), args=[inner]):
            return _is_kept(inner, call)
        case ast.ListComp(elt=element):
            return element is call
        case ast.List(elts=elements):
            return call in elements
    return value is call


def _rank(source: Source, empty: ast.Call) -> int:
    sizes = empty.args
    if any(isinstance(size, ast.Starred) for size in sizes) or source.is_any(empty.func, "torch.empty_like"):
        return 0
    if len(sizes) == 1:
        if isinstance(sizes[0], (ast.Tuple, ast.List)):
            return 0 if any(isinstance(item, ast.Starred) for item in sizes[0].elts) else len(sizes[0].elts)
        return 1 if isinstance(source.constant(sizes[0]), int) or isinstance(sizes[0], (ast.BinOp, ast.Name)) else 0
    return len(sizes)


# What fills it --------------------------------------------------------------------------------------------------------


def is_written(source: Source, bare: Bare) -> bool:
    """Whether a statement of the class surely writes to it, as one does that was put there to mend it."""
    nodes = [*source.tree.all(ast.Call), *source.tree.all(ast.Assign)]
    return any(
        (write := write_of(source, node)) is not None
        and write.name == bare.name
        and source.class_of(node) is bare.facts.node
        and write.node is not bare.statement
        for node in nodes
    )


def may_be_filled(source: Source, bare: Bare) -> bool:
    """Whether anything in the file, or anything unknown, may write to the parameter before it is used."""
    facts = bare.facts
    if _is_packed(source, facts):
        return True
    family = {facts, *facts.ancestors, *[other for other in source.module_classes if facts in other.ancestors]}
    if any(holder.has_unseen_base or holder.node.decorator_list for holder in family):
        return True
    if re.search(_QUANTISED, facts.name) or re.search(_QUANTISED, source.path.rpartition("/")[2]):
        return True
    return (
        _is_mentioned(source, bare, family)
        or _is_named(source, bare)
        or _loops_fill(source, bare)
        or any(_is_handed_over(source, holder) for holder in family)
    )


def _is_packed(source: Source, facts: ModuleClass) -> bool:
    """Whether the class holds weights that are never trained or no floats: those of such a layer come from a loader."""
    for call in source.calls_to(*PARAMETER):
        place, data = source.method_of(call), source.argument(call, "data", 0)
        if place is None or place[0] is not facts:
            continue
        frozen = source.constant(source.argument(call, "requires_grad", 1)) is False
        if frozen and isinstance(data, ast.Call) and _is_empty(source, data):
            return True
    return False


def _is_mentioned(source: Source, bare: Bare, family: set[ModuleClass]) -> bool:
    """Whether `x.name` stands anywhere where it may be written, or passed on to what may write it."""
    for node in source.tree.attributes(bare.name):
        if source.statement_of(node) is bare.statement:
            continue
        place = source.method_of(node)
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if own and place is not None and place[0] not in family:
            continue
        if own and _is_other_definition(source, node):
            continue
        if not _only_reads(source, node, place[1] if place else None) and not _is_about_torch_layers(source, node):
            return True
    return False


def _is_other_definition(source: Source, node: ast.Attribute) -> bool:
    """`self.name = None`, or the same parameter made in another branch."""
    statement = source.statement_of(node)
    if not isinstance(statement, ast.Assign) or node not in statement.targets:
        return False
    value = statement.value
    if isinstance(value, ast.Constant):
        return value.value is None
    data = source.argument(value, "data", 0) if isinstance(value, ast.Call) else None
    return isinstance(data, ast.Call) and _is_empty(source, data)


def _only_reads(source: Source, node: ast.Attribute, method: Function | None) -> bool:
    """Whether this use of the parameter surely leaves its values alone."""
    if not isinstance(node.ctx, ast.Load):
        return False
    parent = source.tree.parent(node)
    in_forward = method is not None and method.name.startswith(_READ_ONLY)
    match parent:
        case ast.Attribute(attr=attr):
            called = isinstance(source.tree.parent(parent), ast.Call)
            return not (called and attr.endswith("_")) and (in_forward or attr not in ("data", "detach", "copy_"))
        case ast.Call(func=function) if function is not node:
            names = source.resolve(function)
            known = bool(names) and all(name.startswith("torch.") and not name.startswith(INIT) for name in names)
            tail = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            return (known or in_forward) and not tail.endswith("_")
        case ast.List() | ast.Tuple() if isinstance(above := source.tree.parent(parent), ast.Call):
            return in_forward or source.is_any(above.func, *_JOINS)
        case ast.BinOp() | ast.Compare() | ast.UnaryOp() | ast.Return() | ast.FormattedValue():
            return True
        case ast.Subscript(ctx=ast.Load()):
            return in_forward
    return in_forward and not isinstance(parent, ast.AugAssign)


def _is_about_torch_layers(source: Source, node: ast.Attribute) -> bool:
    """Whether it stands under `isinstance(x, …)` naming torch's own layers only, none of which this class is."""
    if not isinstance(node.value, ast.Name):
        return False
    below: ast.AST = node
    for above in source.tree.ancestors(node):
        if isinstance(above, ast.If) and below in above.body:
            for test in walk(above.test):
                match test:
                    case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), types]):
                        kinds = types.elts if isinstance(types, ast.Tuple) else [types]
                        names = [source.resolve(kind) for kind in kinds]
                        torch_only = all(len(each) == 1 and next(iter(each)).startswith("torch.nn.") for each in names)
                        if name == node.value.id and torch_only:
                            return True
        below = above
    return False


def _is_named(source: Source, bare: Bare) -> bool:
    """Whether a text of the file names the parameter, as code that finds parameters by name does."""
    path = re.compile(rf"(?:[\w.*]+\.)?{re.escape(bare.name)}(?:\.\w+)?")
    for text in source.tree.all(ast.Constant):
        if isinstance(text.value, str) and path.fullmatch(text.value) and not _registers(source.tree.parent(text)):
            return True
    return False


def _registers(node: ast.AST | None) -> bool:
    """`self.register_parameter("name", None)`, or a buffer of that name in another class: no search by name."""
    match node:
        case ast.Call(func=ast.Attribute(attr="register_buffer")):
            return True
        case ast.Call(func=ast.Attribute(attr="register_parameter"), args=[_, ast.Constant(value=None) | ast.Call()]):
            return True
    return False


def _loops_fill(source: Source, bare: Bare) -> bool:
    """Whether a loop over parameters fills it; one over matrices only (`p.dim() > 1`) leaves a vector as it is."""
    holders = {bare.facts, *bare.facts.ancestors, *owners(source, bare.facts)}
    holders |= {other for other in source.module_classes if bare.facts in other.ancestors}
    for call in source.calls_named("parameters", "named_parameters", "state_dict"):
        loop = next((above for above in source.tree.ancestors(call) if isinstance(above, (ast.For, ast.stmt))), None)
        if not isinstance(loop, ast.For) or not _contains(loop.iter, call):
            continue
        if _is_about_others(source, call, holders):
            continue
        for node in walk_scope(loop):
            write = write_of(source, node) if isinstance(node, (ast.Call, ast.Assign, ast.AugAssign)) else None
            handed = isinstance(node, ast.Call) and not source.resolve(node.func) and bool(node.args)
            if (write is not None or handed) and not (bare.rank == 1 and _for_matrices_only(source, node, loop)):
                return True
    return False


def _is_about_others(source: Source, call: ast.Call, holders: set[ModuleClass]) -> bool:
    """`self.parameters()` in a class that neither is, inherits from nor holds the parameter's class."""
    place = source.method_of(call)
    match call.func:
        case ast.Attribute(value=ast.Name(id="self")):
            return place is not None and place[0] not in holders
    return False


def _contains(node: ast.AST, inner: ast.AST) -> bool:
    return any(item is inner for item in walk(node))


def _for_matrices_only(source: Source, node: ast.AST, loop: ast.For) -> bool:
    below = node
    for above in source.tree.ancestors(node):
        if above is loop:
            return False
        match above:
            case ast.If(test=ast.Compare(left=left, ops=[ast.Gt()], comparators=[ast.Constant(value=1)])) if (
                below in above.body and re.search(r"\.(dim\(\)|ndim|ndimension\(\))$|^len\(", ast.unparse(left))
            ):
                return True
        below = above
    return False


def _is_handed_over(source: Source, holder: ModuleClass) -> bool:
    """Whether a method hands the object, or its initialisation, to code that this file does not show."""
    for method in holder.methods.values():
        if method.name.startswith(_READ_ONLY):
            continue
        for node in walk_scope(method):
            if not isinstance(node, ast.Call):
                continue
            tail = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            arguments = [*node.args, *[word.value for word in node.keywords]]
            given = any(isinstance(argument, ast.Name) and argument.id == "self" for argument in arguments)
            if given and tail not in _HARMLESS:
                return True
            match node.func:
                case ast.Attribute(value=ast.Name(id="self"), attr="apply") if node.args:
                    function = node.args[0]
                    names = source.resolve(function)
                    local = any(name in source.names.definitions for name in names)
                    own = isinstance(function, ast.Attribute) and holder.method(function.attr) is not None
                    if not (local or own or isinstance(function, ast.Lambda)):
                        return True
                case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                    known = holder.method(attr) is not None or holder.attributes.get(attr) or attr in _MODULE_METHODS
                    if not known:
                        return True
    return False


_MODULE_METHODS = {
    "register_parameter", "register_buffer", "register_module", "add_module", "train", "eval", "to", "parameters",
    "named_parameters", "modules", "named_modules", "children", "named_children", "requires_grad_", "zero_grad",
    "float", "half", "double", "cuda", "cpu", "extra_repr", "state_dict", "register_forward_hook", "buffers",
    "named_buffers", "register_forward_pre_hook", "get_submodule", "apply",
}  # fmt: skip
