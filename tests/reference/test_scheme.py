"""`initialize`: which layer gets what, what is left alone, and that the result carries the signal."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from auditor.reference.scheme import SCHEMES, Initialised, LayerUse, initialize, module_facts
from tests.reference.chance import Z


def by_name(done: list[Initialised]) -> dict[str, str]:
    return {one.parameter: one.scheme for one in done}


def facts(model: nn.Module, **known: dict[str, Any]) -> list[LayerUse]:
    """`module_facts` with more known of some layers; "_" stands for the dot in a path."""
    return [replace(use, **known.get(use.path.replace(".", "_"), {})) for use in module_facts(model)]


def has_std(weight: Tensor, std: float) -> bool:
    """Normal with mean 0 and this standard deviation."""
    return abs(float(weight.detach().double().square().mean()) / std**2 - 1) < Z * math.sqrt(2 / weight.numel())


@pytest.mark.parametrize(
    ("activation", "slope", "scheme", "gain"),
    [
        ("relu", 0.01, "he_normal", math.sqrt(2)),
        ("leaky_relu", 0.3, "he_normal", math.sqrt(2 / 1.09)),
        ("gelu", 0.01, "he_normal", math.sqrt(2)),
        ("silu", 0.01, "he_normal", math.sqrt(2)),
        ("tanh", 0.01, "xavier_normal", 1.0),
        ("sigmoid", 0.01, "xavier_normal", 1.0),
        ("selu", 0.01, "lecun_normal", 1.0),
        ("linear", 0.01, "lecun_normal", 1.0),
    ],
)
def test_the_activation_decides(activation: str, slope: float, scheme: str, gain: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    done = initialize(layer, layers=[LayerUse("", layer, activation, slope)])
    assert by_name(done) == {"weight": scheme, "bias": "zeros"}
    assert has_std(layer.weight, gain / 10)
    assert not layer.bias.any()


def test_a_deep_net_comes_alive() -> None:
    torch.manual_seed(1)
    layers = [layer for _ in range(20) for layer in (nn.Linear(128, 128), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Linear(128, 10)), torch.randn(64, 128)
    with torch.no_grad():
        vanished = float(model[:-1](x).square().mean().sqrt())
        uses = [replace(use, activation="relu", is_head=use.path == "40") for use in module_facts(model)]
        done = initialize(model, layers=uses)
        restored = float(model[:-1](x).square().mean().sqrt())
        logits = float(model(x).std())
    assert vanished < 0.1 < 0.2 < restored < 5
    assert 0.1 < logits < 3
    assert by_name(done)["40.weight"] == "lecun_normal"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.down(self.up(x).relu())


class Language(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width, padding_idx=0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize(("width", "std"), [(256, 0.02), (64, 0.125)])
def test_a_transformer(width: int, std: float) -> None:
    torch.manual_seed(2)
    model = Language(width)
    uses = [
        replace(use, is_residual_out=use.path.endswith(("down", "out_proj")), activation="linear")
        for use in module_facts(model)
    ]
    assert {use.path for use in uses if use.tied} == {"embedding", "head"}
    done = initialize(model, layers=uses)
    names = by_name(done)
    assert set(names) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    block = model.blocks[1]
    assert has_std(model.embedding.weight[1:], std)
    assert not model.embedding.weight[0].any()
    assert names["head.weight"] == "kept"
    assert next(one.reason for one in done if one.parameter == "head.weight") == "tied to embedding.weight"
    assert has_std(block.attention.in_proj_weight, std)
    assert has_std(block.up.weight, std)
    # four residual branches; narrow models get 1/√fan_in, which is 4 · width here
    assert has_std(block.down.weight, (0.02 if width == 256 else 1 / math.sqrt(4 * width)) / 2)
    assert has_std(block.attention.out_proj.weight, std / 2)
    assert torch.equal(block.norm.weight, torch.ones(width))
    assert not block.attention.in_proj_bias.any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(3)
    model = kind(6, 8, num_layers=2, bidirectional=True)
    done = initialize(model, layers=[LayerUse("", model)])
    assert set(by_name(done)) == {name for name, _ in model.named_parameters()}
    gates = len(model.weight_hh_l0) // 8
    for block in model.weight_hh_l1_reverse.detach().chunk(gates):
        torch.testing.assert_close(block @ block.T, torch.eye(8), rtol=0, atol=1e-5)
    biases = sum(
        float(parameter.detach().sum()) for name, parameter in model.named_parameters() if name.startswith("bias")
    )
    assert biases == (4 * 8 if kind is nn.LSTM else 0)
    if kind is nn.LSTM:
        assert torch.equal(model.bias_ih_l0[8:16], torch.ones(8))


def test_exempt_frozen_parametrized_and_unknown_are_kept() -> None:
    model = nn.ModuleDict(
        {
            "gate": nn.Linear(4, 4),
            "frozen": nn.Linear(4, 4),
            "spectral": parametrizations.spectral_norm(nn.Linear(4, 4)),
            "bilinear": nn.Bilinear(4, 4, 2),
            "norm": nn.BatchNorm1d(4),
        }
    )
    model["frozen"].requires_grad_(False)
    for name in ("gate", "norm"):
        nn.init.zeros_(model[name].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    uses = facts(model, gate={"exempt": "zero-initialised gate"}, norm={"exempt": "zero γ"})
    done = initialize(model, layers=[*uses, LayerUse("bilinear", model["bilinear"])])
    assert set(by_name(done).values()) == {"kept"}
    reasons = {one.parameter: one.reason for one in done}
    assert reasons["gate.weight"] == "zero-initialised gate"
    assert reasons["frozen.bias"] == "frozen"
    assert reasons["spectral.bias"] == "computed by a parametrization"
    assert reasons["bilinear.weight"] == "no reference for a Bilinear"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    initialize(model["norm"])
    assert torch.equal(model["norm"].weight, torch.ones(4))


def test_unknown_activations_are_scaled_on_inputs() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(16, 32), nn.Hardswish(), nn.Linear(32, 32), nn.Softsign(), nn.Linear(32, 4))
    x = torch.randn(64, 16)
    assert set(by_name(initialize(model)).values()) == {"orthogonal", "zeros"}
    initialize(model, x=x)
    with torch.no_grad():
        assert float(model(x).std()) == pytest.approx(1.0, abs=0.03)
        assert float(model[:3](x).std()) == pytest.approx(1.0, abs=0.03)


def test_known_layers_keep_their_scale_when_others_are_fitted() -> None:
    torch.manual_seed(8)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(64, 64)
    initialize(model, layers=[LayerUse("0", model[0], "relu"), LayerUse("2", model[2])], x=10 * x)
    assert has_std(model[0].weight, math.sqrt(2 / 64))
    with torch.no_grad():
        assert float(model(10 * x).std()) == pytest.approx(1.0, abs=0.03)


def test_embeddings_outside_transformers() -> None:
    torch.manual_seed(9)
    model = nn.ModuleDict({"free": nn.Embedding(50, 100), "tied": nn.Embedding(50, 100), "head": nn.Linear(100, 50)})
    model["head"].weight = model["tied"].weight
    initialize(model, layers=facts(model, head={"is_head": True}))
    assert has_std(model["free"].weight, 1.0)
    assert has_std(model["tied"].weight, 0.1)  # so that the logits are of scale 1


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_one_scheme_for_all(scheme: str) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2), nn.Linear(4, 2))
    nn.init.constant_(model[1].weight, 0.5)
    done = by_name(initialize(model, scheme))
    assert done["0.weight"] == done["2.weight"] == done["3.weight"] == scheme
    assert done["1.weight"] == "kept"
    assert model[1].weight[0].item() == 0.5
    assert bool(model[0].weight.any()) == (scheme != "zeros")


def test_lsuv_for_all() -> None:
    torch.manual_seed(6)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
    initialize(model, "lsuv", x=x)
    with torch.no_grad():
        assert float(model(x).std()) == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="give `x`"):
        initialize(model, "lsuv")


def test_the_same_generator_gives_the_same_weights() -> None:
    drawn = []
    for _ in range(2):
        model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4), nn.MultiheadAttention(4, 1), nn.Embedding(5, 4))
        initialize(model, generator=torch.Generator().manual_seed(7))
        drawn.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(drawn[0], drawn[1])


def test_models_without_values_and_unknown_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        initialize(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="no values"):
        initialize(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))
    with pytest.raises(ValueError, match="no scheme 'he'"):
        initialize(nn.Linear(2, 2), "he")
