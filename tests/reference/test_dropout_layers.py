"""Dropout against torch's own, bit for bit where both draw the same mask, and against its statistics elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.reference.dropout import effective_rate, noise_to_signal
from auditor.reference.dropout_layers import (
    ClassicalDropout,
    DropConnectLinear,
    StochasticDepth,
    alpha_dropout,
    attention_dropout,
    classical_dropout,
    depth_rates,
    drop_connect,
    drop_connect_moments,
    inverted_dropout,
    spatial_dropout,
    stochastic_depth,
    weight_behind_inverted,
)
from tests.reference.chance import DEVICES, Z, binomial_region

Function = Callable[[Tensor], Tensor]

PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...]]] = {
    "inverted": (inverted_dropout, F.dropout, (16, 5, 7)),
    "spatial 1d": (lambda x, p, training: spatial_dropout(x, p, training, rank=1), F.dropout1d, (16, 5, 7)),
    "spatial 2d": (lambda x, p, training: spatial_dropout(x, p, training, rank=2), F.dropout2d, (16, 5, 3, 4)),
    "spatial 3d": (lambda x, p, training: spatial_dropout(x, p, training, rank=3), F.dropout3d, (16, 5, 3, 4, 2)),
    "alpha": (alpha_dropout, F.alpha_dropout, (16, 5, 7)),
}


def with_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs, and the gradient of a fixed combination of them with respect to `x`; from a fixed seed."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(7)
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype, device=x.device).reshape(y.shape)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", PAIRS)
def test_is_what_torch_computes_from_the_same_seed(name: str, p: float, dtype: torch.dtype) -> None:
    ours, torchs, shape = PAIRS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    if name == "alpha" and p == 1.0:
        # torch's own formula is 0 · ∞ there
        assert torch.equal(ours(x, p, True), torch.zeros_like(x))
        return
    mine, theirs = with_gradient(lambda x: ours(x, p, True), x), with_gradient(lambda x: torchs(x, p, True), x)
    for left, right in zip(mine, theirs, strict=True):
        assert left.dtype == dtype
        # alpha dropout rounds its intermediate results in another order
        rounding = 8 * torch.finfo(dtype).eps if name == "alpha" else 0.0
        torch.testing.assert_close(left, right, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", PAIRS)
def test_evaluation_is_the_identity(name: str) -> None:
    ours, _, shape = PAIRS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert ours(x, 0.5, False) is x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_inverted_dropout_drops_at_its_rate_and_scales_the_rest(p: float, device: str) -> None:
    torch.manual_seed(2)
    x = torch.ones(20_000, device=device)
    y = inverted_dropout(x, p)
    lowest, highest = binomial_region(y.numel(), p)
    assert lowest <= int((y == 0).sum()) <= highest
    kept = y[y != 0] * (1 - p)
    assert float((kept - 1).abs().max()) <= 2 * torch.finfo(torch.float32).eps


def test_the_two_scalings_differ_by_one_factor_in_both_modes() -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moved = weight_behind_inverted(weight, 0.3)
    for training in (True, False):
        classical = with_gradient(lambda x, t=training: F.linear(classical_dropout(x, 0.3, t), weight), x)
        inverted = with_gradient(lambda x, t=training: F.linear(inverted_dropout(x, 0.3, t), moved), x)
        torch.testing.assert_close(classical, inverted, rtol=1e-14, atol=1e-14)


def test_classical_dropout_scales_in_evaluation() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    y = classical_dropout(x, 0.4)
    assert torch.equal(y[y != 0], x[y != 0])
    torch.testing.assert_close(ClassicalDropout(0.4).eval()(x), 0.6 * x)


def test_the_expectation_in_training_is_the_output_in_evaluation() -> None:
    x = torch.randn(20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    passes, p = 4096, 0.3
    for function in (inverted_dropout, classical_dropout, alpha_dropout):
        torch.manual_seed(6)
        y = function(x.expand(passes, -1), p, True)
        error = (y.mean(0) - function(x, p, False)) / (y.std(0) / math.sqrt(passes))
        # Alpha dropout keeps mean and variance of the whole layer, not the expectation of each value.
        assert (float(error.abs().max()) < Z) == (function is not alpha_dropout)


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    n = 100_000
    torch.manual_seed(8)
    x = F.selu(torch.randn(n, dtype=torch.float64))
    for p in (0.05, 0.1, 0.3):
        y = alpha_dropout(x, p)
        fourth = float((y - y.mean()).pow(4).mean())
        assert abs(float(y.mean())) < Z / math.sqrt(n)
        assert abs(float(y.var()) - 1) < Z * math.sqrt((fourth - 1) / n)


def test_spatial_dropout_drops_whole_channels_of_single_samples() -> None:
    torch.manual_seed(9)
    y = spatial_dropout(torch.ones(100, 64, 3, 3), 0.3)
    dropped = (y == 0).flatten(2)
    assert torch.equal(dropped.all(-1), dropped.any(-1))
    lowest, highest = binomial_region(6400, 0.3)
    assert lowest <= int(dropped.all(-1).sum()) <= highest
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize(("shape", "rank"), [((4, 8), 2), ((4, 8, 3), 2), ((4, 8, 3, 3), 1), ((4, 8), 0)])
def test_spatial_dropout_refuses_the_wrong_number_of_axes(shape: tuple[int, ...], rank: int) -> None:
    with pytest.raises(ValueError, match="spatial dropout"):
        spatial_dropout(torch.ones(shape), 0.5, rank=rank)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_rates_that_are_no_probabilities_are_refused(p: float) -> None:
    x = torch.ones(2, 3)
    for function in (inverted_dropout, classical_dropout, alpha_dropout, stochastic_depth):
        with pytest.raises(ValueError, match="between 0 and 1"):
            function(x, p)
    with pytest.raises(ValueError, match="between 0 and 1"):
        drop_connect(x, x, p=p)
    with pytest.raises(ValueError, match="between 0 and 1"):
        StochasticDepth(p)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", ["no", "boolean", "added"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_attention_is_that_of_torch(p: float, masked: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(10)
    query, key = torch.randn(2, 3, 5, 8, generator=generator).to(dtype), torch.randn(2, 3, 6, 8, generator=generator)
    key, value = key.to(dtype), torch.randn(2, 3, 6, 4, generator=generator).to(dtype)
    mask = None
    if masked != "no":
        mask = torch.rand(5, 6, generator=generator) > 0.3 if masked == "boolean" else torch.randn(5, 6).to(dtype)
    if masked == "boolean":
        mask[:, 0] = True
    for index in range(3):

        def place(x: Tensor, index: int = index) -> list[Tensor]:
            return [x if index == place else other for place, other in enumerate((query, key, value))]

        x = (query, key, value)[index]
        ours = with_gradient(lambda x: attention_dropout(*place(x), p=p, mask=mask), x)
        theirs = with_gradient(lambda x: F.scaled_dot_product_attention(*place(x), attn_mask=mask, dropout_p=p), x)
        tolerance = 50 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_attention_drops_nothing_in_evaluation() -> None:
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(11))
    plain = F.scaled_dot_product_attention(x, x, x)
    torch.testing.assert_close(attention_dropout(x, x, x, 0.9, training=False), plain)


@pytest.mark.parametrize("device", DEVICES)
def test_stochastic_depth_keeps_or_drops_samples(device: str) -> None:
    torch.manual_seed(12)
    layer = StochasticDepth(0.3)
    y = layer(torch.ones(10_000, 2, 3, device=device)).cpu()
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    lowest, highest = binomial_region(10_000, 0.3)
    assert lowest <= int(dropped.all(1).sum()) <= highest
    torch.testing.assert_close(y[~dropped.any(1)], torch.full_like(y[~dropped.any(1)], 1 / 0.7))
    x = torch.ones(3, 2)
    assert layer.eval()(x) is x
    assert torch.equal(stochastic_depth(x, 1.0), torch.zeros_like(x))


def test_the_rates_of_stochastic_depth_grow_linearly() -> None:
    rates = depth_rates(0.5, 54)
    assert rates[-1] == 0.5
    assert rates[0] == pytest.approx(0.5 / 54)
    # Huang et al. 2016, section 3: with p_L = 0.5 and L = 54 about 40 blocks are active on average
    assert sum(1 - rate for rate in rates) == pytest.approx(40.25)


def test_drop_connect_has_its_moments_and_its_own_mask_for_each_row() -> None:
    generator = torch.Generator().manual_seed(13)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (6, (4, 6), 4))
    rows, p = 20_000, 0.3
    torch.manual_seed(14)
    y = drop_connect(x.expand(rows, -1), weight, bias, p)
    assert len(y.unique(dim=0)) > 1
    mean, variance = drop_connect_moments(x, weight, bias, p)
    assert float(((y.mean(0) - mean) / (variance / rows).sqrt()).abs().max()) < Z
    squares = (y - mean).square()
    assert float(((squares.mean(0) - variance) / (squares.std(0) / math.sqrt(rows))).abs().max()) < Z


def test_drop_connect_in_evaluation_is_a_linear_layer() -> None:
    torch.manual_seed(15)
    layer, plain = DropConnectLinear(6, 4, p=0.5), nn.Linear(6, 4)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 6)
    assert torch.equal(layer.eval()(x), plain(x))
    assert layer.train()(x).shape == (2, 3, 4)
    assert not torch.equal(layer(x), plain(x))
    assert torch.equal(drop_connect(x, plain.weight, plain.bias, 1.0), plain.bias.expand(2, 3, 4))
    with pytest.raises(ValueError, match="all weights"):
        drop_connect_moments(x, plain.weight, p=1.0)


def test_drop_connect_has_the_gradients_of_its_mask() -> None:
    generator = torch.Generator().manual_seed(16)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((3, 5), (4, 5), 4)
    )

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return drop_connect(x, weight, bias, 0.4, generator=torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(function, (x, weight, bias))


def test_stacked_dropouts_act_as_one() -> None:
    rates = (0.1, 0.2, 0.3)
    torch.manual_seed(17)
    n = 20_000
    y = torch.ones(n, dtype=torch.float64)
    for rate in rates:
        y = inverted_dropout(y, rate)
    lowest, highest = binomial_region(n, effective_rate(rates))
    assert lowest <= int((y == 0).sum()) <= highest
    squares = (y - 1).square()
    assert abs(float(squares.mean()) - noise_to_signal(rates)) < Z * float(squares.std()) / math.sqrt(n)
