"""What a module's own `train` and `eval` leave out of the contract that `nn.Module` keeps: take the mode, pass it on to
every layer, return the module."""

from __future__ import annotations

import ast
import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source


class Fault(enum.Enum):
    """What an override gets wrong.

    NO_MODE: `train(self)`; ROUTINE: it is something else than the switch of mode, and needs arguments that `eval()`
    does not pass; NOT_SWITCHED: layers, or the module itself, keep their mode; IGNORES: the mode it is given goes
    nowhere; NO_RETURN: None in place of the module.
    """

    NO_MODE = "no mode"
    ROUTINE = "routine"
    NOT_SWITCHED = "not switched"
    IGNORES = "ignores"
    NO_RETURN = "no return"


class Override(NamedTuple):
    """A `train` or `eval` of a module class, with its faults, the gravest first."""

    owner: ModuleClass
    method: Function
    faults: tuple[Fault, ...]


_MODE_NAMES = ("mode", "train", "flag", "enable", "status", "state", "phase", "is_")
_EVERY_LAYER = frozenset({"children", "modules", "named_children", "named_modules", "_modules"})


def overrides(source: Source) -> Iterator[Override]:
    """The faulty `train`s and `eval`s of the file's module classes, in document order."""
    for facts in source.module_classes:
        for name in ("train", "eval"):
            method = facts.methods.get(name)
            if method is not None and _is_plain(method):
                faults = tuple(_faults(facts, method))
                if faults:
                    yield Override(facts, method, faults)


def _is_plain(method: Function) -> bool:
    """Whether it is an ordinary method with a body of its own."""
    ends = method.body[-1]
    stub = isinstance(ends, ast.Raise) or (isinstance(ends, ast.Expr) and isinstance(ends.value, ast.Constant))
    return not method.decorator_list and not stub and isinstance(method, ast.FunctionDef) and bool(method.args.args)


def _faults(facts: ModuleClass, method: Function) -> Iterator[Fault]:
    if method.name == "train" and not _takes_anything(method):
        yield Fault.NO_MODE
    elif _is_routine(method):
        # Where `eval` is not the usual one either, nothing calls `train` with a mode but a module around this one.
        if method.name == "train" and not facts.has_unseen_base and facts.method("eval") is None:
            yield Fault.ROUTINE
        return
    if not _switches(facts, method):
        yield Fault.NOT_SWITCHED
    elif method.name == "train" and _ignores_mode(method):
        yield Fault.IGNORES
    if not _returns(method):
        yield Fault.NO_RETURN


def _takes_anything(method: Function) -> bool:
    arguments = method.args
    return len(arguments.posonlyargs) + len(arguments.args) > 1 or arguments.vararg is not None


def _is_routine(method: Function) -> bool:
    """Whether the parameters are not those of a switch: a data loader, a number of epochs."""
    arguments = method.args
    if len(arguments.args) < 2:
        return any(default is None for default in arguments.kw_defaults)
    first = arguments.args[1]
    if method.name == "eval":
        return len(arguments.defaults) < len(arguments.args) - 1
    required = len(arguments.args) - len(arguments.defaults)
    named = any(word in first.arg.lower() for word in _MODE_NAMES)
    boolean = isinstance(first.annotation, ast.Name) and first.annotation.id == "bool"
    if named or boolean:
        return required > 2  # more than the mode
    default = arguments.defaults[-len(arguments.args) + 1 :][0] if required < 2 else None
    return not (isinstance(default, ast.Constant) and isinstance(default.value, bool))


# Does it switch? -----------------------------------------------------------------------------------------------------


def switch_calls(method: Function) -> list[ast.Call]:
    """The calls by which a `train` or `eval` hands over to the one it overrides, or to the other of the two."""
    found = []
    for node in walk_scope(method):
        match node:
            case ast.Call(func=ast.Attribute(value=receiver, attr="train" | "eval" as name)):
                inherited = isinstance(receiver, ast.Call) and getattr(receiver.func, "id", "") == "super"
                first = node.args[0] if node.args else None
                by_class = isinstance(first, ast.Name) and first.id == method.args.args[0].arg
                other = _is_self(receiver, method) and name != method.name
                if inherited or by_class or other:
                    found.append(node)
    return found


def _is_self(node: ast.AST, method: Function) -> bool:
    return isinstance(node, ast.Name) and node.id == method.args.args[0].arg


def _switches(facts: ModuleClass, method: Function) -> bool:
    if switch_calls(method) or keeps_its_mode(method):
        return True
    names = {node.attr for node in walk(method) if isinstance(node, ast.Attribute)}
    if names & _EVERY_LAYER:
        return True
    own = any(
        isinstance(node, ast.Attribute)
        and node.attr == "training"
        and _is_self(node.value, method)
        and isinstance(node.ctx, ast.Store)
        for node in walk(method)
    )
    layers = {name for name in facts.attributes if facts.layers(name)}
    missed = {name for name in layers if name not in names}
    helper = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_self(node.func.value, method)
        for node in walk(method)
    )
    return helper or not (missed or (facts.reads_training and not own))


def keeps_its_mode(method: Function) -> bool:
    """`def train(self, mode=True): return self`: the mode is kept on purpose."""
    body = method.body[1:] if ast.get_docstring(method) is not None else method.body
    return len(body) == 1 and isinstance(body[0], (ast.Return, ast.Pass))


def _ignores_mode(method: Function) -> bool:
    """Whether `super().train()` is called without the mode that the method takes, and nothing else looks at it."""
    calls = switch_calls(method)
    if not calls or not _takes_anything(method) or any(call.args or call.keywords for call in calls):
        return False
    parameters = {argument.arg for argument in method.args.args[1:]}
    return bool(parameters) and not any(isinstance(node, ast.Name) and node.id in parameters for node in walk(method))


def _returns(method: Function) -> bool:
    return any(isinstance(node, ast.Return) and node.value is not None for node in walk_scope(method))
