"""Stacks of layers that are deep copies of one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.initialisers import Initialisers, owners
from auditor.static.layers import NN
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

_STACKS = (NN + "TransformerEncoder", NN + "TransformerDecoder")
_KEPT = r"(?i)target|ema|teacher|momentum|average|frozen|shadow|mean|reference|pretrain|checkpoint"
# Calls after which the copies are no longer what they were copied from.
_FILLS = (
    "apply",
    "load_state_dict",
    "reset_parameters",
    "_reset_parameters",
    "init_weights",
    "_init_weights",
    "post_init",
)


class Stack(NamedTuple):
    """Copies that a class keeps. `node`: the expression that makes them, in the helper that does so if there is one;
    `statement`: what keeps them, as `attribute` of `self`; `listed`: a list of `deepcopy`, not torch's own stack."""

    node: ast.Call
    statement: ast.stmt
    attribute: str
    listed: bool


def copied_stacks(source: Source) -> Iterator[Stack]:
    """The stacks of random layers that the constructors of the file's classes make by copying, and that nothing of the
    file initialises afterwards. A helper such as `clones(layer, n)` counts where it is called."""
    cloners: dict[str, ast.Call] = {}
    for function in source.tree.all(ast.FunctionDef):
        made = _clones(source, function)
        if made is not None and function in source.names.definitions.get(function.name, ()):
            cloners[function.name] = made
    for facts in source.module_classes:
        start = facts.methods.get("__init__")
        if start is None or facts.has_unseen_base or re.search(_KEPT, facts.name):
            continue
        for attributes in facts.own_attributes.values():
            for attribute in attributes:
                for call in walk(attribute.value):
                    made = _maker(source, call, cloners) if isinstance(call, ast.Call) else None
                    if made is not None and attribute.method is start and not _filled_later(source, facts):
                        yield Stack(made, attribute.statement, attribute.name, not source.is_any(made.func, *_STACKS))


def _maker(source: Source, call: ast.Call, cloners: Mapping[str, ast.Call]) -> ast.Call | None:
    """The expression that makes the copies which `call` gives; None if it copies no layers."""
    if source.is_any(call.func, *_STACKS):
        layers = source.argument(call, "num_layers", 1)
        return call if isinstance(layers, ast.expr) and source.constant(layers) != 1 else None
    if isinstance(call.func, ast.Name):
        return cloners.get(call.func.id)
    if source.is_any(call.func, NN + "ModuleList", NN + "Sequential") and any(map(_is_copying, _listed(call))):
        copied = next(inner for inner in walk(call) if isinstance(inner, ast.Call) and _named_deepcopy(inner))
        return call if copied.args and _copies_one(call, copied.args[0]) else None
    return None


def _listed(call: ast.Call) -> list[ast.expr]:
    return [argument.value if isinstance(argument, ast.Starred) else argument for argument in call.args]


def _is_copying(node: ast.expr) -> bool:
    """`[copy.deepcopy(x) for _ in range(n)]`."""
    if not isinstance(node, (ast.ListComp, ast.GeneratorExp)) or len(node.generators) != 1:
        return False
    return isinstance(node.elt, ast.Call) and _named_deepcopy(node.elt)


def _named_deepcopy(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("copy.deepcopy", "deepcopy")


def _copies_one(call: ast.Call, copied: ast.expr) -> bool:
    """Whether what is copied is the same layer every time, not one of those that the list goes over."""
    bound = {
        name.id
        for node in walk(call)
        if isinstance(node, ast.comprehension)
        for name in walk(node.target)
        if isinstance(name, ast.Name)
    }
    names = {name.id for name in walk(copied) if isinstance(name, ast.Name)}
    return (
        isinstance(copied, (ast.Name, ast.Attribute))
        and not names & bound
        and not re.search(_KEPT, ast.unparse(copied))
    )


def _clones(source: Source, function: ast.FunctionDef) -> ast.Call | None:
    """The copies that a function returns of its first argument and makes in its only statement:
    `def clones(module, n): return nn.ModuleList([copy.deepcopy(module) for _ in range(n)])`."""
    body = [statement for statement in function.body if not isinstance(statement, ast.Expr)]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or not isinstance(body[0].value, ast.Call):
        return None
    call, arguments = body[0].value, function.args.args
    copies = bool(arguments) and f"deepcopy({arguments[0].arg})" in ast.unparse(call)
    return _maker(source, call, {}) if copies and not isinstance(call.func, ast.Name) else None


def _filled_later(source: Source, facts: ModuleClass) -> bool:
    """Whether the class, one that holds it, or code of the file that builds either, fills weights or loads them."""
    around = [facts, *facts.ancestors, *owners(source, facts)]
    if any(event.reach.calls is None or event.reach.deep for event in Initialisers(source, facts).events):
        return True
    names = {facts.name for facts in around}
    for call in source.calls_named(*_FILLS):
        method = source.method_of(call)
        if method is None or method[0].name in names:
            return True
    return any(name.startswith(("init_", "_init", "reset_")) for item in around for name in item.methods)
