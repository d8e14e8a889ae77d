"""`preserved` puts a model and the process back bit for bit."""

from __future__ import annotations

import os
import random
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from auditor.dynamic.state import RandomState, Switches, preserved, process_restored, seed_all


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.4)
        self.plain = torch.arange(3.0)
        self.linear.bias.requires_grad_(False)
        self.linear.weight.grad = torch.full((3, 3), 0.5)
        with torch.no_grad():
            self.linear.weight[0, 0] = float("nan")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.linear(x)))


def bits(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().numpy().tobytes()


def everything(model: Model) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers(), model.plain]
    return [
        [
            (id(t), t.dtype, t.requires_grad, bits(t), id(t.grad) if t.grad is not None else 0, bits(t.grad))
            for t in tensors
        ],
        [(m.training, sorted(vars(m)), list(m._buffers), list(m._modules)) for m in model.modules()],
        model.drop.p,
        [torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()],
        [torch.is_grad_enabled(), torch.get_default_dtype()],
    ]


def disturb(model: Model) -> None:
    model.eval()
    model.drop.train()
    model.drop.p = 0.0
    model.cache = torch.ones(2)
    model.extra = nn.Linear(2, 2)
    model.norm.running_mean = torch.full((3,), 9.0)
    model.plain.add_(1)
    with torch.no_grad():
        model.linear.weight.mul_(2).nan_to_num_()
        model.linear.weight.grad.zero_()
        model.linear.bias.data = torch.zeros(5)
    model.linear.bias.requires_grad_(True)
    model.linear.bias.grad = torch.ones(5)
    model.half()
    torch.randn(3), random.random(), numpy.random.rand()
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)


def test_everything_comes_back() -> None:
    model = Model()
    before = everything(model)
    with preserved(model):
        disturb(model)
    assert everything(model) == before


def test_also_after_an_exception() -> None:
    model = Model()
    before = everything(model)

    def fail() -> None:
        with preserved(model):
            disturb(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert everything(model) == before


def test_running_statistics_and_gradients_of_a_step_come_back() -> None:
    model = Model()
    with torch.no_grad():
        model.linear.weight.nan_to_num_()
    before = everything(model)
    with preserved(model):
        model(torch.randn(4, 3)).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        assert int(model.norm.num_batches_tracked) == 1
    assert everything(model) == before


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with preserved(model), torch.no_grad():
        model[0].weight.zero_()
        model[1].weight = nn.Parameter(torch.ones(2, 2))
    assert model[1].weight is model[0].weight
    assert float(model[0].weight.detach().abs().sum()) > 0


def test_a_graph_built_before_can_still_be_walked_back() -> None:
    model = nn.Linear(2, 2)
    loss = model(torch.ones(1, 2, requires_grad=True)).square().sum()
    with preserved(model), torch.no_grad():
        model.weight.data.mul_(1)
    loss.backward()
    assert model.weight.grad is not None


def test_lazy_and_scripted_modules() -> None:
    model = nn.Sequential(nn.LazyLinear(3), torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))))
    model[1].eval()
    with preserved(model):
        model.train()
    assert model[0].training
    assert not model[1].training


def test_random_state() -> None:
    seed_all(3)
    state = RandomState.now()
    assert state.changed() == ()
    torch.randn(1)
    assert state.changed() == ("torch",)
    random.random()
    numpy.random.rand()
    assert state.changed() == ("torch", "python", "numpy")
    state.restore()
    assert state.changed() == ()


def test_layers_in_lists_caches_and_hooks() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.BatchNorm1d(2)]
            self.cache: dict[str, torch.Tensor] = {"a": torch.zeros(2)}

    model = Holder()
    with preserved(model):
        model.layers[0](torch.randn(4, 2))
        model.layers[0].eval()
        model.layers.append(nn.Linear(1, 1))
        model.cache["a"].add_(1)
        model.cache["b"] = torch.ones(1)
        model.register_forward_hook(lambda module, args, output: None)
    assert len(model.layers) == 1
    assert model.layers[0].training
    assert int(model.layers[0].num_batches_tracked) == 0
    assert list(model.cache) == ["a"]
    assert float(model.cache["a"].sum()) == 0
    assert not model._forward_hooks


def turn_everything() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.autograd.set_detect_anomaly(True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.manual_seed(99)


def test_switches_of_torch_come_back() -> None:
    model, before, generators = Model(), Switches.now(), RandomState.now()

    def turn() -> None:
        with preserved(model):
            turn_everything()
            now = Switches.now()
            assert all(getattr(now, field.name) != getattr(before, field.name) for field in fields(now))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        turn()
    assert Switches.now() == before
    assert generators.changed() == ()


def test_the_process_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    before, folder, searched, filters = Switches.now(), os.getcwd(), sys.path[:], warnings.filters[:]

    def turn() -> None:
        with process_restored():
            turn_everything()
            os.chdir(tmp_path)
            os.environ.update(KEPT="2", NEW="1")
            sys.path.clear()
            warnings.simplefilter("error")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        turn()
    assert (Switches.now(), os.getcwd(), sys.path, warnings.filters) == (before, folder, searched, filters)
    assert (os.environ["KEPT"], os.environ.get("NEW")) == ("1", None)
