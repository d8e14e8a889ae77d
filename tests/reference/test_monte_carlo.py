"""Monte-Carlo dropout: the figures against exact ones, and the state of the model before and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.reference.dropout_layers import ClassicalDropout, DropConnectLinear, StochasticDepth
from auditor.reference.ensemble import enumerate_subnetworks
from auditor.reference.monte_carlo import bytes_per_sample, dropout_active, is_dropout, mc_dropout
from tests.reference.chance import DEVICES, Z


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("device", DEVICES)
def test_mean_and_variance_are_those_of_all_subnetworks(device: str) -> None:
    model, x, samples = classifier().to(device), batch(3, 4).to(device), 2000
    exact = enumerate_subnetworks(model, x, classifier=True)
    result = mc_dropout(model, x, samples=samples, classifier="softmax", seed=2)
    error = (result.mean - exact.arithmetic) / (exact.variance / samples).sqrt()
    assert float(error.abs().max()) < Z
    # Bounded in [0, 1], so that the fourth moment is at most the variance
    spread = (result.variance - exact.variance).abs() / (exact.variance / samples).sqrt()
    assert float(spread.max()) < Z
    assert result.samples == samples


def test_entropy_and_mutual_information_are_those_of_the_passes() -> None:
    model, x = classifier(), batch(5, 4)
    result = mc_dropout(model, x, samples=20, classifier="softmax", seed=3)
    torch.manual_seed(3)
    with torch.no_grad(), dropout_active(model):
        passes = torch.stack([model(x).softmax(-1) for _ in range(20)]).double()

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(-1)

    total = entropy(passes.mean(0))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(result.mean, passes.mean(0).float(), **close)
    torch.testing.assert_close(result.variance, passes.var(0).float(), **close)
    torch.testing.assert_close(result.entropy, total.float(), **close)
    torch.testing.assert_close(result.mutual_information, (total - entropy(passes).mean(0)).float(), **close)
    assert result.entropy.shape == result.mutual_information.shape == (5,)


def test_sigmoid_outputs_are_classified_one_by_one() -> None:
    model, x = classifier(), batch(5, 4)
    result = mc_dropout(model, x, samples=10, classifier="sigmoid", seed=3)
    binary = -(result.mean * result.mean.log() + (1 - result.mean) * (1 - result.mean).log())
    torch.testing.assert_close(result.entropy, binary)
    assert result.mutual_information.shape == (5, 3)
    assert bool((result.mutual_information > 0).all())
    assert bool((result.mutual_information < result.entropy).all())


def test_only_dropout_is_active_and_everything_is_restored() -> None:
    model = classifier().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[list[bool]] = []
    model.register_forward_hook(lambda *_: seen.append([layer.training for layer in model]))
    mc_dropout(model, batch(2, 4), samples=2)
    assert seen == [[False, False, False, True, False]] * 2
    assert [layer.training for layer in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_modes_are_restored_after_an_exception() -> None:
    model = classifier().eval()
    with pytest.raises(RuntimeError):
        mc_dropout(model, batch(2, 5), samples=2)
    assert not any(module.training for module in model.modules())
    model.train()
    model[3].eval()
    with pytest.raises(ZeroDivisionError), dropout_active(model):
        _ = 1 / 0
    assert [layer.training for layer in model] == [True, True, True, False, True]
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_users_own_train_is_not_called() -> None:
    class Merging(nn.Sequential):
        def train(self, mode: bool = True) -> Merging:
            raise AssertionError("merges weights, say")

    mc_dropout(Merging(nn.Dropout(0.5)), batch(2, 4), samples=2)


def test_generators_are_left_as_found_and_results_repeat() -> None:
    model, x = classifier(), batch(2, 4)
    state = torch.get_rng_state()
    first, second = (mc_dropout(model, x, samples=5, seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.mean, mc_dropout(model, x, samples=5, seed=5).mean)


def test_pieces_of_the_batch_stay_below_the_limit() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Dropout(0.5), nn.Linear(8, 2, bias=False)), batch(10, 4)
    sizes: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    calls: list[tuple[int, int]] = []
    one = bytes_per_sample(model.eval(), x)
    assert one == 4 * (8 + 2)  # of a dropout that is off there is nothing
    with dropout_active(model):
        one = bytes_per_sample(model, x)
    sizes.clear()
    result = mc_dropout(
        model, x, samples=3, classifier="softmax", memory_limit=4 * one, progress=lambda *step: calls.append(step)
    )
    assert sizes == [1, *[4] * 6, *[2] * 3]  # the first measures
    assert calls == [(step + 1, 9) for step in range(9)]
    assert result.mean.shape == result.variance.shape == (10, 2)
    assert result.entropy.shape == (10,)
    assert {mc_dropout(model, x, samples=2, memory_limit=1).mean.shape} == {(10, 2)}


def test_inputs_and_outputs_of_any_form() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"logits": self.drop(left + right) * scale}

    x = batch(6, 4)
    pick: Any = {"output": lambda result: result["logits"], "seed": 1, "samples": 4}
    positional = mc_dropout(Named(), (x, x, 2.0), **pick)
    named = mc_dropout(Named(), {"left": x, "right": x, "scale": 2.0}, **pick)
    assert torch.equal(positional.mean, named.mean)
    assert mc_dropout(Named(), {"left": x, "right": x}, memory_limit=1, **pick).mean.shape == (6, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_averages_are_at_least_single_precision(dtype: torch.dtype) -> None:
    result = mc_dropout(nn.Dropout(0.5), batch(2, 4).to(dtype), samples=4)
    assert result.mean.dtype == result.variance.dtype == torch.promote_types(dtype, torch.float32)


def test_a_fused_transformer_layer_drops_too() -> None:
    # In evaluation torch replaces the whole layer by one kernel, without the dropout that was switched on inside.
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True).eval()
    assert float(mc_dropout(layer, batch(2, 3, 8), samples=4).variance.min()) > 0


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob


class DropdownEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("module", "answer"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.Dropout2d(0.1), True),
        (nn.AlphaDropout(0.1), True),
        (ClassicalDropout(0.1), True),
        (StochasticDepth(0.1), True),
        (DropConnectLinear(2, 2, p=0.1), True),
        (DropPath(0.1), True),
        (DropPath(0.0), False),
        (DropdownEncoder(), False),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), True),
        (nn.MultiheadAttention(2, 1, dropout=0.1), True),
        (nn.MultiheadAttention(2, 1), False),
        (nn.BatchNorm1d(2), False),
        (torch.jit.script(nn.Dropout(0.1)), True),
    ],
)
def test_is_dropout(module: nn.Module, answer: bool) -> None:
    assert is_dropout("", module) is answer


def test_own_choice_of_active_modules() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    with pytest.raises(ValueError, match="no dropout"):
        mc_dropout(Gated(), batch(2, 4))
    assert float(mc_dropout(Gated(), batch(2, 4), active=lambda path, module: True).variance.min()) > 0


def test_refuses_what_has_no_variance() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        mc_dropout(classifier(), batch(2, 4), samples=1)
    with pytest.raises(ValueError, match="no dropout"):
        mc_dropout(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)), batch(2, 4))
