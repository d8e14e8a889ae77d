"""The inputs of the initialisation probe: those given, drawn anew with enough samples to tell signal from chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auditor.dynamic.flow import PASSES
from auditor.dynamic.record import tensors_in

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

BATCH, SMALL_BATCH = 32, 8
FEW = 4  # where the activations of the small batch would take too much memory
ACTIVATIONS = 1 << 29  # bytes that one forward may compute, while fewer samples do too
LARGE_SAMPLE = 50_000  # elements above which the small batch is used
LONG_SEQUENCE = 64  # tokens, likewise


@dataclass
class Batch:
    """Inputs of the probe. `size`: samples, 0 if not known. `regenerated`: drawn anew, not those given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int
    regenerated: bool


def given_size(capture: Capture) -> int | None:
    """Samples in the inputs given: as stated, or the first size if all tensors share it."""
    known = getattr(capture.inputs, "batch_axis_size", None)
    if known is not None:
        return int(known)
    given = tensors_in((tuple(capture.inputs.args), dict(capture.inputs.kwargs)))
    sizes = {tensor.shape[0] for tensor in given if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def fresh_batch(capture: Capture, seed: int) -> Batch | None:
    """The inputs given, redrawn: 32 samples (8 of large ones), floats N(0, 1), token ids uniform over the vocabulary.

    Masks and other small codes are repeated from those given. None where the batch axis is not known.
    """
    size, axis = given_size(capture), getattr(capture.inputs, "batch_axis", None) or 0
    tree = (tuple(capture.inputs.args), dict(capture.inputs.kwargs))
    tensors = tensors_in(tree)
    if not size or not tensors:
        return None
    vocabularies = _vocabularies(capture)
    small = any(_is_large(tensor, size, bool(vocabularies.get(index))) for index, tensor in enumerate(tensors))
    kept = _activations(capture) / size
    wanted = next((b for b in ((SMALL_BATCH,) if small else (BATCH, SMALL_BATCH)) if b * kept <= ACTIVATIONS), FEW)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, torch.Tensor] = {}
    for index, tensor in enumerate(tensors):
        if tensor.dim() > axis and tensor.shape[axis] == size:
            drawn[id(tensor)] = _redrawn(tensor, axis, wanted, vocabularies.get(index), generator)
    args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: drawn.get(id(t), t), tree)
    return Batch(args, kwargs, wanted, True)


def _activations(capture: Capture) -> int:
    """Bytes of what the calls of the recorded forward gave, rearrangements left out."""
    mode = "train" if "train" in capture.graphs else "eval"
    made = [node for node in capture.nodes(mode) if node.operation not in PASSES and node.shape and node.dtype]
    return sum(math.prod(node.shape or ()) * (node.dtype.itemsize if node.dtype else 0) for node in made)


def _is_large(tensor: torch.Tensor, size: int, tokens: bool) -> bool:
    elements = tensor.numel() // size
    return elements > LARGE_SAMPLE or (tokens and elements > LONG_SEQUENCE)


def _redrawn(
    tensor: torch.Tensor, axis: int, size: int, vocabulary: int | None, generator: torch.Generator
) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[axis] = size
    if (tensor.is_floating_point() or tensor.is_complex()) and not _is_mask(tensor):
        return torch.randn(shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
    integers = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    if integers and tensor.numel():
        low, high = (0, vocabulary - 1) if vocabulary else (int(tensor.min()), int(tensor.max()))
        if vocabulary or high - low >= 2:
            return torch.randint(low, high + 1, shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
    which = torch.arange(size, device=tensor.device) % tensor.shape[axis]
    return tensor.index_select(axis, which)


def _is_mask(tensor: torch.Tensor) -> bool:
    """Only zeros, ones and infinities: such floats are switches, not signals."""
    return not tensor.is_complex() and bool(((tensor == 0) | (tensor == 1) | tensor.isinf()).all())


def _vocabularies(capture: Capture) -> dict[int, int]:
    """For each input tensor (by its place among the inputs) that is looked up in embeddings: the smallest's entries."""
    mode = "train" if "train" in capture.graphs else "eval"
    if mode not in capture.graphs:
        entries = [f.module.num_embeddings for f in capture.modules.values() if isinstance(f.module, nn.Embedding)]
        count = len(tensors_in((tuple(capture.inputs.args), dict(capture.inputs.kwargs))))
        return dict.fromkeys(range(count), min(entries)) if entries else {}
    found = {}
    placeholders = [node for node in capture.graphs[mode].nodes if node.op == "placeholder"]
    for index, placeholder in enumerate(placeholders):
        entries = list(_embeddings_reached(capture.facts(placeholder)))
        if entries:
            found[index] = min(entries)
    return found


def _embeddings_reached(start: NodeFacts) -> Iterator[int]:
    queue, seen = [start], {start}
    for node in queue:
        for user in node.users:
            if user in seen:
                continue
            seen.add(user)
            if user.operation == "embedding":
                table = user.argument("weight", 1)
                if table is not node and table.shape is not None:
                    yield table.shape[0]
            elif user.operation in PASSES or user.operation in ("long", "int"):
                queue.append(user)
