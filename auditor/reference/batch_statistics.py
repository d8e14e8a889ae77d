"""BatchNorm with its running statistics: which variance goes where, and how long they take to be right.

Ioffe and Szegedy, "Batch Normalization", 2015, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from auditor.reference.normalization import batch_norm

if TYPE_CHECKING:
    from torch import Tensor


def batch_norm_training(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float | None = 0.1,
    epsilon: float = 1e-5,
    batches: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One training step: the output, the new running mean and the new running variance (both without gradients).

    `x` (N, C, …), the rest (C). With m = N · positions values per channel (ValueError for m = 1), normalises with the
    biased variance, Σ(x − μ)²/m, and stores the unbiased one, Σ(x − μ)²/(m − 1):
    running ← (1 − momentum) · running + momentum · batch. The weight of the new value is `momentum`, 0.1 (TensorFlow
    and the paper's moving averages name 1 − that). None: the plain average of all batches, `batches` of which came
    before.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"one value per channel, {tuple(x.shape)}, has no variance")
    mean = x.detach().to(running_mean.dtype).mean(axes)
    unbiased = x.detach().to(running_var.dtype).var(axes, correction=1)
    share = 1.0 / (batches + 1) if momentum is None else momentum
    return (
        batch_norm(x, weight, bias, epsilon),
        (1.0 - share) * running_mean + share * mean,
        (1.0 - share) * running_var + share * unbiased,
    )


def batch_norm_evaluation(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """(x − running_mean) / √(running_var + ε) · γ + β: a fixed affine map for each channel; x (N, C, …), any N."""
    scale = (running_var + epsilon).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    columns = [1, -1, *[1] * (x.dim() - 2)]
    y = x * scale.reshape(columns) + (shift if bias is None else shift + bias).reshape(columns)
    return y.to(x.dtype)


def start_share(batches: int, momentum: float = 0.1) -> float:
    """How much of the running statistics is still their starting value, 0 and 1, after so many batches: (1 − m)^k.

    0.35 after 10, below 1 % after 44.
    """
    return (1.0 - momentum) ** batches


def running_noise(values: int, momentum: float = 0.1) -> tuple[float, float]:
    """Standard deviation of the running mean, in σ, and of the running variance, in σ², in the long run.

    `values` per channel in a batch: √(a/m) and √(2a/(m − 1)) with a = momentum/(2 − momentum), for independent normal
    values; a is what an exponential average leaves of the variance of its terms.
    """
    left = momentum / (2.0 - momentum)
    return math.sqrt(left / values), math.sqrt(2.0 * left / (values - 1))


def effective_values(batch: int, positions: int = 1, correlation: float = 0.0) -> float:
    """Independent values per channel: N · P / (1 + (P − 1) ρ) for N samples of P positions correlated by ρ.

    The error of a sample's normalised output is about 1.22/√ of it: large maps do not rescue a small batch.
    """
    return batch * positions / (1.0 + (positions - 1) * correlation)
