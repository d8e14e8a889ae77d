"""Weights that take no memory until their values are asked for, and are then what a real construction gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from auditor.dynamic.deferred import Deferral, ShapesOnly

SIZE = 100  # squared: more elements than are made at once


def made(make: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Deferral]:
    with Deferral() as deferral:
        tensor = make()
    return tensor, deferral


def empty() -> nn.Parameter:
    return nn.Parameter(torch.empty(SIZE, SIZE))


def scaled() -> nn.Parameter:
    weight = nn.init.normal_(empty(), std=0.5)
    with torch.no_grad():
        weight.mul_(0.1).add_(2.0)
    return weight


def cast() -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(empty(), std=0.02).detach().to(torch.bfloat16))


def assigned() -> nn.Parameter:
    weight = empty()
    weight.data = torch.randn(SIZE, SIZE) * 0.02
    return weight


def padded() -> nn.Parameter:
    weight = nn.init.normal_(empty(), std=0.02)
    with torch.no_grad():
        weight[0].zero_()
    return weight


@pytest.mark.parametrize(
    ("make", "kind", "mean", "std"),
    [
        (lambda: nn.Linear(SIZE, SIZE).weight, "uniform", 0.0, 1 / math.sqrt(3 * SIZE)),
        (lambda: nn.Embedding(SIZE, SIZE).weight, "normal", 0.0, 1.0),
        (lambda: nn.init.trunc_normal_(empty(), std=0.02), "normal", 0.0, 0.02),
        (lambda: nn.init.trunc_normal_(empty(), std=1.0, a=-1.0, b=1.0), "normal", 0.0, 0.5396),
        (lambda: nn.init.kaiming_normal_(empty()), "normal", 0.0, math.sqrt(2 / SIZE)),
        (lambda: nn.init.constant_(empty(), 0.3), "constant", 0.3, 0.0),
        (lambda: nn.Parameter(torch.zeros(SIZE, SIZE)), "constant", 0.0, 0.0),
        (lambda: nn.Parameter(torch.full((SIZE, SIZE), 2.0)), "constant", 2.0, 0.0),
        (lambda: nn.Parameter(torch.randn(SIZE, SIZE) / 4), "normal", 0.0, 0.25),
        (scaled, "normal", 2.0, 0.05),
        (cast, "normal", 0.0, 0.02),
        (assigned, "normal", 0.0, 0.02),
        (padded, "normal", 0.0, 0.02),
        (empty, "empty", 0.0, 0.0),
    ],
)
def test_closed_form_agrees_with_replay(make: Callable[[], torch.Tensor], kind: str, mean: float, std: float) -> None:
    tensor, deferral = made(make)
    assert tensor.is_meta
    fill = deferral.fill_of(tensor)
    assert fill is not None
    assert (fill.kind, round(fill.mean, 6), round(fill.std, 4)) == (kind, mean, round(std, 4))
    if kind == "empty":
        assert fill.sample((2, 2)).isnan().all()
        return
    values, sample = deferral.values(tensor).float(), fill.sample((SIZE, SIZE))
    for drawn in (values, sample):
        assert float(drawn.mean()) == pytest.approx(mean, abs=5 * std / SIZE + 2e-3 * std + 1e-7)
        assert float(drawn.std()) == pytest.approx(std, rel=0.05, abs=1e-7)


def orthogonal() -> nn.Parameter:
    return nn.init.orthogonal_(empty())


def test_initialisers_without_closed_form_are_replayed() -> None:
    tensor, deferral = made(orthogonal)
    assert deferral.fill_of(tensor) is None
    values = deferral.values(tensor)
    assert torch.allclose(values @ values.T, torch.eye(SIZE), atol=1e-5)


def test_a_copy_has_the_values_of_its_original_and_another_draw_has_not() -> None:
    with Deferral() as deferral:
        first, other = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        twin = copy.deepcopy(first)
    assert torch.equal(deferral.values(first.weight), deferral.values(twin.weight))
    assert not torch.equal(deferral.values(first.weight), deferral.values(other.weight))
    fills = [deferral.fill_of(layer.weight) for layer in (first, twin, other)]
    samples = [fill.sample((4, 4)) for fill in fills if fill is not None]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    assert deferral.signature(first.weight) == deferral.signature(other.weight)


def test_a_large_part_that_is_written_leaves_no_closed_form() -> None:
    def halves() -> nn.Parameter:
        weight = nn.init.normal_(empty())
        with torch.no_grad():
            weight[: SIZE // 2].zero_()
        return weight

    tensor, deferral = made(halves)
    fill = deferral.fill_of(tensor)
    assert fill is None or fill.kind != "normal"
    values = deferral.values(tensor)
    assert not values[: SIZE // 2].any()
    assert values[SIZE // 2 :].all()


def test_small_tensors_stay_real_so_that_constructors_can_read_them() -> None:
    with Deferral():
        rates = [rate.item() for rate in torch.linspace(0, 0.1, 12)]
        small = torch.zeros(8)
    assert len(rates) == 12
    assert not small.is_meta


def test_initialisers_are_put_back() -> None:
    before = nn.init.orthogonal_
    with Deferral():
        assert nn.init.orthogonal_ is not before
    assert nn.init.orthogonal_ is before


def test_shapes_only_runs_a_real_model_without_touching_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 16, 16))
    before = copy.deepcopy(model.state_dict())
    with ShapesOnly():
        out = model(torch.empty(4096, 3, 16, 16, device="meta"))
    assert out.is_meta
    assert out.shape == (4096, 2)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "num_batches" not in name)
