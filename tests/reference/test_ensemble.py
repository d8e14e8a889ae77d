"""The enumeration against hand-written loops, the theorems it illustrates, and Monte Carlo."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from auditor.reference.ensemble import enumerate_subnetworks
from tests.reference.chance import Z


def head(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv1d)):
            layer.reset_parameters()
    return nn.Sequential(*layers).double()


def sample(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_one_linear_layer_and_softmax_is_the_geometric_mean(p: float) -> None:
    result = enumerate_subnetworks(head(nn.Dropout(p), nn.Linear(6, 4)), sample(3, 6), classifier=True)
    assert result.subnetworks == 64
    assert result.geometric_gap < 1e-14
    assert result.arithmetic_gap > 1e-3
    torch.testing.assert_close(result.arithmetic.sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_a_linear_network_is_the_arithmetic_mean(p: float) -> None:
    net = head(nn.Dropout(p), nn.Linear(6, 4), nn.Linear(4, 2))
    x = sample(3, 6)
    result = enumerate_subnetworks(net, x)
    assert result.arithmetic_gap < 1e-14
    product = net[2].weight @ net[1].weight
    torch.testing.assert_close(result.variance, p / (1 - p) * x.square() @ product.square().T)
    with pytest.raises(ValueError, match="geometric"):
        _ = result.geometric_gap


def test_a_deeper_net_is_neither() -> None:
    net = head(
        nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
    )
    result = enumerate_subnetworks(net, sample(2, 5), classifier=True)
    assert result.subnetworks == 2**14
    assert 1e-5 < result.arithmetic_gap < 0.1
    assert 1e-5 < result.geometric_gap < 0.1


def test_agrees_with_a_loop_over_masks() -> None:
    net = head(
        nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(3, 2), nn.Tanh(), nn.Dropout(0.6), nn.Linear(2, 2)
    )
    x = sample(2, 4)
    mean, logarithm = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=5):
        rates = (0.2, 0.2, 0.2, 0.6, 0.6)
        weight = math.prod(1 - p if bit else p for p, bit in zip(rates, bits, strict=True))
        mask = torch.tensor(bits, dtype=torch.float64)
        hidden = net[:2](x) * mask[:3] / 0.8
        probabilities = net[6](net[3:5](hidden) * mask[3:] / 0.4).softmax(-1).detach()
        mean += weight * probabilities
        logarithm += weight * probabilities.log()
    result = enumerate_subnetworks(net, x, classifier=True)
    torch.testing.assert_close(result.arithmetic, mean)
    torch.testing.assert_close(result.geometric, logarithm.softmax(-1))


def test_monte_carlo_tends_to_the_arithmetic_mean() -> None:
    net = head(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3), seed=2)
    x, passes = sample(1, 4), 20_000
    exact = enumerate_subnetworks(net, x, classifier=True)
    torch.manual_seed(3)
    with torch.no_grad():
        drawn = net.train()(x.expand(passes, -1)).softmax(-1)
    assert float(((drawn.mean(0) - exact.arithmetic) / (exact.variance / passes).sqrt()).abs().max()) < Z


def test_channels_are_the_units_of_spatial_dropout() -> None:
    net = head(nn.Conv1d(2, 3, 3), nn.Dropout1d(0.5), nn.Flatten(), nn.Linear(9, 2))
    assert enumerate_subnetworks(net, sample(2, 2, 5)).subnetworks == 8


def test_a_layer_that_is_called_twice_has_two_masks() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.drop(x))

    x = sample(1, 3)
    result = enumerate_subnetworks(Twice(), x)
    assert result.subnetworks == 64
    torch.testing.assert_close(result.variance, x.square() * 3)  # 1/0.25 − 1


def test_leaves_the_head_as_it_was() -> None:
    net = head(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    enumerate_subnetworks(net, sample(2, 4))
    assert [layer.training for layer in net] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net[0]._forward_hooks


def test_refuses_what_cannot_be_enumerated() -> None:
    with pytest.raises(ValueError, match="20 units"):
        enumerate_subnetworks(head(nn.Dropout(0.5), nn.Linear(20, 2)), sample(1, 20))
    with pytest.raises(ValueError, match="0 units"):
        enumerate_subnetworks(head(nn.Dropout(0.0), nn.Linear(2, 2)), sample(1, 2))
    for layer in (nn.AlphaDropout(0.5), nn.Dropout(1.0)):
        with pytest.raises(TypeError, match="does not drop units"):
            enumerate_subnetworks(head(layer, nn.Linear(2, 2)), sample(1, 2))
