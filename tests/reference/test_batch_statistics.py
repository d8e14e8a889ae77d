"""BatchNorm's running statistics against torch's layer, and the formulas about them against simulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from auditor.reference.batch_statistics import (
    batch_norm_evaluation,
    batch_norm_training,
    effective_values,
    running_noise,
    start_share,
)
from tests.reference.chance import Z


def layer(shape: tuple[int, ...], dtype: torch.dtype, momentum: float | None) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    bn = kind(shape[1], eps=1e-3, momentum=momentum).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for tensor in (bn.weight, bn.bias):
        tensor.data = torch.randn(shape[1], generator=generator).to(dtype)
    return bn


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad((y * weights).sum(), inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("shape", [(8, 4), (3, 4, 5), (2, 4, 3, 3), (2, 4, 2, 3, 2)])
def test_is_torchs_layer(shape: tuple[int, ...], momentum: float | None, dtype: torch.dtype, tolerance: float) -> None:
    bn = layer(shape, dtype, momentum)
    generator = torch.Generator().manual_seed(2)
    mean, var = bn.running_mean.clone(), bn.running_var.clone()
    close = {"rtol": tolerance, "atol": tolerance}
    for step in range(3):
        x = (3 * torch.randn(shape, generator=generator) + 1).to(dtype).requires_grad_()
        y, mean, var = batch_norm_training(x, mean, var, bn.weight, bn.bias, momentum, bn.eps, step)
        expected = bn(x)
        torch.testing.assert_close(y, expected, **close)
        torch.testing.assert_close(
            gradients(y, x, bn.weight, bn.bias), gradients(expected, x, bn.weight, bn.bias), **close
        )
        torch.testing.assert_close((mean, var), (bn.running_mean, bn.running_var), **close)
    x, bn = x.detach().requires_grad_(), bn.eval()
    y = batch_norm_evaluation(x, mean, var, bn.weight, bn.bias, bn.eps)
    torch.testing.assert_close(y, bn(x), **close)
    torch.testing.assert_close(gradients(y, x, bn.weight, bn.bias), gradients(bn(x), x, bn.weight, bn.bias), **close)


def test_normalises_with_the_biased_variance_and_stores_the_unbiased_one() -> None:
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    y, mean, var = batch_norm_training(x, torch.zeros(1), torch.ones(1), momentum=1.0, epsilon=0.0)
    assert y.flatten().tolist() == [-1.0, 1.0]  # two values always become ±1
    assert mean.item() == 1.0
    assert var.item() == 2.0


def test_statistics_of_half_precision_stay_single() -> None:
    bn, x = layer((8, 4), torch.float32, 0.1), 300 * torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    half = x.bfloat16()
    y, mean, var = batch_norm_training(half, bn.running_mean, bn.running_var, bn.weight, bn.bias, epsilon=bn.eps)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, bn(half), rtol=0.02, atol=0.02)
    torch.testing.assert_close((mean, var), (bn.running_mean, bn.running_var), rtol=1e-4, atol=1e-4)
    y = batch_norm_evaluation(half, mean, var, bn.weight, bn.bias, bn.eps)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, bn.eval()(half), rtol=0.02, atol=0.02)


def test_one_value_per_channel_is_refused() -> None:
    zeros = torch.zeros(3)
    with pytest.raises(ValueError, match="no variance"):
        batch_norm_training(torch.ones(1, 3), zeros, zeros)
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm1d(3)(torch.ones(1, 3))
    assert batch_norm_evaluation(torch.ones(1, 3), zeros, zeros + 1).shape == (1, 3)


def test_how_long_the_start_lasts() -> None:
    assert start_share(10) == pytest.approx(0.3487, abs=1e-4)
    assert start_share(43) > 0.01 > start_share(44)
    bn = nn.BatchNorm1d(1).double()
    for _ in range(10):
        bn(torch.tensor([[4.0], [6.0]], dtype=torch.float64))
    assert bn.running_mean.item() == pytest.approx(5 * (1 - start_share(10)))


def test_noise_of_the_running_statistics() -> None:
    channels, values, steps = 20_000, 8, 60
    generator = torch.Generator().manual_seed(3)
    mean, var = torch.zeros(channels), torch.ones(channels)
    for _ in range(steps):
        x = torch.randn(values, channels, generator=generator)
        _, mean, var = batch_norm_training(x, mean, var)
    for found, expected in zip((mean, var), running_noise(values), strict=True):
        centred = (found - found.mean()).double()
        kurtosis = float(centred.pow(4).mean() / centred.square().mean().square())
        # Relative error of a standard deviation, and what of the start is left of it
        assert abs(float(centred.std()) / expected - 1) < Z * math.sqrt((kurtosis - 1) / channels) / 2 + 1e-4


def test_correlated_positions_count_less() -> None:
    assert effective_values(32) == 32
    assert effective_values(2, 196) == 392
    assert effective_values(2, 196, 0.5) == pytest.approx(3.98, abs=0.01)
    # The variance of the mean of two samples of 50 positions that share half of their variance
    generator = torch.Generator().manual_seed(4)
    shared, own = torch.randn(20_000, 2, 1, generator=generator), torch.randn(20_000, 2, 50, generator=generator)
    means = ((shared + own) / math.sqrt(2)).mean((1, 2))
    assert abs(float(means.var()) * effective_values(2, 50, 0.5) - 1) < Z * math.sqrt(2 / 20_000)
