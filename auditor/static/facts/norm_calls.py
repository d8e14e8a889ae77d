"""Norms as a file calls them: torch's layers and functions, with each argument under one name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.layers import BATCH_NORMS, INSTANCE_NORMS, NN

if TYPE_CHECKING:
    from auditor.static.source import Hidden, Source

_F = "torch.nn.functional."
_TRACKING = {"num_features": 0, "eps": 1, "momentum": 2, "affine": 3, "track_running_stats": 4}
_SYNCED = {**_TRACKING, "process_group": 5}
_LAZY = {name: position - 1 for name, position in _TRACKING.items() if position}
# Where each argument stands when it is passed by position.
POSITIONS: dict[str, dict[str, int]] = {
    **{kind: _LAZY if "Lazy" in kind else _TRACKING for kind in BATCH_NORMS | INSTANCE_NORMS},
    NN + "SyncBatchNorm": _SYNCED,
    NN + "LayerNorm": {"normalized_shape": 0, "eps": 1, "elementwise_affine": 2},
    NN + "RMSNorm": {"normalized_shape": 0, "eps": 1, "elementwise_affine": 2},
    NN + "GroupNorm": {"num_groups": 0, "num_channels": 1, "eps": 2, "affine": 3},
    _F + "batch_norm": {"input": 0, "training": 5, "momentum": 6, "eps": 7},
    _F + "instance_norm": {"input": 0, "use_input_stats": 5, "momentum": 6, "eps": 7},
    _F + "layer_norm": {"input": 0, "normalized_shape": 1, "weight": 2, "eps": 4},
    _F + "rms_norm": {"input": 0, "normalized_shape": 1, "weight": 2, "eps": 3},
    _F + "group_norm": {"input": 0, "num_groups": 1, "eps": 4},
    _F + "normalize": {"input": 0, "p": 1, "dim": 2, "eps": 3},
}
TRACKING = BATCH_NORMS | INSTANCE_NORMS


class NormCall(NamedTuple):
    """A norm layer built, or a norm function called. `kind`: its dotted name."""

    call: ast.Call
    kind: str

    @property
    def name(self) -> str:
        return self.kind.rpartition(".")[2]

    def argument(self, source: Source, name: str) -> ast.expr | Hidden | None:
        """The argument called `name`, as `Source.argument` gives it."""
        return source.argument(self.call, name, POSITIONS[self.kind].get(name))

    def by_position(self, name: str) -> bool:
        """Whether the argument is passed without its name."""
        return POSITIONS[self.kind].get(name, len(self.call.args)) < len(self.call.args)


def norm_calls(source: Source, *kinds: str) -> Iterator[NormCall]:
    """All calls in the file of these norms (of all if none is named), in document order."""
    for call in source.calls_to(*(kinds or POSITIONS)):
        (kind,) = source.resolve(call.func) if len(source.resolve(call.func)) == 1 else ("",)
        if kind in POSITIONS:
            yield NormCall(call, kind)
