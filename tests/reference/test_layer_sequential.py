"""LSUV: unit variance behind every layer, whatever the topology, and a model left alone if that is impossible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from auditor.reference.layer_sequential import lsuv


def spreads(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Standard deviation of the output of each weight layer."""
    found: dict[str, float] = {}
    handles = [
        module.register_forward_hook(lambda m, i, o, path=path: found.update({path: float(o.std())}))
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)  # declared before what runs before it
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.5))
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.up(x + self.body(x))
        return self.head(x.mean((2, 3)))


def test_every_layer_that_runs_has_unit_variance() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(32, 3, 8, 8)
    unused = model.unused.weight.clone()
    reached = lsuv(model, x)
    assert list(reached) == ["stem", "body.1", "up", "head"]
    found = spreads(model.eval(), x)
    for path, std in reached.items():
        assert std == pytest.approx(1.0, abs=0.02)
        assert found[path] == pytest.approx(std, rel=1e-5)
    assert torch.equal(model.unused.weight, unused)
    assert not model.stem.bias.any()


@pytest.mark.parametrize("factor", [0.0, 1e-3, 30.0])
def test_rescues_any_scale(factor: float) -> None:
    torch.manual_seed(1)
    layers = [layer for _ in range(20) for layer in (nn.Linear(32, 32), nn.Tanh())]
    model, x = nn.Sequential(*layers, nn.Linear(32, 10)), torch.randn(64, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    reached = lsuv(model, x)
    assert len(reached) == 21
    assert all(abs(std - 1) <= 0.02 for std in reached.values())


def test_chosen_layers_can_keep_their_directions() -> None:
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(64, 8)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    lsuv(model, x, layers=["2"], orthogonalise=False)
    assert torch.equal(model[0].weight, before[0])
    ratio = model[2].weight / before[2]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    with pytest.raises(KeyError):
        lsuv(model, x, layers=["1"])


def test_modes_and_running_statistics_are_restored() -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(32, 8)
    model[1].eval()
    statistics = [buffer.clone() for buffer in model.buffers()]
    lsuv(model, x)
    lsuv(model.train(), x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), statistics, strict=True))
    assert all(module.training for module in model.modules())
    assert not any(layer._forward_hooks for layer in model)


def test_a_constant_output_is_refused_and_nothing_changes() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for x in (torch.zeros(8, 4), torch.full((8, 4), float("nan"))):
        with pytest.raises(ValueError, match="`0` has standard deviation"):
            lsuv(model, x)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tuples_and_mappings_of_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.linear(left + right)

    torch.manual_seed(5)
    x = torch.randn(32, 4)
    assert lsuv(Sum(), (x, x))["linear"] == pytest.approx(1.0, abs=0.02)
    assert lsuv(Sum(), {"left": x, "right": x})["linear"] == pytest.approx(1.0, abs=0.02)
