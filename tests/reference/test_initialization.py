"""Initialisers against `torch.nn.init` (same seed, same values), their formulas, and what they are for: the signal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.reference import initialization as init
from auditor.reference.propagation import ACTIVATIONS, second_moment
from tests.reference.chance import DEVICES, Z

Fill = Callable[[Tensor], Tensor]
SHAPES = [(64, 48), (32, 16, 3, 3), (8, 20, 5)]

# Ours, torch's of the same name
PAIRS: dict[str, tuple[Fill, Fill]] = {
    "constant": (lambda w: init.constant(w, 0.3), lambda w: nn.init.constant_(w, 0.3)),
    "small": (init.small_normal, lambda w: nn.init.normal_(w, 0, 0.01)),
    "xavier normal": (lambda w: init.xavier_normal(w, 1.5), lambda w: nn.init.xavier_normal_(w, 1.5)),
    "xavier uniform": (lambda w: init.xavier_uniform(w, 1.5), lambda w: nn.init.xavier_uniform_(w, 1.5)),
    "he normal": (init.he_normal, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "he uniform": (init.he_uniform, lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
    "he leaky": (lambda w: init.he_normal(w, "leaky_relu", 0.2), lambda w: nn.init.kaiming_normal_(w, 0.2)),
    "he leaky uniform": (lambda w: init.he_uniform(w, "prelu", 0.25), lambda w: nn.init.kaiming_uniform_(w, 0.25)),
    "lecun": (init.lecun_normal, lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
    "orthogonal": (lambda w: init.orthogonal(w, 1.4), lambda w: nn.init.orthogonal_(w, 1.4)),
    "transformer": (init.transformer_normal, lambda w: nn.init.normal_(w, 0, 0.02)),
    "residual": (lambda w: init.residual_projection(w, 24), lambda w: nn.init.normal_(w, 0, 0.02 / math.sqrt(24))),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_draws_what_torch_draws(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    drawn = []
    for fill in PAIRS[name]:
        torch.manual_seed(1)
        drawn.append(fill(torch.empty(shape, dtype=dtype)))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_works_on_parameters_with_a_generator(name: str) -> None:
    weight = nn.Parameter(torch.empty(6, 4))
    assert PAIRS[name][0](weight) is weight
    assert weight.requires_grad
    assert weight.grad_fn is None
    if name not in ("constant",):
        fill = {"he normal": init.he_normal, "orthogonal": init.orthogonal}.get(name, init.xavier_uniform)
        state = torch.get_rng_state()
        first = fill(weight, generator=torch.Generator().manual_seed(2)).clone()
        assert torch.equal(fill(weight, generator=torch.Generator().manual_seed(2)), first)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("fill", "variance", "kurtosis"),
    [
        (init.small_normal, 1e-4, 3.0),
        (init.xavier_normal, 2 / (400 + 200), 3.0),
        (init.xavier_uniform, 2 / (400 + 200), 1.8),
        (init.he_normal, 2 / 400, 3.0),
        (init.he_uniform, 2 / 400, 1.8),
        (lambda w: init.he_normal(w, "leaky_relu", 0.5), 2 / 1.25 / 400, 3.0),
        (init.lecun_normal, 1 / 400, 3.0),
    ],
)
def test_mean_and_variance(fill: Fill, variance: float, kurtosis: float, device: str) -> None:
    torch.manual_seed(3)
    weight = fill(torch.empty(200, 400, device=device)).cpu().double()
    n = weight.numel()
    assert abs(float(weight.mean())) < Z * math.sqrt(variance / n)
    assert abs(float(weight.square().mean()) / variance - 1) < Z * math.sqrt((kurtosis - 1) / n)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (16, 4, 3, 3)])
def test_orthogonal_keeps_norms(shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    weight = init.orthogonal(torch.empty(shape, dtype=torch.float64), 1.5).flatten(1)
    gram = weight @ weight.T if shape[0] <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(gram, 2.25 * torch.eye(len(gram), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_orthogonal_in_half_precision(dtype: torch.dtype) -> None:
    weight = init.orthogonal(torch.empty(32, 32, dtype=dtype))
    gram = weight.float() @ weight.float().T
    assert weight.dtype == dtype
    assert float((gram - torch.eye(32)).abs().max()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_gates_are_each_orthogonal(kind: type[nn.RNNBase], gates: int) -> None:
    weight = init.recurrent_orthogonal(kind(3, 8).weight_hh_l0, gates).detach()
    for block in weight.chunk(gates):
        torch.testing.assert_close(block @ block.T, torch.eye(8), rtol=0, atol=1e-5)


def test_gains() -> None:
    for name in ("linear", "sigmoid", "relu"):
        assert init.gain(name) == pytest.approx(nn.init.calculate_gain(name))
    for slope in (0.0, 0.01, 0.2, 1.0):
        assert init.gain("leaky_relu", slope) == pytest.approx(nn.init.calculate_gain("leaky_relu", slope))
    assert ACTIVATIONS - {"leaky_relu"} <= set(init.GAINS)
    with pytest.raises(KeyError):
        init.gain("relu7")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_moment_gain_is_a_fixed_point(activation: str) -> None:
    assert init.moment_gain(activation) ** 2 * second_moment(activation, 1.0) == pytest.approx(1.0)


def test_known_moment_gains() -> None:
    known = {"relu": math.sqrt(2), "tanh": 1.593, "gelu": 1.534, "silu": 1.676, "selu": 1.0, "leaky_relu": 1.4141}
    for activation, value in known.items():
        assert init.moment_gain(activation) == pytest.approx(value, abs=2e-3)
    assert init.moment_gain("prelu", 0.25) == pytest.approx(math.sqrt(2 / 1.0625))


def test_fans() -> None:
    assert init.fans((5, 3)) == (3, 5)
    assert init.fans((8, 4, 3, 3)) == (36, 72)
    with pytest.raises(ValueError, match="two axes"):
        init.fans((3,))
    assert init.fan_in(nn.Linear(3, 5)) == 3
    assert init.fan_in(nn.Conv2d(8, 4, 3, groups=2)) == 36
    assert init.fan_in(nn.ConvTranspose2d(8, 4, 4, stride=2, groups=2)) == 4 * 16 / 4


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(256, 200),
        nn.Conv2d(16, 64, 3),
        nn.Conv2d(16, 64, 3, groups=4),
        nn.ConvTranspose2d(16, 64, 4, stride=2),
        nn.ConvTranspose1d(32, 8, 6, stride=3, groups=2),
    ],
    ids=str,
)
def test_he_gives_every_layer_the_same_scale(layer: nn.Module) -> None:
    torch.manual_seed(5)
    init.he_normal(layer.weight, "linear", fan=init.fan_in(layer))
    nn.init.zeros_(layer.bias)
    shape = {2: (64, 256), 3: (64, 32, 200), 4: (16, 16, 20, 20)}[layer.weight.dim()]
    with torch.no_grad():
        y = layer(torch.randn(shape))
        # borders of a transposed convolution see fewer products
        middle = y[..., 6:-6] if y.dim() == 3 else y[..., 6:-6, 6:-6] if y.dim() == 4 else y
    # Variance of the mean of y²: of ‖W‖² over its draws, and of x over rows of which overlapping kernels share some
    rows = middle[:, 0].numel() / layer.weight[0, 0].numel()
    over_x = 2 / rows * (1 / init.fan_in(layer) + 1 / middle.shape[1])
    assert abs(float(middle.square().mean()) - 1) < Z * math.sqrt(2 / layer.weight.numel() + over_x)


def signal(fill: Fill, activation: Callable[[Tensor], Tensor], depth: int = 20, width: int = 256) -> float:
    """rms of the signal behind `depth` layers."""
    generator = torch.Generator().manual_seed(6)
    torch.manual_seed(7)
    x = torch.randn(64, width, generator=generator)
    for _ in range(depth):
        x = activation(F.linear(x, fill(torch.empty(width, width))))
    return float(x.square().mean().sqrt())


def test_reference_schemes_carry_the_signal_and_counter_examples_do_not() -> None:
    assert 0.3 < signal(init.he_normal, F.relu) < 3
    assert 0.3 < signal(lambda w: init.orthogonal(w, math.sqrt(2)), F.relu) < 3
    assert 0.1 < signal(init.xavier_normal, torch.tanh) < 1
    assert 0.5 < signal(init.lecun_normal, F.selu) < 2
    assert 0.3 < signal(lambda w: init.he_normal(w, "leaky_relu", 0.3), lambda x: F.leaky_relu(x, 0.3)) < 3
    assert signal(init.small_normal, F.relu) < 1e-10
    assert signal(lambda w: init.orthogonal(w, 1.0), F.relu) < 1e-2
    assert signal(init.constant, F.relu) == 0.0


def test_counter_examples_do_not_learn() -> None:
    """Of zero weights only the head's bias gets a gradient; of constant ones, all units get the same."""
    torch.manual_seed(8)
    x, target = torch.randn(16, 4), torch.arange(16) % 3
    for value in (0.0, 0.1):
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        for parameter in net.parameters():
            init.constant(parameter, value)
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(5):
            optimiser.zero_grad()
            F.cross_entropy(net(x), target).backward()
            optimiser.step()
        assert float((net[0].weight - net[0].weight[0]).detach().abs().max()) < 1e-6
        if value == 0.0:
            assert not net[0].weight.any()
            assert not net[2].weight.any()


def test_residual_projections_keep_the_stream_from_growing() -> None:
    torch.manual_seed(9)
    blocks, width = 50, 128
    grown = {}
    for scaled in (False, True):
        stream = torch.randn(32, width)
        for _ in range(blocks):
            weight = torch.empty(width, width)
            std = 1 / math.sqrt(width)
            weight = init.residual_projection(weight, blocks, std) if scaled else init.normal(weight, std)
            stream = stream + F.layer_norm(stream, (width,)) @ weight.T
        grown[scaled] = float(stream.square().mean())
    assert grown[False] == pytest.approx(1 + blocks, rel=0.3)
    assert grown[True] == pytest.approx(2.0, rel=0.3)


def test_the_width_of_a_transformer_decides_its_scale() -> None:
    assert init.transformer_std(768) == init.transformer_std(256) == 0.02
    assert init.transformer_std(64) == 0.125
