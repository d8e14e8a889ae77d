"""What a report shows of a model, held against models whose figures are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.capture import capture
from auditor.dynamic.facts_record import facts_record


def record(model: nn.Module, *inputs: torch.Tensor) -> dict[str, Any]:
    return facts_record(capture(model, inputs))


def by_path(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {layer["path"]: layer for layer in facts["layers"]}


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_scales_and_gradients_of_a_known_chain() -> None:
    facts = record(nn.Sequential(Doubling(), nn.Linear(64, 64), Doubling()), torch.ones(32, 64))
    layers = by_path(facts)
    assert facts["depth"] == ["0", "1", "2"]
    assert layers["0"]["scale"] == layers["0"]["scale_eval"] == pytest.approx(2)
    assert layers["2"]["scale"] == pytest.approx(2 * layers["1"]["scale"])
    assert layers["2"]["gradient"] == pytest.approx(1, abs=0.05)  # N(0, 1) is sent back from the output
    assert layers["1"]["gradient"] == pytest.approx(2 * layers["2"]["gradient"])
    assert layers["0"]["gradient"] is None  # nothing before it learns
    assert layers["1"]["parameters"] == 64 * 65
    assert layers[""]["parameters"] == 0


def test_zeros_shapes_kinds_and_frozen_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 2)
    )
    model[5].requires_grad_(False)
    layers = by_path(record(model, torch.randn(8, 3, 8, 8)))
    assert 0.3 < layers["2"]["zeros"] < 0.7
    assert (layers["0"]["in"], layers["0"]["out"]) == ([8, 3, 8, 8], [8, 4, 6, 6])
    assert (layers["1"]["norm"], layers["4"]["norm"], layers["0"]["norm"]) == ("batch", "layer", None)
    assert (layers["0"]["trainable"], layers["5"]["trainable"]) == (True, False)
    assert layers["0"]["dtype"] == "float32"


def test_batch_norms_count_what_they_average_over() -> None:
    facts = record(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(8, 3, 8, 8))
    (norm,) = facts["batch_norms"]
    assert (norm["batch"], norm["positions"], norm["channels"]) == (8, 36, 4)


def test_dropouts_add_up_along_the_way() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc, self.second = nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.second(self.fc(self.first(x))) + x, 0.1, self.training)

    found = {item["path"]: item for item in record(Net(), torch.randn(8, 8))["dropouts"]}
    assert {path: item["rate"] for path, item in found.items()} == {"first": 0.5, "second": 0.2, "": 0.1}
    assert found["second"]["along"] == pytest.approx(1 - 0.5 * 0.8)
    assert found[""]["along"] == pytest.approx(1 - 0.5 * 0.8 * 0.9)


def test_gap_of_a_dropout_is_its_own_noise() -> None:
    """A dropout of rate p on ones: standard deviation sqrt(p / (1 − p)), mean as in eval mode."""
    gap = record(nn.Dropout(0.2), torch.ones(4096))["gap"]
    assert gap["noise"] == pytest.approx((0.2 / 0.8) ** 0.5 * (7 / 8) ** 0.5, rel=0.05)  # of 8 passes, uncorrected
    assert gap["shift"] == pytest.approx(0.5 / 8**0.5, rel=0.1)
    still = record(nn.Linear(4, 4), torch.randn(4, 4))["gap"]
    assert (still["passes"], still["noise"], still["shift"]) == (1, 0.0, 0.0)


def test_a_model_that_trains_in_no_way_says_why() -> None:
    facts = record(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(1, 4))
    assert "more than 1 value" in facts["reasons"]["train"]
    assert "reason" in facts["gap"]
    assert by_path(facts)["0"]["scale"] is None
    assert by_path(facts)["0"]["scale_eval"] is not None


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    held = capture(model, torch.randn(8, 4))
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    first = facts_record(held)
    assert facts_record(held) == first
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
