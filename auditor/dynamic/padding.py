"""BatchNorms of a run whose statistics are taken over padded sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.dynamic.dropouts import ACTIVE
from auditor.static.layers import NN

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts, NodeFacts

# What treats every position alike.
_THROUGH = ACTIVE | {
    "linear", "dropout", "transpose", "permute", "swapaxes", "mT", "contiguous", "clone", "float", "to", "getitem",
    "index_select",
}  # fmt: skip


def padded_norms(capture: Capture) -> Iterator[tuple[ModuleFacts, NodeFacts]]:
    """Each BatchNorm1d that takes its statistics over every position of padded sequences, with the call that made
    them: `pad_packed_sequence`, or an embedding with an index for padding."""
    for node in capture.nodes("train"):
        facts = capture.modules[node.module]
        trains = node.operation == "batch_norm" and node.argument("training", 5, False) is True
        if trains and facts.kind == NN + "BatchNorm1d" and len(node.shape or ()) == 3:
            origin = _padding_before(node)
            if origin is not None:
                yield facts, origin


def _padding_before(node: NodeFacts) -> NodeFacts | None:
    for _ in range(64):
        if not node.inputs:
            return None
        node = node.inputs[0]
        if node.operation == "_pad_packed_sequence":
            return node
        if node.operation == "embedding":
            index = node.argument("padding_idx", 2)
            return node if isinstance(index, int) and index >= 0 else None
        if node.operation not in _THROUGH:
            return None
    return None
