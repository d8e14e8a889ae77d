"""The closed forms and the recursion against published values and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from auditor.reference.propagation import (
    ACTIVATIONS,
    Layer,
    padding_loss,
    propagate,
    second_moment,
    slope_moment,
    tolerance,
)

TORCH = {
    "linear": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(),
}


@pytest.mark.parametrize(
    ("activation", "value", "slope"),
    [
        ("linear", 1, 1),
        ("relu", 0.5, 0.5),
        ("leaky_relu", (1 + 1e-4) / 2, (1 + 1e-4) / 2),
        ("tanh", 0.394, 0.464),
        ("gelu", 0.425, 0.456),
        ("silu", 0.356, 0.380),
        ("sigmoid", 0.293, 0.0448),
        ("elu", 0.645, 0.668),
        ("selu", 1, 1.072),
    ],
)
def test_moments_at_one(activation: str, value: float, slope: float) -> None:
    assert second_moment(activation, 1.0) == pytest.approx(value, rel=2e-3)
    assert slope_moment(activation, 1.0) == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("q", [1e-4, 0.3, 25.0])
def test_moments_against_torch(activation: str, q: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(200_000, generator=generator, dtype=torch.float64) * math.sqrt(q)).requires_grad_()
    y = TORCH[activation](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert second_moment(activation, q) == pytest.approx(float(y.detach().square().mean()), rel=0.02)
    assert slope_moment(activation, q) == pytest.approx(float(slope.square().mean()), rel=0.02)


@pytest.mark.parametrize(("activation", "std"), [("relu", 0.01), ("tanh", 0.01), ("relu", 0.5), ("gelu", 0.02)])
def test_propagation_against_monte_carlo(activation: str, std: float) -> None:
    """Head input and gradient of 8 layers of width 128, median of 5 draws, within a quarter of the tolerance."""
    width, depth = 128, 8
    layers = [Layer(width, width, std**2, activation=activation)] * depth
    signal = propagate(layers)
    forward, backward = [], []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(width, width, generator=generator, dtype=torch.float64) * std for _ in range(depth)]
        first = torch.randn(64, width, generator=generator, dtype=torch.float64) @ weights[0].T
        first.requires_grad_()
        x = first
        for weight in weights[1:]:
            x, given = TORCH[activation](x) @ weight.T, TORCH[activation](x)
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((x * direction).sum(), first)
        forward.append(math.log10(given.detach().square().mean()))
        backward.append(math.log10(gradient.square().mean() / direction.square().mean()))
    assert sorted(forward)[2] == pytest.approx(math.log10(signal.head_input), abs=signal.tolerance / 4)
    assert sorted(backward)[2] == pytest.approx(math.log10(signal.gradient), abs=signal.tolerance / 4)


def test_outputs_and_bias() -> None:
    signal = propagate([Layer(10, 20, 0.1, bias=0.5), Layer(20, 5, 0.0, bias=0.25)])
    assert signal.outputs == pytest.approx((1.5, 0.25))
    assert signal.head_input == pytest.approx(1.5)


def test_slack_adds_to_the_tolerance() -> None:
    assert propagate([Layer(64, 64, 1.0, slack=0.7)]).tolerance == pytest.approx(tolerance([64]) + 0.7)
    assert tolerance([256] * 10) == pytest.approx(3 * math.sqrt(50 / 256) / math.log(10) + 0.1)


def test_padding_loss() -> None:
    assert 9 * padding_loss(3, 8) == pytest.approx(0.68, abs=0.01)
    assert 9 * padding_loss(3, 4) == pytest.approx(1.43, abs=0.01)
    assert padding_loss(1) == 0


def test_unknown_activation() -> None:
    with pytest.raises(KeyError):
        second_moment("unheard_of", 1.0)
