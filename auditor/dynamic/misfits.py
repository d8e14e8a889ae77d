"""Norms that a run gave another number of features than they are built for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from auditor.dynamic.dropouts import ACTIVE, before
from auditor.static.layers import BATCH_NORMS, CONVS, INSTANCE_NORMS, LINEARS, NN

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts

_PER_CHANNEL = BATCH_NORMS | INSTANCE_NORMS | {NN + "GroupNorm"}
_LAST = {NN + "LayerNorm", NN + "RMSNorm"}


class Misfit(NamedTuple):
    """The norm, the features it is built for and those that arrive, and the layer whose size makes them arrive."""

    norm: ModuleFacts
    features: int
    arriving: int
    layer: ModuleFacts


def misfits(capture: Capture) -> Iterator[Misfit]:
    """The norm at which a run stopped, where the layer before it fixes what arrives, whatever the model's input is."""
    for mode in ("train", "eval"):
        if capture.rungs[mode].name != "none":
            continue
        for facts in capture.modules.values():
            shape = facts.in_shape.get(mode)
            if shape and len(shape) >= 2 and facts.out_shape.get(mode) is None:
                found = _misfit(capture, facts, shape, mode)
                if found is not None:
                    yield found
        return


def _misfit(capture: Capture, facts: ModuleFacts, shape: tuple[int, ...], mode: str) -> Misfit | None:
    norm: Any = facts.module
    if facts.kind in _PER_CHANNEL:
        features, arriving = getattr(norm, "num_features", getattr(norm, "num_channels", 0)), shape[1]
    elif facts.kind in _LAST and len(norm.normalized_shape) == 1:
        features, arriving = norm.normalized_shape[0], shape[-1]
    else:
        return None
    makers = CONVS if facts.kind in _PER_CHANNEL else LINEARS
    for layer in reversed(capture.modules.values()):
        made: Any = layer.module
        size = getattr(made, "out_channels", getattr(made, "out_features", None))
        if layer.kind in makers and layer.out_shape.get(mode) == shape and size == arriving != features:
            return Misfit(facts, features, arriving, layer)
    return None


def swapped_axes(capture: Capture) -> Iterator[tuple[ModuleFacts, int]]:
    """The BatchNorms that ran over the positions of a linear layer's output, (N, L, C), of which there happen to be as
    many as features, with that number. An inferred input may have an axis that nobody meant."""
    if getattr(capture.inputs, "source", "given") == "inferred":
        return
    for node in capture.nodes("train"):
        facts, shape = capture.modules[node.module], node.shape or ()
        square = node.operation == "batch_norm" and len(shape) == 3 and shape[1] == shape[2]
        maker = before(node, ACTIVE | {"dropout"}) if square and facts.kind == NN + "BatchNorm1d" else None
        if maker is not None and maker.operation == "linear":
            yield facts, shape[1]
