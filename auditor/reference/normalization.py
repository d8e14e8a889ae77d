"""Normalisations in plain tensor operations, as their papers define them, and the size of their groups.

Nothing here imports torch: the functions work on the tensors they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What a group should hold at least, and how many groups the paper uses.
LEAST_CHANNELS = 4
LEAST_VALUES = 16
MOST_GROUPS = 32


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None, epsilon: float = 1e-6) -> torch.Tensor:
    """x / √(mean(x²) + ε) · γ over the last axis; `weight` has its size.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; ε under the root as torch has it.
    """
    normed = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return normed if weight is None else normed * weight


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, epsilon: float = 1e-5
) -> torch.Tensor:
    """(x − μ) / √(σ² + ε) · γ + β over the last axis, σ² without Bessel's correction.

    Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    centred = x - x.mean(-1, keepdim=True)
    normed = centred * (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, epsilon: float = 1e-5
) -> torch.Tensor:
    """The same with μ and σ² per channel (axis 1), over the batch and all positions, as in training.

    Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    columns = [1, -1, *[1] * (x.dim() - 2)]
    centred = x - x.mean(axes, keepdim=True)
    normed = centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    normed = normed if weight is None else normed * weight.reshape(columns)
    return normed if bias is None else normed + bias.reshape(columns)


def group_count(channels: int, positions: int = 1) -> int:
    """How many groups GroupNorm should have in place of a BatchNorm: the most, up to 32, that leave each group at
    least 4 channels and 16 values; 1 where none do. `positions`: the smallest map it sees (height × width).

    Wu and He, "Group Normalization", 2018, use 32; one channel per group at 1×1 would make every output zero.
    """
    for groups in range(min(MOST_GROUPS, channels), 1, -1):
        size = channels // groups
        if channels % groups == 0 and size >= LEAST_CHANNELS and size * positions >= LEAST_VALUES:
            return groups
    return 1
