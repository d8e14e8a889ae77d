"""What is known of a tensor's axes from the layers that made it."""

from __future__ import annotations

import ast
import enum
from typing import TYPE_CHECKING

from auditor.static.facts.dropouts import name_of, role
from auditor.static.flow import Op
from auditor.static.layers import ATTENTION, NN

if TYPE_CHECKING:
    from auditor.static.source import Source


class Axes(enum.Enum):
    """The axes of a tensor, in order."""

    FLAT = "(N, C)"
    FEATURES_LAST = "(N, L, C)"
    MAP_1D = "(N, C, L)"
    MAP_2D = "(N, C, H, W)"
    MAP_3D = "(N, C, D, H, W)"


_STEPS = 32
_MAPS = {"1d": Axes.MAP_1D, "2d": Axes.MAP_2D, "3d": Axes.MAP_3D}


def axes_of(source: Source, op: Op) -> Axes | None:
    """The axes of the first input of `op`, where the operations before it surely give them."""
    producer = op.only_producer()
    for _ in range(_STEPS):
        if producer is None:
            return None
        made = _made(source, producer)
        if made is not None:
            return made
        # A linear layer, an activation, a dropout and LayerNorm leave the axes as they are.
        layer_norm = producer.layer_kind in (NN + "LayerNorm", NN + "RMSNorm")
        kept = role(producer) in ("linear", "activation", "dropout", "softmax") or layer_norm
        if not kept or any(producer.inputs[1:]):
            return None
        producer = producer.only_producer()
    return None


def _made(source: Source, op: Op) -> Axes | None:
    """The axes that an operation gives to its result, whatever it is given."""
    name = name_of(op)
    match role(op):
        case "conv":
            return _MAPS.get(name[-2:])
        case "embedding":
            return Axes.FEATURES_LAST if name == "Embedding" else None
        case "shape" if op.kind == "index":
            return _first_of_a_sequence(op)
        case "shape" if op.kind == "layer":
            plain = op.layer is not None and not op.layer.args and not op.layer.keywords
            return Axes.FLAT if name == "Flatten" and plain else None
        case "shape" if name in ("flatten", "view", "reshape"):
            return Axes.FLAT if _flattens(source, op) else None
        case "norm" if name in ("BatchNorm2d", "BatchNorm3d", "InstanceNorm2d"):
            return _MAPS[name[-2:]]
    return None


def _first_of_a_sequence(op: Op) -> Axes | None:
    """`rnn(x)[0]`: the outputs of all steps."""
    layer = op.only_producer()
    match op.node:
        case ast.Subscript(slice=ast.Constant(value=0)) if layer is not None:
            sequence = role(layer) == "recurrent" or layer.layer_kind in ATTENTION
            return Axes.FEATURES_LAST if sequence else None
    return None


def _flattens(source: Source, op: Op) -> bool:
    """Whether the call leaves the batch axis and one other: `flatten(x, 1)`, `x.view(len(x), -1)`."""
    if not isinstance(op.node, ast.Call) or op.node.keywords:
        return False
    given = op.node.args if op.kind == "method" else op.node.args[1:]
    if name_of(op) == "flatten":
        return len(given) == 1 and source.constant(given[0]) == 1
    if len(given) == 1 and isinstance(given[0], (ast.Tuple, ast.List)):
        given = given[0].elts
    return len(given) == 2 and not any(isinstance(item, ast.Starred) for item in given)
