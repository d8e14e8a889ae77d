"""Weights whose rows repeat one another without one of the reasons to do so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from auditor.dynamic.probe import WEIGHT_LAYERS, repeated_rows, rows_of

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.dynamic.observe import LayerProbe

# Projections to keys and values, which have fewer heads than queries in grouped attention.
_KEYS_AND_VALUES = re.compile(r"(?i)^(w?[kv]|[kv]_?proj|keys?|values?|to_(k|v|kv|qkv)|q?kv.*)$")


def copied_rows(capture: Capture, share: float) -> Iterator[LayerProbe]:
    """The weights of linear, convolutional and recurrent layers that run, are trained, are not all equal, and start
    with more than `share` of their rows as copies. Gains, temperatures and the like repeat themselves by design."""
    for layer in capture.probe.duplicated:
        weight = layer.weight.startswith("weight") and isinstance(capture.modules[layer.path].module, WEIGHT_LAYERS)
        values = layer.facts.tensor
        varied = layer.executed and weight and not bool((values == values.flatten()[0]).all())
        if varied and not _is_meant(capture, layer, share):
            yield layer


def _is_meant(capture: Capture, layer: LayerProbe, share: float) -> bool:
    """Whether the copies read different channels, or are the expanded heads of an attention."""
    weight, module = layer.facts.tensor.detach(), capture.modules[layer.path].module
    groups = int(getattr(module, "groups", 1))
    if groups > 1 and weight.shape[0] % groups == 0:
        parts = [rows_of(part, bool(getattr(module, "transposed", False))) for part in weight.chunk(groups)]
        return all(len(rows) == 1 or repeated_rows(rows) <= share for rows in parts)
    return bool(_KEYS_AND_VALUES.search(layer.path.rpartition(".")[2])) and _by_heads(weight)


def _by_heads(weight: torch.Tensor) -> bool:
    """Whether whole blocks of different rows are repeated."""
    rows = rows_of(weight)
    sizes = [size for size in range(2, len(rows) // 2 + 1) if len(rows) % size == 0]
    return any(
        all(repeated_rows(block) == 0 for block in torch.split(rows, size))
        and repeated_rows(rows.reshape(len(rows) // size, -1)) > 0
        for size in sizes
    )
