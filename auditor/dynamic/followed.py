"""Which layers of a run feed nothing but a norm that subtracts the mean of each of their channels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.dynamic.flow import WEIGHT_FUNCTIONS
from auditor.dynamic.intent import source_at
from auditor.finding import Location
from auditor.static.facts.normalised import bias_position, is_plain_bias
from auditor.static.source import HIDDEN

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts, NodeFacts


def cancelled_biases(capture: Capture) -> Iterator[tuple[ModuleFacts, ModuleFacts]]:
    """Each of torch's layers with a trainable bias that the user left on, every call of which is taken by such a norm
    and by nothing else; with that norm."""
    calls: dict[str, list[NodeFacts]] = {}
    for node in capture.nodes("train"):
        if node.operation in WEIGHT_FUNCTIONS:
            calls.setdefault(node.module, []).append(node)
    for path, nodes in calls.items():
        facts = capture.modules.get(path)
        if facts is None or not facts.kind.startswith("torch.nn.") or facts.aliases:
            continue
        bias = getattr(facts.module, "bias", None)
        norms = {_cancelling_norm(capture, node) for node in nodes}
        if bias is None or not bias.requires_grad or "" in norms or _used_elsewhere(capture, bias, nodes):
            continue
        if is_plain_bias(_written_bias(facts.location)):
            yield facts, capture.modules[min(norms)]


def _cancelling_norm(capture: Capture, node: NodeFacts) -> str:
    """Path of the norm that is the only user of this output and subtracts each channel's mean; "" if there is none."""
    if len(node.users) != 1 or node.is_output:
        return ""
    (user,) = node.users
    owner = capture.modules.get(user.module)
    if owner is None or not owner.kind.startswith("torch.nn.") or user.inputs[0].name != node.name:
        return ""
    per_channel = node.operation != "linear" or len(node.shape or ()) == 2
    if user.operation == "batch_norm":
        return user.module if per_channel and user.argument("training", 5, False) is True else ""
    if user.operation == "instance_norm":
        return user.module if per_channel and user.argument("use_input_stats", 5, True) is True else ""
    groups = user.argument("num_groups", 1) if user.operation == "group_norm" else None
    return user.module if groups is not None and groups == (node.shape or (0, 0))[1] else ""


def _used_elsewhere(capture: Capture, bias: object, nodes: list[NodeFacts]) -> bool:
    """Whether the bias is shared with another layer, or read by another call."""
    names = [name for name, facts in capture.parameters.items() if facts.tensor is bias]
    own = {node.name for node in nodes}
    reads = [read for name in names for read in capture.reads_of("train", name)]
    return len(names) != 1 or any(user.name not in own for read in reads for user in read.users)


def _written_bias(location: Location) -> object:
    """What the user's line passes as `bias`; HIDDEN where that cannot be read."""
    source = source_at(location)
    call = source.node_at(location, ast.Call) if source is not None else None
    if source is None or not isinstance(call, ast.Call) or not source.layer_kind(call):
        return HIDDEN
    return source.argument(call, "bias", bias_position(source.layer_kind(call)))
