"""What layers are for, as the recorded graph shows it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auditor
from auditor.dynamic.capture import capture
from auditor.dynamic.layer_facts import layer_facts
from auditor.reference import LayerUse


def facts(model: nn.Module, *shape: int) -> dict[str, LayerUse]:
    return {use.path: use for use in layer_facts(capture(model, torch.randn(shape)))}


class Block(nn.Module):
    def __init__(self, post_norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            return self.norm(x + self.down(F.gelu(self.up(x))))
        return x + self.down(F.gelu(self.up(self.norm(x))))


def stream(post_norm: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), Block(post_norm), Block(post_norm), nn.Linear(16, 4))


def test_activations_and_head() -> None:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(0.3), nn.Linear(16, 16),
        nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 4),
    )  # fmt: skip
    found = facts(model, 8, 8)
    assert [found[path].activation for path in ("0", "3", "5", "8")] == ["relu", "leaky_relu", "tanh", "linear"]
    assert found["3"].slope == 0.3
    assert [path for path, use in found.items() if use.is_head] == ["8"]


def test_residual_branches_of_a_stream_without_norms_on_it() -> None:
    found = facts(stream(), 8, 8)
    assert [path for path, use in found.items() if use.is_residual_out] == ["1.down", "2.down"]
    assert found["1.up"].activation == "gelu"
    assert not any(use.is_residual_out for use in facts(stream(post_norm=True), 8, 8).values())


def test_a_zero_layer_that_learns_is_exempt() -> None:
    model = stream()
    nn.init.zeros_(model[1].down.weight)
    found = facts(model, 32, 8)
    assert [path for path, use in found.items() if use.exempt] == ["1.down"]
    assert "starts at zero" in found["1.down"].exempt


def test_initialize_in_place() -> None:
    model, x = stream(), torch.randn(32, 8)
    state = torch.get_rng_state()
    done = {entry.parameter: entry for entry in auditor.initialize(model, x, seed=1)}
    assert torch.equal(torch.get_rng_state(), state)
    assert done["1.down.weight"].scheme.endswith("/ √2")
    assert done["1.up.weight"].scheme == "he_normal"
    weights = [parameter.clone() for parameter in model.parameters()]
    auditor.initialize(model, x, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="cannot be recorded"):
        auditor.initialize(model, torch.randn(2, 3))
