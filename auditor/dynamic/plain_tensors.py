"""Tensors that a run computed with although the model does not know them, and the attributes that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from auditor.dynamic.capture import class_location
from auditor.dynamic.record import Shape
from auditor.dynamic.stray_layers import attribute_line
from auditor.finding import Location

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

# What a use does that follows the device of something else.
_MOVES = frozenset({"to", "cuda", "cpu", "type_as", "type", "float", "half", "copy_", "numpy", "tolist"})


@dataclass(frozen=True, slots=True)
class UsedTensor:
    """A tensor of the module at `owner`, held as `attribute` (or inside the container of that name, `contained`), that
    calls of the run took as it is. `trained`: it asks for gradients, so that a parameter was meant; `count`: how many
    such the attribute holds. `location`: the line of the user's that sets the attribute."""

    owner: str
    attribute: str
    contained: bool
    trained: bool
    count: int
    shape: Shape
    location: Location


def plain_tensors_used(capture: Capture) -> Iterator[UsedTensor]:
    """One for each attribute, by path. Left out are tensors without axes (they combine with any device), those of
    torch's own modules, and one alone in a container (a link that is to stay weak)."""
    used = _used(capture)
    if not used:
        return
    registered = {id(tensor) for tensor in (*capture.model.parameters(), *capture.model.buffers())}
    for path, facts in capture.modules.items():
        cls = type(facts.module)
        if not class_location(cls).path or cls._apply is not torch.nn.Module._apply:  # looks after them itself
            continue
        for name, value in vars(facts.module).items():
            tensors = [tensor for tensor in _held(value) if id(tensor) not in registered and _key(tensor) in used]
            weak = isinstance(value, (list, tuple, dict)) and len(value) == 1
            location = attribute_line(cls, name) if tensors and not weak else None
            if location is not None:
                trained = any(tensor.requires_grad and tensor.is_leaf for tensor in tensors)
                contained = not isinstance(value, torch.Tensor)
                yield UsedTensor(path, name, contained, trained, len(tensors), tuple(tensors[0].shape), location)


def _used(capture: Capture) -> set[tuple[int, Shape]]:
    """The unregistered tensors that some call of either run takes beside another tensor, without moving them first."""
    found = set()
    for mode, recording in capture.recordings.items():
        for name, tensor in recording.constants.items():
            users = [user for node in capture.reads_of(mode, name) for user in node.users]
            if tensor.dim() and users and not any(_moves(user) for user in users) and any(_combines(u) for u in users):
                found.add(_key(tensor))
    return found


def _moves(node: NodeFacts) -> bool:
    return node.operation in _MOVES


def _combines(node: NodeFacts) -> bool:
    """Whether a call takes more than this one tensor; a part or a rearrangement counts for what is made of it."""
    if len(node.inputs) > 1:
        return True
    return any(not _moves(user) and len(user.inputs) > 1 for user in node.users)


def _key(tensor: torch.Tensor) -> tuple[int, Shape]:
    return (tensor.data_ptr(), tuple(tensor.shape))


def _held(value: Any) -> list[torch.Tensor]:
    """The tensor that an attribute is, or those in its list, tuple or dict."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, torch.Tensor) and item.device.type != "meta"]
