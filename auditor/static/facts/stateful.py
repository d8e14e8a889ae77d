"""What a layer carries from one forward to the next: parameters, running statistics, a mode."""

from __future__ import annotations

import ast
import enum
from typing import TYPE_CHECKING

from auditor.static.layers import BATCH_NORMS, CONTAINERS, DROPOUTS, INSTANCE_NORMS, NN, PARAMETRIC
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source


class State(enum.IntEnum):
    """The most that a layer carries. Nothing is assumed of what the file does not show."""

    NONE = 0
    MODE = 1  # dropout, RReLU: nothing stored, but train and eval differ
    NEUTRAL = 2  # parameters and statistics that start as the identity and draw no random numbers: norms
    WEIGHTS = 3  # parameters drawn at random


# The argument without which a norm has no parameters: name, position, whether it is on by default.
_AFFINE = {
    NN + "LayerNorm": ("elementwise_affine", 2, True),
    NN + "RMSNorm": ("elementwise_affine", 2, True),
    NN + "GroupNorm": ("affine", 3, True),
    **dict.fromkeys(INSTANCE_NORMS, ("affine", 3, False)),
}


def state_of(source: Source, call: ast.AST) -> State:
    """What the layer constructed by `call` surely carries; NONE for anything that is no such construction."""
    kind = source.layer_kind(call)
    if not kind or not isinstance(call, ast.Call):
        return State.NONE
    if kind in CONTAINERS:
        inside = (node for argument in (*call.args, *call.keywords) for node in walk(argument))
        return max((state_of(source, node) for node in inside if isinstance(node, ast.Call)), default=State.NONE)
    if kind in DROPOUTS:
        rate = source.argument(call, "p", 0)
        zero = isinstance(rate, ast.Constant) and not rate.value
        return State.NONE if zero else State.MODE
    if kind == NN + "RReLU":
        return State.MODE
    if kind in _AFFINE:
        name, position, default = _AFFINE[kind]
        tracks = kind in INSTANCE_NORMS and source.constant(source.argument(call, "track_running_stats", 4)) is True
        affine = source.constant(source.argument(call, name, position), default=default)
        return State.NEUTRAL if affine is True or tracks else State.NONE
    if kind in BATCH_NORMS or kind == NN + "PReLU":
        return State.NEUTRAL
    if kind in PARAMETRIC:
        return State.WEIGHTS
    facts = source.module_class(kind)
    return _class_state(source, facts, frozenset()) if facts is not None else State.NONE


def _class_state(source: Source, facts: ModuleClass, seen: frozenset[str]) -> State:
    """What instances of a module class of this file surely carry."""
    if facts.name in seen:
        return State.NONE
    seen |= {facts.name}
    found = [State.MODE if facts.reads_training else State.NONE]
    for owner in (facts, *facts.ancestors):
        for method in owner.methods.values():
            for call in (node for node in walk(method) if isinstance(node, ast.Call)):
                names = source.resolve(call.func)
                inner = source.module_class(min(names)) if len(names) == 1 else None
                if inner is not None:
                    found.append(_class_state(source, inner, seen))
                elif names == {"torch.nn.Parameter"}:
                    found.append(State.WEIGHTS)
                elif method.name == "__init__":
                    found.append(state_of(source, call))
    return max(found)
