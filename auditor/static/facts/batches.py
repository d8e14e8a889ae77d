"""How many samples a training loop gives its model at a time, where the file says so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.classes import ModuleClass
from auditor.static.constants import binding
from auditor.static.facts.values import arguments_for, held
from auditor.static.layers import BATCH_NORMS
from auditor.static.modes.analysis import modes_of
from auditor.static.source import Source
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Hidden

LOADER = "torch.utils.data.DataLoader"
_EVALUATES = r"(?i)(?:^|_)(?:test|val|valid|validation|eval|evaluation|infer|inference|predict|demo)"
_LOOKS = frozenset({"enumerate", "tqdm", "trange", "track", "iter", "islice", "cycle", "prefetch"})
_MOVES = frozenset(
    {"to", "cuda", "float", "half", "double", "bfloat16", "type", "contiguous", "detach", "requires_grad_"}
)
_DEPTH = 6


class TrainingCall(NamedTuple):
    """A model of this file called on what a training loop goes through.

    `loader`: the DataLoader that the loop goes through; None where each item is made a batch of one by hand (`data`).
    `owner`: the class of the model, if the file defines it; `norms`: the BatchNorms it builds, at least one.
    """

    loop: ast.For
    call: ast.Call
    data: ast.expr
    loader: ast.Call | None
    owner: ModuleClass | None
    norms: tuple[ast.Call, ...]


def training_calls(source: Source) -> Iterator[TrainingCall]:
    """Calls of models with BatchNorm in loops that also call `backward` and `step`, in document order."""
    if not (source.calls_named("backward") and source.calls_named("step")) or source.once(_keeps_norms_in_eval):
        return
    for loop in source.tree.all(ast.For):
        calls = [node for node in walk(loop) if isinstance(node, ast.Call)]
        methods = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
        if not {"backward", "step"} <= methods:
            continue
        loaders = _loaders(source, loop)
        names = _names(loop.target)
        for call in calls:
            if _innermost_loop(source, call) is not loop or not call.args:
                continue
            single = _unsqueezed(source, call.args[0])
            item = _item(loop, single if single is not None else call.args[0], names)
            if item and (loaders or single is not None) and not _in_eval(source, call):
                for owner, norms in _models(source, call):
                    loader = loaders[0] if loaders and single is None else None
                    yield TrainingCall(loop, call, call.args[0], loader, owner, norms)


# The data -------------------------------------------------------------------------------------------------------------


def batch_size(source: Source, loader: ast.Call) -> int | None:
    """The batch size of a DataLoader whose batches are what it makes of the dataset's items; None if unknown."""
    unusual = ("batch_sampler", "collate_fn")
    if any(source.argument(loader, name) is not None for name in unusual):
        return None
    argument = source.argument(loader, "batch_size", 1)
    return 1 if argument is None else whole_number(source, argument)


def whole_number(source: Source, node: ast.expr | Hidden, depth: int = _DEPTH) -> int | None:
    """A number that the file fixes: written, in a variable, passed by all callers, or the default of an option."""
    if not isinstance(node, ast.expr) or depth == 0:
        return None
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            function = source.function_of(node)
            if function is not None and name in {item.arg for item in walk(function.args) if isinstance(item, ast.arg)}:
                values = {whole_number(source, value, depth - 1) for value in arguments_for(source, function, name)}
                return values.pop() if len(values) == 1 else None
            bound = binding(source, node)
            return whole_number(source, bound, depth - 1) if bound is not None else None
        case ast.Attribute(value=ast.Name(), attr=attr):
            return _option(source, attr)
    return None


def _option(source: Source, name: str) -> int | None:
    """The default of the one command line option called `name` (`--batch-size`)."""
    defaults = []
    for call in source.calls_named("add_argument"):
        flags = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        known = {str(flag).lstrip("-").replace("-", "_") for flag in flags if str(flag).startswith("--")}
        destination = source.argument(call, "dest")
        if name in known or (isinstance(destination, ast.Constant) and destination.value == name):
            default = source.argument(call, "default")
            defaults.append(default.value if isinstance(default, ast.Constant) else None)
    return defaults[0] if len(defaults) == 1 and type(defaults[0]) is int else None


def _loaders(source: Source, loop: ast.For) -> list[ast.Call]:
    """The DataLoaders that `loop` surely goes through, none of which is named for evaluation."""
    iterable = loop.iter
    while isinstance(iterable, ast.Call) and iterable.args and _tail(iterable.func) in _LOOKS:
        iterable = iterable.args[0]
    if re.search(_EVALUATES, _tail(iterable)):
        return []
    found = held(source, iterable)
    return found if all(source.is_any(call.func, LOADER) for call in found) else []


def _tail(expression: ast.expr) -> str:
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


def _names(target: ast.expr) -> set[str]:
    return {node.id for node in walk(target) if isinstance(node, ast.Name)}


def _innermost_loop(source: Source, node: ast.AST) -> ast.AST | None:
    return next((above for above in source.tree.ancestors(node) if isinstance(above, (ast.For, ast.While))), None)


def _unsqueezed(source: Source, node: ast.expr) -> ast.expr | None:
    """What is made a batch of one here: `x` of `x.unsqueeze(0)`, `torch.unsqueeze(x, 0)`, `x[None]`."""
    match _moved(node):
        case ast.Call(func=ast.Attribute(value=value, attr="unsqueeze") as function, args=args):
            if source.resolve(function) == {"torch.unsqueeze"} and len(args) == 2:
                return args[0] if _is_zero(args[1]) else None
            return value if len(args) == 1 and _is_zero(args[0]) else None
        case ast.Subscript(value=value, slice=ast.Constant(value=None)):
            return value
    return None


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


def _moved(node: ast.expr) -> ast.expr:
    """The expression without moves, casts and `Variable(…)` around it."""
    while isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in _MOVES:
            node = node.func.value
        elif _tail(node.func) == "Variable" and node.args:
            node = node.args[0]
        else:
            break
    return node


def _item(loop: ast.For, node: ast.expr, names: set[str], depth: int = _DEPTH) -> bool:
    """Whether `node` is what the loop variable holds, or one part of it, moved and cast but not reshaped."""
    node = _moved(node)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in names:
        return isinstance(loop.target, (ast.Name, ast.Tuple)) and _is_part(loop, node)
    if not isinstance(node, ast.Name) or depth == 0:
        return False
    values = list(_assignments(loop, node.id))
    if not values:
        return node.id in names
    return all(_is_itself(value, node.id) or _item(loop, value, names, depth - 1) for value in values)


def _is_itself(value: ast.expr, name: str) -> bool:
    moved = _moved(value)
    return isinstance(moved, ast.Name) and moved.id == name


def _is_part(loop: ast.For, node: ast.Subscript) -> bool:
    """`batch[0]`, `batch["image"]`: a part of the loop's own variable, which is no tensor itself then."""
    if not isinstance(node.slice, ast.Constant) or not isinstance(node.value, ast.Name):
        return False
    last = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) and loop.target.elts else loop.target
    first = isinstance(loop.iter, ast.Call) and _tail(loop.iter.func) == "enumerate"
    whole = isinstance(loop.target, ast.Name) or (
        first and isinstance(last, ast.Name) and len(_names(loop.target)) == 2
    )
    return whole and isinstance(last, ast.Name) and last.id == node.value.id


def _assignments(loop: ast.For, name: str) -> Iterator[ast.expr]:
    """What the loop's body assigns to `name`; a part of an unpacked value stands as the value."""
    for node in walk(loop):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            yield ast.Constant(None)
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and name in _names(target):
                if isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(target.elts):
                    pairs = zip(target.elts, node.value.elts, strict=True)
                    yield from (value for part, value in pairs if isinstance(part, ast.Name) and part.id == name)
                else:
                    yield node.value


# The model ------------------------------------------------------------------------------------------------------------


def _models(source: Source, call: ast.Call) -> Iterator[tuple[ModuleClass | None, tuple[ast.Call, ...]]]:
    """The class of the model that is called and the BatchNorms it has, where its construction is in the file."""
    built = held(source, call.func) if isinstance(call.func, (ast.Name, ast.Attribute)) else []
    if len(built) != 1:
        return
    names = source.resolve(built[0].func)
    if len(names) != 1:
        return
    (name,) = names
    facts = source.module_class(name)
    if facts is not None and not facts.has_unseen_base and "train" not in facts.methods:
        norms = batch_norms(source, facts.node)
    else:
        norms = batch_norms(source, built[0]) if name == "torch.nn.Sequential" else ()
    if norms:
        yield facts, norms


def batch_norms(source: Source, node: ast.AST, seen: frozenset[str] = frozenset()) -> tuple[ast.Call, ...]:
    """The constructions of BatchNorm below `node`, and in the classes and functions of the file that it calls."""
    found: dict[ast.Call, None] = {}
    for call in walk(node):
        if not isinstance(call, ast.Call):
            continue
        names = source.resolve(call.func)
        name = next(iter(names)) if len(names) == 1 else ""
        if name in BATCH_NORMS:
            if source.constant(source.argument(call, "track_running_stats"), True) is True:
                found[call] = None
        elif name in source.names.definitions and name not in seen:
            for definition in source.names.definitions[name]:
                found |= dict.fromkeys(batch_norms(source, definition, seen | {name}))
    return tuple(found)


def _in_eval(source: Source, call: ast.Call) -> bool:
    """Whether the model may be in eval mode at this call."""
    known = [found for found in modes_of(source).calls if found.call is call]
    return any(setting.mode == "eval" for found in known for setting in found.modes)


def _keeps_norms_in_eval(source: Source) -> bool:
    """Whether the file puts BatchNorm layers in eval mode by themselves, or synchronises them between devices."""
    if re.search(
        r"norm_eval|SyncBatchNorm|convert_sync|(freeze|frozen|fix)_?\w*(bn|norm)|InPlaceABN", source.text, re.I
    ):
        return True
    for branch in source.tree.all(ast.If):
        if "BatchNorm" in ast.unparse(branch.test) or "_bn" in ast.unparse(branch.test):
            calls = [node for node in walk(branch) if isinstance(node, ast.Call)]
            if any(isinstance(call.func, ast.Attribute) and call.func.attr == "eval" for call in calls):
                return True
    return False
