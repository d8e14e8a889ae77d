"""The probe finds what cannot learn and is silent on the deliberate zeros of real models; random numbers in eval."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.capture import LiveInputs, capture
from auditor.dynamic.observe import LayerProbe, Probe
from auditor.dynamic.probe import mean_spike, repeated_rows, rms, sens
from auditor.dynamic.probe_batch import fresh_batch

INIT = nn.init
Init = Callable[[torch.Tensor], Any]


def he(weight: torch.Tensor) -> None:
    INIT.kaiming_normal_(weight, nonlinearity="relu")


def mlp(
    depth: int, init: Init = he, activation: Callable[[], nn.Module] = nn.ReLU, norm: bool = False
) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(depth):
        linear = nn.Linear(16 if index == 0 else 32, 10 if index == depth - 1 else 32)
        init(linear.weight)
        INIT.zeros_(linear.bias)
        layers.append(linear)
        if index < depth - 1:
            layers += [nn.BatchNorm1d(32)] if norm else []
            layers.append(activation())
    return nn.Sequential(*layers)


def probe(model: nn.Module, *args: Any, **kwargs: Any) -> Probe:
    return capture(
        model, LiveInputs(args or (torch.randn(2, 16, generator=torch.Generator().manual_seed(0)),), kwargs)
    ).probe


def names(layers: list[LayerProbe]) -> list[str]:
    return [layer.name for layer in layers]


def is_clean(outcome: Probe) -> bool:
    assert outcome.ran, outcome.reason
    return not (outcome.dead or outcome.symmetric or outcome.duplicated or outcome.nonfinite)


# Figures --------------------------------------------------------------------------------------------------------------


def test_rms_and_sens() -> None:
    assert rms(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    same = torch.ones(8, 5)
    assert sens(same, 8) == 0.0
    apart = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    expected = (apart - apart.mean(0)).square().sum() / apart.square().sum()
    assert sens(apart, 8) == pytest.approx(float(expected), rel=1e-5)
    assert sens(apart.T.contiguous(), 8) == pytest.approx(float(expected), rel=1e-5)  # samples along axis 1
    assert sens(apart.repeat_interleave(3, 0), 8) == pytest.approx(float(expected), rel=1e-5)  # folded
    assert sens(torch.ones(3, 5), 8) is None
    assert sens(torch.zeros(8, 5), 8) == 0.0
    tiny = torch.ones(8, 5, dtype=torch.float64)
    tiny[0] += 1e-10
    assert 0 < (sens(tiny, 8) or 0) < 1e-18


def test_repeated_rows() -> None:
    weight = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    assert repeated_rows(weight) == 0.0
    weight[5:] = weight[0]
    assert repeated_rows(weight) == pytest.approx(0.5)
    assert repeated_rows(torch.zeros(4, 3)) == 0.75
    assert repeated_rows(torch.full((4, 3), float("nan"))) == 0.0
    assert repeated_rows(weight[:2] * 1e-20) == 0.0


def test_mean_spike() -> None:
    generator = torch.Generator().manual_seed(0)
    assert mean_spike(torch.randn(64, 64, generator=generator)) < 0.35
    assert 3 < mean_spike(torch.rand(64, 64, generator=generator)) < 9
    assert mean_spike(torch.rand(2, 2, generator=generator)) == 0.0
    assert mean_spike(torch.ones(8, 8)) == math.inf


# What is broken -------------------------------------------------------------------------------------------------------


def test_reference_network_is_clean() -> None:
    outcome = probe(mlp(8))
    assert is_clean(outcome)
    assert outcome.head is not None
    assert outcome.head.name == "14.weight"
    assert outcome.steps == 4
    assert (outcome.batch, outcome.regenerated, outcome.classes) == (32, True, 10)
    assert 0.1 < (outcome.head_rms or 0) < 10
    assert (outcome.loss or 0) < 3 * math.log(10)
    assert (outcome.initial_sens or 0) > 1e-3
    assert outcome.largest_rms < 100
    first = outcome.layers[0]
    assert (first.order, first.live_step, first.activation, first.normalised_after) == (1, 1, "relu", False)
    assert first.gain == pytest.approx(2, rel=0.2)
    assert outcome.head.activation is None
    assert all(layer.connected and not layer.detached for layer in outcome.layers)


def test_all_zeros() -> None:
    outcome = probe(mlp(3, INIT.zeros_))
    assert names(outcome.dead) == ["0.weight", "2.weight", "4.weight"]
    assert names(outcome.symmetric) == names(outcome.dead)
    assert outcome.duplicated == []
    assert outcome.steps == 8


def test_constant_weights() -> None:
    outcome = probe(mlp(3, lambda w: INIT.constant_(w, 0.1)))
    assert "2.weight" in names(outcome.symmetric)
    assert names(outcome.duplicated) == ["0.weight", "2.weight", "4.weight"]


def test_identical_rows() -> None:
    def clone_rows(weight: torch.Tensor) -> None:
        he(weight)
        weight.data[:] = weight.data[0].clone()

    assert names(probe(mlp(3, clone_rows)).duplicated) == ["0.weight", "2.weight", "4.weight"]


def test_small_weights_vanish() -> None:
    outcome = probe(mlp(8, lambda w: INIT.normal_(w, std=0.01)))
    assert (outcome.head_rms or 1) < 1e-3


def test_large_weights_explode() -> None:
    outcome = probe(mlp(8, INIT.normal_))
    assert (outcome.logit_std or 0) > 100 or outcome.largest_rms > 1e3


def test_default_initialisation_of_a_deep_plain_network_collapses() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(16, 32), nn.ReLU()]
    for _ in range(18):
        layers += [nn.Linear(32, 32), nn.ReLU()]
    outcome = probe(nn.Sequential(*layers, nn.Linear(32, 10)))
    assert (outcome.initial_sens or 0) < 1e-7
    assert (outcome.sens_after if outcome.sens_after is not None else 1) < 1e-7


def test_uniform_weights_have_a_spike() -> None:
    outcome = probe(mlp(4, INIT.uniform_, norm=True))
    assert all(layer.spike > 1.5 for layer in outcome.layers[1:])
    assert outcome.layers[0].normalised_after


@pytest.mark.parametrize(("activation", "dead"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_one_zero_layer_is_dead_only_before_relu(activation: Callable[[], nn.Module], dead: bool) -> None:
    model = mlp(5, activation=activation)
    INIT.zeros_(model[4].weight)
    assert ("4.weight" in names(probe(model).dead)) == dead


def test_dead_relu_by_bias() -> None:
    model = mlp(4)
    for layer in model[:-1:2]:
        INIT.constant_(layer.bias, -50)
    outcome = probe(model)
    assert "0.weight" in names(outcome.dead)
    assert outcome.units[0].dead_units == 1.0


def test_not_a_number() -> None:
    model = mlp(3)
    model[2].weight.data[0, 0] = float("nan")
    outcome = probe(model)
    assert outcome.ran
    assert outcome.nonfinite[:2] == ["parameter 2.weight", "output"]


def test_detached_and_unused_outputs_are_dead_but_not_executed_is_not() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.lost, self.never, self.head = (nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.lost(x)
            with torch.no_grad():
                x = x + self.cut(x)
            return self.head(x)

    layers = {layer.path: layer for layer in probe(Wasteful()).layers}
    assert layers["cut"].dead
    assert layers["cut"].detached
    assert layers["lost"].dead
    assert not layers["lost"].connected
    assert not layers["never"].executed
    assert not layers["never"].dead
    assert not layers["head"].dead


# What is deliberate ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Zero-γ norm, ReZero gate, LoRA branch, adaLN-zero modulation, zero head: all alive within a few steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
        INIT.zeros_(self.norm.weight)
        self.gate, self.gated = nn.Parameter(torch.zeros(1)), nn.Linear(16, 16)
        self.lora_a, self.lora_b = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        INIT.zeros_(self.lora_b.weight)
        self.modulation, self.inner = nn.Linear(16, 32), nn.Linear(16, 16)
        INIT.zeros_(self.modulation.weight)
        INIT.zeros_(self.modulation.bias)
        self.head = nn.Linear(16, 5)
        INIT.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.norm(self.linear(x))
        x = x + self.gate * self.gated(x)
        x = x + self.lora_b(self.lora_a(x))
        shift, scale = self.modulation(x).chunk(2, -1)
        x = x + scale * self.inner(x + shift)
        return self.head(x)


def test_deliberate_zeros_are_alive() -> None:
    outcome = probe(Block())
    assert is_clean(outcome)
    assert {layer.path: layer.live_step for layer in outcome.layers}["linear"] in (2, 3, 4)


def test_frozen_layers_and_blur_kernels_are_not_judged() -> None:
    model = mlp(3, INIT.ones_)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[4].weight.requires_grad_(True)
    he(model[4].weight)
    outcome = probe(model)
    assert is_clean(outcome)
    assert not outcome.layers[0].requires_grad


def test_icnr_is_exempt() -> None:
    conv = nn.Conv2d(3, 12, 3, padding=1)
    conv.weight.data = conv.weight.data[:3].repeat_interleave(4, 0)
    outcome = probe(nn.Sequential(conv, nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(3, 2, 3)), torch.randn(2, 3, 8, 8))
    assert outcome.layers[0].dup_before > 0.5
    assert outcome.layers[0].exempt
    assert is_clean(outcome)
    assert outcome.classes is None


def test_unused_experts_are_not_dead() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(16, 3)
            self.experts = nn.ModuleList(nn.Linear(16, 4) for _ in range(3))
            INIT.constant_(self.router.bias, 0.0)
            self.router.bias.data[0] = 100.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight, choice = self.router(x).softmax(-1).max(-1)
            out = x.new_zeros(len(x), 4)
            for index, expert in enumerate(self.experts):
                out[choice == index] = expert(x[choice == index]) * weight[choice == index, None]
            return out

    layers = {layer.path: layer for layer in probe(Experts()).layers}
    assert layers["experts.0"].executed
    assert not layers["experts.1"].executed
    assert not layers["experts.1"].dead


def test_tied_head_is_one_layer_and_the_head() -> None:
    class Tied(nn.Module):
        def __init__(self, functional: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.mix = nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 8)
            self.head = None
            if not functional:
                self.head = nn.Linear(8, 11, bias=False)
                self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.mix(self.embed(ids)))
            return F.linear(x, self.embed.weight) if self.head is None else self.head(x)

    for functional, name in ((False, "head.weight"), (True, "embed.weight")):
        outcome = probe(Tied(functional), torch.randint(1, 11, (2, 6)))
        assert is_clean(outcome)
        assert outcome.head is not None
        assert outcome.head.name == name
        assert outcome.head.tied == (() if functional else ("embed.weight",))
        assert outcome.classes == 11
        assert outcome.layers[0].activation == "tanh"


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(batch_first: bool) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.LSTM(8, 12, batch_first=batch_first)
            self.head = nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    outcome = probe(Tagger(), torch.randn(3, 5, 8))
    assert is_clean(outcome)
    assert names(outcome.layers) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"]
    assert outcome.layers[0].activation == "tanh"
    zero = Tagger()
    for parameter in zero.parameters():
        INIT.zeros_(parameter)
    broken = probe(zero, torch.randn(3, 5, 8))
    assert names(broken.symmetric)[:2] == names(broken.dead)[:2] == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]


def test_attention_and_weight_norm_are_clean() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    outcome = probe(encoder, torch.randn(2, 5, 16))
    assert is_clean(outcome)
    assert next(layer for layer in outcome.layers if layer.name.endswith("out_proj.weight")).executed
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 3))
    assert is_clean(probe(normed))


def test_dropout_of_every_kind_is_off() -> None:
    seen: list[float] = []

    class DropPath(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_prob = 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keep = 1 - self.drop_prob
            return x * torch.bernoulli(torch.full((len(x), 1), keep)) / keep if self.drop_prob else x

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.drop, self.path = nn.Dropout(0.5), DropPath()
            self.rate = 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.dropout(self.path(self.drop(x)), self.rate)
            y = F.dropout(y, p=0.3, training=True)
            z = y[:, None, None]
            z = F.scaled_dot_product_attention(z, z, z, dropout_p=0.9)
            seen.append(float((y - x).abs().max().detach() + (z[:, 0, 0] - x).abs().max().detach()))
            return self.b(torch.relu(self.a(y)))

    held = capture(Noisy(), torch.randn(2, 16))
    assert min(seen) > 0.1
    seen.clear()
    assert held.probe.ran
    assert max(seen) < 1e-6
    assert held.model.path.drop_prob == 0.5
    assert held.model.drop.p == 0.5


# Inputs and outputs ---------------------------------------------------------------------------------------------------


def test_fresh_inputs() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.kinds = nn.Embedding(1000, 4), nn.Embedding(2, 4)

        def forward(self, ids: torch.Tensor, kinds: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (self.words(ids) + self.kinds(kinds) + x) * mask[..., None]

    given = (
        torch.zeros(2, 6, dtype=torch.long),
        torch.ones(2, 6, dtype=torch.long),
        torch.rand(2, 6, 4) * 255,
        torch.ones(2, 6),
    )
    held = capture(Takes(), given)
    batch = fresh_batch(held, 0)
    assert batch is not None
    ids, kinds, x, mask = batch.args
    assert batch.size == 32
    assert ids.shape == (32, 6)
    assert int(ids.max()) > 500
    assert set(kinds.unique().tolist()) == {0, 1}
    assert abs(float(x.mean())) < 0.2
    assert float(x.std()) == pytest.approx(1, abs=0.1)
    assert bool((mask == 1).all())
    large = capture(nn.Flatten(), torch.randn(2, 60_000))
    assert (fresh_batch(large, 0) or batch).size == 8
    uneven = capture(Takes(), (*given[:3], torch.ones(1, 6)))
    assert fresh_batch(uneven, 0) is None


def test_falls_back_to_the_inputs_given() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.log())

    outcome = probe(Picky(), torch.rand(6, 4) + 0.5)
    assert is_clean(outcome)
    assert not outcome.regenerated
    assert outcome.batch == 6


def test_outputs_that_are_no_logits() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 4), nn.Linear(16, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"maps": self.a(x).view(-1, 4, 1, 1), "value": self.b(x).squeeze(1), "count": torch.ones(3)}

    outcome = probe(Two())
    assert is_clean(outcome)
    assert (outcome.loss, outcome.classes) == (None, None)

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).argmax(-1)

    outcome = probe(Decides())
    assert not outcome.ran
    assert "floating-point" in outcome.reason


def test_half_precision_models_are_probed_in_single() -> None:
    model = mlp(3).to(torch.bfloat16)
    held = capture(model, torch.randn(2, 16), dtype="bfloat16")
    assert is_clean(held.probe)
    assert held.model[0].weight.dtype == torch.bfloat16


# Random numbers in eval -----------------------------------------------------------------------------------------------


class Draws(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "torch":
            return F.dropout(x, 0.5)
        if self.kind == "python":
            return x * random.random()
        if self.kind == "numpy":
            return x * float(numpy.random.rand())
        if self.kind == "unused":
            torch.rand(1)
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    ("kind", "generators", "calls", "differ"),
    [
        ("none", (), [], None),
        ("torch", ("torch",), ["dropout"], True),
        ("python", ("python",), [], True),
        ("numpy", ("numpy",), [], True),
        ("unused", ("torch",), ["rand"], False),
    ],
)
def test_generators_in_eval(kind: str, generators: tuple[str, ...], calls: list[str], differ: bool | None) -> None:
    use = capture(Draws(kind), torch.ones(4, 8)).eval_rng
    assert use.used == bool(generators)
    assert use.generators == generators
    assert [node.operation for node in use.nodes] == calls
    assert use.outputs_differ is differ
