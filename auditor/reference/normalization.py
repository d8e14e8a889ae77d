"""Normalisations in plain tensor operations, as their papers define them, and the size of their groups.

Nothing here imports torch: the functions work on the tensors they are given, and return the shape, dtype and device of
`x`. Training and evaluation are the same, except for BatchNorm (`batch_statistics`). As in torch, tensors of 16 bits
are normalised in single precision.
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
    wide = _wide(x)
    normed = wide * (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (normed if weight is None else normed * weight).to(x.dtype)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, epsilon: float = 1e-5
) -> torch.Tensor:
    """(x − μ) / √(σ² + ε) · γ + β over the last axis, σ² without Bessel's correction.

    Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    normed = normed if weight is None else normed * weight
    return (normed if bias is None else normed + bias).to(x.dtype)


def batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, epsilon: float = 1e-5
) -> torch.Tensor:
    """The same with μ and σ² per channel (axis 1), over the batch and all positions, as in training.

    Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    axes, wide = [axis for axis in range(x.dim()) if axis != 1], _wide(x)
    centred = wide - wide.mean(axes, keepdim=True)
    normed = centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return _per_channel(normed, weight, bias).to(x.dtype)


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    """(x − μ) / √(σ² + ε) · γ + β, μ and σ² over a group of channels and all positions of one sample.

    `x` (N, C, …), C a multiple of `groups` (ValueError otherwise); `weight`, `bias` (C). One group: LayerNorm over the
    whole sample; C groups: InstanceNorm. Training and evaluation are the same. Wu and He, "Group Normalization", 2018.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not form {groups} equal groups")
    normed = layer_norm(_wide(x).reshape(x.shape[0], groups, -1), epsilon=epsilon).reshape(x.shape)
    return _per_channel(normed, weight, bias).to(x.dtype)


def rms_norm_outside(x: torch.Tensor, weight: torch.Tensor | None = None, epsilon: float = 1e-8) -> torch.Tensor:
    """Counter-example: x / (√(mean(x²)) + ε) · γ, with ε outside the root.

    In half precision 1e-8 rounds to 0, so that a row of zeros becomes NaN, as do its gradients (the root's slope at 0
    is infinite in any precision); in float32 the gradient at 0 is 1/ε = 1e8 where `rms_norm` has 1/√ε = 1e3. Equal to
    `rms_norm` with ε² (to 1e-5 for rows of rms above 1e-3 and ε = 1e-8), not with ε.
    """
    normed = x / (x.square().mean(-1, keepdim=True).sqrt() + epsilon)
    return normed if weight is None else normed * weight


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


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Values of 16 bits in single precision: squares, and 1/σ³ on the way back, leave their range."""
    return x.float() if x.element_size() < 4 else x


def _per_channel(normed: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """γ and β along axis 1."""
    columns = [1, -1, *[1] * (normed.dim() - 2)]
    normed = normed if weight is None else normed * weight.reshape(columns)
    return normed if bias is None else normed + bias.reshape(columns)
