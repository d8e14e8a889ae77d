"""What the losses of a recorded forward are given."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import TYPE_CHECKING

from auditor.static.facts.values import RESHAPING

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts, NodeFacts

_KEEPS = RESHAPING | {"getitem"}


def fed_in_the_run(capture: Capture, function: str) -> Iterator[tuple[NodeFacts, NodeFacts]]:
    """Each call of the loss `function` (its public name), in train mode where that was recorded, with the call that
    gave its predictions, past rearrangements."""
    mode = "train" if capture.nodes("train") else "eval"
    for loss in capture.calls_to(mode, function):
        node: NodeFacts | None = loss.inputs[0] if loss.inputs else None
        while node is not None and node.operation in _KEEPS and node.inputs:
            node = node.inputs[0]
        if node is not None:
            yield loss, node


def place_of(capture: Capture, node: NodeFacts, layers: Set[str]) -> ModuleFacts | NodeFacts:
    """Where a call is reported: the construction of a layer of one of these kinds that stands in a Sequential, which
    is what static rules point at too; otherwise the call's own line."""
    layer = capture.modules[node.module]
    in_chain = layer.parent and capture.modules[layer.parent].kind == "torch.nn.Sequential"
    return layer if in_chain and layer.kind in layers else node
