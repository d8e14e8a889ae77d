"""Moments of the pieces of a network, and correlations, against Monte Carlo and published values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.reference.propagation import (
    ACTIVATIONS,
    Layer,
    attended_moment,
    dropped_moment,
    normalised_moment,
    paired_moment,
    pooled_relu_moment,
    propagate_correlation,
    residual_moment,
    second_moment,
)
from tests.reference.chance import Z
from tests.reference.test_propagation import TORCH

N = 200_000


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agrees(values: torch.Tensor, expected: float, slack: float = 0.0) -> bool:
    """Whether the mean of independent values is the expected one."""
    return abs(float(values.mean()) - expected) < Z * float(values.std()) / math.sqrt(len(values)) + slack


def test_norm_residual_dropout() -> None:
    x = 3 * normal(1000, 64) + 5
    assert float((F.layer_norm(x, (64,)) * 2 + 1).square().mean()) == pytest.approx(normalised_moment(4, 1), rel=1e-4)
    a, b = normal(N), 2 * normal(N, seed=1)
    assert agrees((a + b).square(), residual_moment(1.0, 4.0))
    torch.manual_seed(2)
    assert agrees(F.dropout(b, 0.3).square(), dropped_moment(4.0, 0.3))


@pytest.mark.parametrize("positions", [1, 4, 49])
def test_average_of_relu(positions: int) -> None:
    x = normal(N // positions, positions) * math.sqrt(2.0)
    assert agrees(x.relu().mean(1).square(), pooled_relu_moment(2.0, positions))
    assert pooled_relu_moment(1.0, 4) == pytest.approx(0.244, abs=5e-4)


@pytest.mark.parametrize("logits", [0.0, 0.1, 0.5])
def test_attention(logits: float) -> None:
    weights = (normal(4000, 256) * math.sqrt(logits)).softmax(-1)
    y = (weights * normal(4000, 256, seed=1)).sum(-1)
    # exp(s²)/T is the limit of many positions: 5 % off for 256
    assert agrees(y.square(), attended_moment(1.0, 256, logits), slack=0.05 * attended_moment(1.0, 256, logits))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_paired_moments(activation: str) -> None:
    u, other = normal(N), normal(N, seed=1)
    for correlation in (-0.5, 0.0, 0.3, 0.9):
        v = correlation * u + math.sqrt(1 - correlation**2) * other
        values = TORCH[activation](1.5 * u) * TORCH[activation](1.5 * v)
        assert agrees(values, paired_moment(activation, 2.25, correlation), slack=1e-6)
    assert paired_moment(activation, 2.25, 1.0) == pytest.approx(second_moment(activation, 2.25), rel=1e-3)


def test_correlations_of_relu_networks() -> None:
    layers = [Layer(256, 256, 2 / 256, 0.0, "relu")] * 20
    found = propagate_correlation(layers, 0.0)
    assert found[0] == 0.0
    assert found[1] == pytest.approx(1 / math.pi)
    assert list(found) == sorted(found)
    assert 0.9 < found[-1] < 1.0


@pytest.mark.parametrize(
    ("activation", "variance", "bias"), [("tanh", 1.5, 0.05), ("relu", 2.0, 0.0), ("tanh", 4.0, 0)]
)
def test_correlations_against_a_network(activation: str, variance: float, bias: float) -> None:
    width, depth = 512, 8
    layers = [Layer(width, width, variance / width, bias, activation)] * depth
    predicted = propagate_correlation(layers, 0.5)
    x = normal(width)
    pair = torch.stack([x, 0.5 * x + math.sqrt(0.75) * normal(width, seed=1)])
    pair = pair / pair.square().mean(1, keepdim=True).sqrt()
    torch.manual_seed(3)
    for layer in predicted:
        weight, shift = torch.empty(width, width, dtype=torch.float64), torch.empty(width, dtype=torch.float64)
        nn.init.normal_(weight, 0, math.sqrt(variance / width))
        pair = F.linear(pair, weight, nn.init.normal_(shift, 0, math.sqrt(bias)))
        measured = float((pair[0] * pair[1]).mean() / (pair[0].square().mean() * pair[1].square().mean()).sqrt())
        assert measured == pytest.approx(layer, abs=0.1)
        pair = TORCH[activation](pair)
