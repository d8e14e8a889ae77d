"""Layers that a module uses without owning them: built in `forward`, or kept where torch does not look."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.constants import enclosing_scope
from auditor.static.facts.gating import call_sites, follows_mode, gated
from auditor.static.facts.stateful import State, state_of
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

_MOVES = frozenset(
    {"to", "cuda", "cpu", "float", "half", "double", "bfloat16", "type", "type_as", "train", "requires_grad_"}
)
_PLACED = _MOVES - {"requires_grad_"}  # frozen on purpose is another matter than moved
_NOT_RUN = frozenset({"__init__", "__new__", "reset_parameters", "init_weights", "_init_weights"})


# Built in forward --------------------------------------------------------------------------------------------------


class Built(NamedTuple):
    """A layer built anew at every forward. `variable`: the local name that holds it; "" where it is called at once."""

    call: ast.Call
    state: State
    method: Function
    variable: str = ""


def built_in_forward(source: Source, facts: ModuleClass) -> Iterator[Built]:
    """The layers with a state that `forward`, or a method of the class that it reaches, builds, calls and forgets."""
    if not any(method in source.constructions for name, method in facts.methods.items() if name not in _NOT_RUN):
        return
    for method in _reached(source, facts):
        for node in source.constructions.get(method, ()):
            if (state := state_of(source, node)) and not _is_part(source, node):
                use = use_of(source, node, method)
                on_purpose = state is State.MODE and (gated(source, node) or _rate_follows(source, node))
                if use is not None and not on_purpose:
                    yield Built(node, state, method, use)


def _reached(source: Source, facts: ModuleClass) -> list[Function]:
    """`forward` and the methods of the same class that it calls, in the order of the class."""
    found = [facts.methods["forward"]] if "forward" in facts.methods else []
    for method in found:
        for other in facts.methods.values():
            called = any(source.function_of(site) is method for site in call_sites(source, other))
            if called and other not in found and other.name not in _NOT_RUN:
                found.append(other)
    return sorted(found, key=lambda method: method.lineno)


def _is_part(source: Source, call: ast.Call) -> bool:
    """Whether it is built as a part of another layer, such as an element of `nn.Sequential(…)`."""
    for above in source.tree.ancestors(call):
        if isinstance(above, ast.stmt):
            return False
        if isinstance(above, ast.Call) and source.layer_kind(above):
            return True
    return False


def use_of(source: Source, call: ast.Call, method: Function) -> str | None:
    """The variable that holds the layer ("": none) if all that happens to it is to be called; None otherwise."""
    value = _moved(source, call)
    parent = source.tree.parent(value)
    if isinstance(parent, ast.Call) and parent.func is value:
        return ""
    match parent:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name if _only_called(method, name) else None
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"))]) if source.tree.parent(parent) is method:
            return "" if method.name == "forward" and not _leaves_early(method, parent) else None
    return None


def _moved(source: Source, call: ast.Call) -> ast.AST:
    """The expression after `.to(…)`, `.cuda()` and the like; `.eval()` is not like them."""
    value: ast.AST = call
    while True:
        parent = source.tree.parent(value)
        outer = source.tree.parent(parent) if isinstance(parent, ast.Attribute) and parent.attr in _MOVES else None
        if not isinstance(outer, ast.Call) or outer.func is not parent:
            return value
        value = outer


def _only_called(method: Function, name: str) -> bool:
    """Whether every use of the variable is a call of it, or moves it to a device."""
    called = False
    for node in walk(method):
        match node:
            case ast.Call(func=ast.Name(id=used)) if used == name:
                called = True
    uses = [node for node in walk(method) if isinstance(node, ast.Name) and node.id == name]
    loads = [node for node in uses if isinstance(node.ctx, ast.Load)]
    harmless = {
        id(receiver)
        for node in walk(method)
        if isinstance(node, ast.Call)
        for receiver in (_receiver(node),)
        if receiver is not None
    }
    return called and all(id(node) in harmless for node in loads)


def _receiver(call: ast.Call) -> ast.Name | None:
    match call.func:
        case ast.Name() as name:
            return name
        case ast.Attribute(value=ast.Name() as name, attr=attr) if attr in _MOVES:
            return name
    return None


def _leaves_early(method: Function, statement: ast.stmt) -> bool:
    earlier = method.body[: method.body.index(statement)]
    return any(isinstance(node, ast.Return) for item in earlier for node in walk(item))


def _rate_follows(source: Source, call: ast.Call) -> bool:
    return any(follows_mode(source, argument) for argument in (*call.args, *(item.value for item in call.keywords)))


# Kept out of torch's sight -----------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Layers in a plain list, tuple or dict of a module. `statement` first sets the attribute, `value` is what it sets,
    `layers` are the constructions that end up in it."""

    attribute: str
    statement: ast.stmt
    value: ast.expr
    layers: tuple[ast.Call, ...]
    state: State


_LISTS = (ast.List, ast.Tuple, ast.ListComp)
_DICTS = (ast.Dict, ast.DictComp)
_ADDS = {"append": 0, "insert": 1, "extend": 0}


def kept_in_containers(source: Source, facts: ModuleClass) -> Iterator[Kept]:
    """Attributes of the class that hold two or more layers with a state in a plain container, and do nothing else
    with it that could register them."""
    for name, assigned in facts.own_attributes.items():
        first = assigned[0]
        if len(assigned) > 1 or not isinstance(first.statement, (ast.Assign, ast.AnnAssign)):
            continue
        local = first.value.id if isinstance(first.value, ast.Name) else ""
        initial = _only_binding(source, first.method, local) if local else first.value
        if not isinstance(initial, _LISTS + _DICTS) or (local and _escapes(source, first.method, local)):
            continue
        layers = [*_elements(source, initial), *_added(source, facts, name, local, first.method)]
        stateful = [layer for layer in layers if state_of(source, layer)]
        single = (
            len(stateful) < 2
            and isinstance(initial, (ast.List, ast.Tuple, ast.Dict))
            and bool(_elements(source, initial))
        )
        if stateful and not single and not _taken_care_of(source, facts, name):
            state = max(state_of(source, layer) for layer in stateful)
            yield Kept(name, first.statement, first.value, tuple(stateful), state)


def _only_binding(source: Source, method: Function, name: str) -> ast.expr | None:
    stores = [store for store in source.names.stores(name) if source.function_of(store) is method]
    parent = source.tree.parent(stores[0]) if len(stores) == 1 else None
    return parent.value if isinstance(parent, (ast.Assign, ast.AnnAssign)) else None


def _elements(source: Source, container: ast.expr) -> list[ast.Call]:
    """The layers constructed as direct elements of a literal or comprehension, also of nested ones, moved or not."""
    match container:
        case ast.Call(func=ast.Attribute(value=inside, attr=attr)) if attr in _PLACED:
            return _elements(source, inside)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            inner: list[ast.expr] = list(elements)
        case ast.Dict(values=values):
            inner = list(values)
        case ast.ListComp(elt=element):
            inner = [element]
        case ast.DictComp(value=value):
            inner = [value]
        case ast.Call() if source.layer_kind(container):
            return [container]
        case _:
            return []
    return [call for item in inner for call in _elements(source, item)]


def _added(source: Source, facts: ModuleClass, attribute: str, local: str, method: Function) -> Iterator[ast.Call]:
    """Layers that `append` and the like, or `held[key] = …`, put into the container."""
    for owner in facts.methods.values():
        for node in source.once(_additions).get(owner, ()):
            value: ast.expr | None = None
            match node:
                case ast.Call(func=ast.Attribute(value=held, attr="append" | "insert" | "extend" as verb), args=args):
                    value = args[_ADDS[verb]] if len(args) > _ADDS[verb] else None
                case ast.Assign(targets=[ast.Subscript(value=held)], value=value):
                    pass
                case _:
                    continue
            if value is None or not _is_container(held, attribute, local if owner is method else ""):
                continue
            if isinstance(value, ast.Name):
                bound = _only_binding(source, owner, value.id)
                if bound is None or _is_passed_on(owner, value):
                    continue
                value = bound
            yield from _elements(source, value)


def _additions(source: Source) -> dict[ast.AST | None, list[ast.AST]]:
    """What may put something into a container, by the innermost function around it, in document order."""
    items = [node for node in source.tree.all(ast.Assign) if isinstance(node.targets[0], ast.Subscript)]
    added: list[ast.Assign | ast.Call] = [*source.calls_named(*_ADDS), *items]
    found: dict[ast.AST | None, list[ast.AST]] = {}
    for node in sorted(added, key=lambda node: (node.lineno, node.col_offset)):
        found.setdefault(enclosing_scope(source, node), []).append(node)
    return found


def _is_container(held: ast.expr, attribute: str, local: str) -> bool:
    match held:
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            return attr == attribute
        case ast.Name(id=name):
            return bool(local) and name == local
    return False


def _is_passed_on(function: Function, name: ast.Name) -> bool:
    """Whether the layer held by this variable is also given to anything else, which may register it."""
    for node in walk(function):
        if isinstance(node, ast.Name) and node.id == name.id and node is not name and isinstance(node.ctx, ast.Load):
            return True
    return False


def _escapes(source: Source, method: Function, local: str) -> bool:
    """Whether a local list is used for anything but being filled, indexed and stored once."""
    stored = 0
    for node in walk(method):
        if not (isinstance(node, ast.Name) and node.id == local and isinstance(node.ctx, ast.Load)):
            continue
        parent = source.tree.parent(node)
        if isinstance(parent, (ast.Assign, ast.AnnAssign)):
            stored += 1
        elif not isinstance(parent, (ast.Attribute, ast.Subscript)) and not _is_len(parent):
            return True
    return stored != 1


def _is_len(parent: ast.AST | None) -> bool:
    return isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "len"


# Methods of a class that look after layers which torch does not see.
_CARE = frozenset(
    {"parameters", "named_parameters", "state_dict", "modules", "named_modules", "children", "_apply", "cuda", "to"}
)
_ASKS = _CARE - _PLACED  # a layer that is moved to the device by hand is still neither trained nor saved
_REGISTERS = frozenset({"add_module", "register_module", "setattr", "__setattr__"})


def _taken_care_of(source: Source, facts: ModuleClass, attribute: str) -> bool:
    """Whether the container is handed to anything that may register its layers, or the class looks after them."""
    classes = (facts, *(other for other in source.module_classes if facts in other.ancestors))
    for owner in classes:
        if not _CARE.isdisjoint(owner.methods):
            return True
        for method in owner.methods.values():
            if any(_hands_over(source, node, attribute, method) for node in walk_scope(method)):
                return True
    return False


def _hands_over(source: Source, node: ast.AST, attribute: str, method: Function) -> bool:
    """Whether `self.<attribute>` is an argument of a call (not of `len`, `zip`, …), returned, or stored elsewhere; or
    layers found by looping over it are registered, or asked for their parameters."""
    if not (isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, ast.Load)):
        return False
    if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
        return False
    parent = source.tree.parent(node)
    if isinstance(parent, ast.Starred):
        parent = source.tree.parent(parent)
    above = source.tree.parent(parent) if parent is not None else None
    if isinstance(parent, ast.Attribute) and parent.attr in ("items", "values") and isinstance(above, ast.Call):
        parent = source.tree.parent(above)
    match parent:
        case ast.Call(func=ast.Name(id=name)) if name in _READERS:
            parent = source.tree.parent(parent)
        case ast.Call(func=ast.Attribute(value=held)) if held is node:
            pass
        case (
            ast.Call()
            | ast.Return()
            | ast.Assign()
            | ast.keyword()
            | ast.Yield()
            | ast.List()
            | ast.Tuple()
            | ast.Dict()
        ):
            return True
    loop = parent if isinstance(parent, (ast.For, ast.comprehension)) else None
    within = source.statement_of(node) if loop is not None else None
    return within is not None and any(_cares(inner) for inner in walk(within))


_READERS = frozenset({"len", "zip", "enumerate", "reversed", "range", "iter", "list", "tuple", "isinstance", "print"})


def _cares(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=attr)):
            return attr in _REGISTERS or attr in _ASKS
        case ast.Call(func=ast.Name(id=name)):
            return name in _REGISTERS
    return False
