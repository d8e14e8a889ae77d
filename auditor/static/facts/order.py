"""The order in which weights are made, loaded and initialised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.initialisers import write_of
from auditor.static.layers import BATCH_NORMS, CONVS, NN
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

_WHOLE = r"_?(init|initiali[sz]e|reset)_?(weights?|params|parameters)"


# Loaded, then initialised ---------------------------------------------------------------------------------------------


def loaded_then_initialised(source: Source) -> Iterator[tuple[ast.Call, ast.Call]]:
    """(`model.load_state_dict(…)`, `model.apply(init)`) of one block, in this order, on the same object, when nothing
    between them binds it anew and the initialiser fills weights."""
    for loading in source.calls_named("load_state_dict"):
        receiver, statement = _receiver(loading), source.statement_of(loading)
        if receiver is None or not isinstance(statement, (ast.Expr, ast.Assign)) or _is_optimizer(receiver):
            continue
        for following in _after(source, statement):
            if receiver in _bound(following):
                break
            call = following.value if isinstance(following, ast.Expr) else None
            if isinstance(call, ast.Call) and _receiver(call) == receiver and _fills(source, call):
                yield loading, call


def _receiver(call: ast.Call) -> str | None:
    match call.func:
        case ast.Attribute(value=ast.Name() | ast.Attribute() as receiver):
            return ast.unparse(receiver)
    return None


def _is_optimizer(receiver: str) -> bool:
    return re.search(r"(?i)optim|sched|scaler", receiver) is not None


def _after(source: Source, statement: ast.stmt) -> Sequence[ast.stmt]:
    """The statements of the same block behind it."""
    parent = source.tree.parent(statement)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and statement in block:
            return block[block.index(statement) + 1 :]
    return ()


def _bound(statement: ast.stmt) -> set[str]:
    targets = [target for node in walk(statement) if isinstance(node, ast.Assign) for target in node.targets]
    return {ast.unparse(target) for target in targets}


def _fills(source: Source, call: ast.Call) -> bool:
    """Whether a call surely initialises everything: `apply` of a function of the file that writes weights of plain
    linear or convolutional layers, whatever their names."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "apply" or len(call.args) != 1:
        return False
    names = source.resolve(call.args[0])
    found = [node for name in names for node in source.names.definitions.get(name, [])]
    if len(names) != 1 or len(found) != 1 or not isinstance(found[0], ast.FunctionDef):
        return False
    writes = [write for node in walk_scope(found[0]) if (write := write_of(source, node)) is not None]
    text = ast.unparse(found[0])
    return any(write.name == "weight" for write in writes) and re.search(r"Linear|Conv", text) is not None


# Shadowed branches ----------------------------------------------------------------------------------------------------


def shadowed_branches(source: Source) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(earlier test, later test) of `if isinstance(m, A): … elif isinstance(m, B): …` where every B is an A, in
    functions that initialise."""
    for chain in source.tree.all(ast.If):
        parent = source.tree.parent(chain)
        if isinstance(parent, ast.If) and parent.orelse == [chain]:
            continue  # not the first of its chain
        seen: list[tuple[str, frozenset[str], ast.expr]] = []
        part: ast.stmt | None = chain
        while isinstance(part, ast.If):
            name, types = _isinstance(source, part.test)
            if name and types:
                for earlier, taken, test in seen:
                    if earlier == name and _writes(source, part) and all(_is_taken(kind, taken) for kind in types):
                        yield test, part.test
                        break
                seen.append((name, types, part.test))
            part = part.orelse[0] if len(part.orelse) == 1 else None


def _isinstance(source: Source, test: ast.expr) -> tuple[str, frozenset[str]]:
    match test:
        case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), types]):
            elements = types.elts if isinstance(types, (ast.Tuple, ast.List)) else [types]
            resolved = [source.resolve(element) for element in elements]
            if all(len(names) == 1 for names in resolved):
                return name, frozenset().union(*resolved)
    return "", frozenset()


def _writes(source: Source, part: ast.If) -> bool:
    return any(write_of(source, node) is not None for statement in part.body for node in walk(statement))


def _is_taken(kind: str, taken: frozenset[str]) -> bool:
    """Whether an object of the class `kind` is an instance of one of `taken`."""
    if kind in taken or NN + "Module" in taken:
        return kind.startswith(NN)
    tails = {name.rpartition(".")[2] for name in taken if name.startswith(NN)}
    batch_norm = kind in BATCH_NORMS and bool(tails & {"_BatchNorm", "_NormBase"})
    return batch_norm or (kind in CONVS and "_ConvNd" in tails)


# Too early ------------------------------------------------------------------------------------------------------------


class Early(NamedTuple):
    """An `apply` in a constructor before the first layer; `last`: the constructor's last statement."""

    statement: ast.stmt
    last: ast.stmt


def applied_too_early(source: Source) -> Iterator[Early]:
    """`self.apply(…)` and calls of own methods that initialise, as statements of a constructor in front of everything
    that could give the model a layer."""
    for facts in source.module_classes:
        start = facts.methods.get("__init__")
        if start is None or facts.has_unseen_base or facts.ancestors:
            continue
        for index, statement in enumerate(start.body):
            if _is_filling(source, facts, statement):
                later = [item for item in start.body[index + 1 :] if _layers_in(source, item)]
                if later and not isinstance(start.body[-1], (ast.Return, ast.Raise)):
                    yield Early(statement, start.body[-1])
                break
            if not _is_inert(statement):
                break


def _is_filling(source: Source, facts: ModuleClass, statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr="apply"), args=[argument])):
            return not isinstance(argument, ast.Lambda)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name), args=[])):
            method = facts.methods.get(name)
            return method is not None and re.fullmatch(_WHOLE, name) is not None and _walks_modules(method)
    return False


def _walks_modules(method: Function) -> bool:
    """Whether the method does nothing but walk over the modules that exist."""
    body = [item for item in method.body if not isinstance(item, ast.Expr)]
    walk = r"self\.(named_)?(modules|parameters)\(\)"
    return bool(body) and all(isinstance(item, ast.For) and re.search(walk, ast.unparse(item.iter)) for item in body)


def _is_inert(statement: ast.stmt) -> bool:
    """`super().__init__(…)`, a docstring, or plain values: nothing that could hold a layer."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__"))):
            return True
        case ast.Assign(value=value):
            return not any(isinstance(node, ast.Call) for node in walk(value)) and not isinstance(value, ast.Name)
    return False


def _layers_in(source: Source, statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(
        source.layer_kind(node) for node in walk(statement.value) if isinstance(node, ast.Call)
    )
