"""What a rule sees: modules, parameters, nodes, rungs, and where each comes from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.build import BuildLog, Write
from auditor.dynamic.capture import Capture, LiveInputs, capture
from auditor.finding import Location


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(4, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).mean((2, 3))
        x = F.dropout(x, 0.1)
        return self.head(self.drop(x))


def line_of(cls: type, text: str) -> int:
    lines, first = inspect.getsourcelines(cls)
    return next(first + index for index, line in enumerate(lines) if text in line)


@pytest.fixture
def net() -> Capture:
    torch.manual_seed(0)
    return capture(Net(), torch.randn(2, 3, 8, 8))


def test_modules(net: Capture) -> None:
    assert list(net.modules) == [path for path, _ in net.model.named_modules()]
    conv = net.modules["features.0"]
    assert conv.kind == "torch.nn.Conv2d"
    assert conv.parent == "features"
    assert conv.calls == {"train": 1, "eval": 1}
    assert conv.in_shape["train"] == (2, 3, 8, 8)
    assert conv.out_shape["eval"] == (2, 4, 6, 6)
    assert not net.executed("unused")
    assert net.executed("head")
    assert net.modules[""].kind.endswith("test_capture.Net")


def test_locations_without_a_build_log(net: Capture) -> None:
    assert net.modules["head"].location == Location(__file__, line_of(Net, "self.head ="))
    assert net.modules["features.1"].location == Location(__file__, line_of(Net, "self.features ="))
    assert net.modules[""].location == Location(__file__, line_of(Net, "class Net"))
    assert net.parameters["head.weight"].location == net.modules["head"].location
    assert net.target.name == "Net"
    assert net.target.path == __file__


def test_locations_from_a_build_log() -> None:
    model = Net()
    log = BuildLog(
        modules={id(model.head): Location("user.py", 7)},
        parameters={id(model.head.weight): Write(Location("user.py", 9), "zeros_")},
        uninitialised=("head.bias",),
    )
    held = capture(model, torch.randn(2, 3, 8, 8), build_log=log)
    assert held.modules["head"].location == Location("user.py", 7)
    weight, bias = held.parameters["head.weight"], held.parameters["head.bias"]
    assert (weight.location, weight.written_by, weight.initialised) == (Location("user.py", 9), "zeros_", True)
    assert (bias.location, bias.written_by, bias.initialised) == (Location("user.py", 7), "", False)


def test_nodes(net: Capture) -> None:
    functional, layer = net.calls_to("eval", "torch.nn.functional.dropout")
    assert functional.module == ""
    assert functional.location.row == line_of(Net, "F.dropout")
    assert functional.argument("p", 1, 0.5) == 0.1
    assert functional.argument("training", 2, True) is True
    assert functional.random
    assert layer.module == "drop"
    assert layer.argument("p", 1, 0.5) == 0.25
    assert not layer.random
    assert layer.inputs == (functional,)
    assert functional.users == (layer,)
    (head,) = net.outputs("eval")
    assert head.module == "head"
    assert head.is_output
    assert head.args[1].parameter == "head.weight"
    assert head.shape == (2, 5)
    assert head.dtype == torch.float32
    assert head.stats is not None
    assert [node.parameter for node in net.reads_of("eval", "head.weight")] == ["head.weight"]
    assert net.reads_of("eval", "unused.weight") == []
    assert net.nodes("eval")[0] is net.nodes("eval")[0]


def test_model_and_inputs_stay_as_they_were() -> None:
    model = Net().eval()
    model.drop.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    copy, rng = x.clone(), torch.get_rng_state()
    held = capture(model, x)
    _ = held.probe, held.eval_rng, held.symbolic
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, copy)
    assert [module.training for module in (model, model.drop, model.head)] == [False, True, False]
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_inputs_in_every_form() -> None:
    model = nn.Bilinear(2, 3, 4)
    a, b = torch.randn(5, 2), torch.randn(5, 3)

    @dataclass(frozen=True)
    class Own:
        args: tuple[Any, ...]
        kwargs: dict[str, Any] = field(default_factory=dict)
        description: str = "mine"

    for given in ((a, b), {"input1": a, "input2": b}, LiveInputs((a, b)), LiveInputs((a,), {"input2": b}), Own((a, b))):
        held = capture(model, given)
        assert held.rungs["eval"].name == "record"
    assert held.inputs.description == "mine"


def test_device_and_dtype() -> None:
    held = capture(Net(), torch.randn(2, 3, 8, 8), dtype="float64")
    assert held.model.head.weight.dtype == torch.float64
    assert held.outputs("eval")[0].dtype == torch.float64
    assert held.modules["features.1"].module.num_batches_tracked.dtype == torch.int64


def test_train_only_failure_keeps_its_reason() -> None:
    held = capture(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(1, 3))
    assert held.rungs["train"].name == "none"
    assert "more than 1 value per channel" in held.rungs["train"].reason
    assert held.rungs["eval"].name == "record"
    assert held.nodes("train") == []
    assert held.modules["0"].calls == {"train": 1, "eval": 1}


def test_a_model_that_cannot_run() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise LookupError("no  weather\ntoday")

    held = capture(Broken(), torch.randn(2, 3))
    assert {rung.name for rung in held.rungs.values()} == {"none"}
    reason = held.rungs["eval"].reason
    assert reason.startswith("LookupError: no weather today (")
    assert reason.endswith(f"{__file__}:{line_of(Broken, 'raise')})")
    assert not held.probe.ran
    assert held.probe.reason
    assert not held.eval_rng.used
    assert held.eval_rng.reason
    assert held.calls_to("eval", "torch.relu") == []


def test_a_model_that_fights_the_recorder_is_seen_through_hooks() -> None:
    class Suspicious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.overrides._get_current_function_mode() is not None:
                raise RuntimeError("I am being watched")
            return self.linear(x)

    held = capture(Suspicious(), torch.randn(2, 3))
    assert held.rungs["eval"].name == "hooks"
    assert "being watched" in held.rungs["eval"].reason
    assert held.modules["linear"].calls == {"train": 1, "eval": 1}
    assert held.modules["linear"].out_shape["train"] == (2, 3)
    assert held.graphs == {}


def test_shared_modules_and_tied_parameters() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = self.a
            self.c = nn.Linear(3, 3)
            self.c.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x)))

    held = capture(Shared(), torch.randn(2, 3))
    assert held.modules["a"].aliases == ("b",)
    assert held.modules["a"].calls["eval"] == 2
    assert {"a.weight", "b.weight", "c.weight"} <= set(held.parameters)
    assert held.parameters["c.weight"].tensor is held.parameters["a.weight"].tensor


def test_lazy_layers_are_materialised() -> None:
    held = capture(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), torch.randn(3, 2))
    assert held.rungs["train"].name == "record"
    assert held.parameters["0.weight"].tensor.shape == (4, 2)


def test_symbolic() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert capture(Net(), torch.randn(2, 3, 8, 8)).symbolic.name == "symbolic"
    held = capture(Branches(), torch.randn(2))
    assert held.symbolic.name == "none"
    assert "control flow" in held.symbolic.reason
    assert held.symbolic_graph is None


def test_model_of_torch_layers_alone_has_no_user_line() -> None:
    held = capture(nn.Sequential(nn.Linear(2, 2)), torch.randn(2, 2))
    assert held.modules["0"].location == Location("")
    assert held.nodes("eval")[0].location == Location("")


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_parts_are_seen_and_scripted_functions_are_named() -> None:
    @torch.jit.script
    def gate(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = torch.compile(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(gate(self.inner(x)))

    held = capture(Mixed(), torch.randn(2, 4))
    assert [node.module for node in held.nodes("eval")] == ["inner._orig_mod.0", "head"]
    assert held.rungs["eval"].opaque == held.rungs["train"].opaque != ()
    assert held.probe.ran


def test_functions_under_vmap() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.vmap(lambda row: torch.relu(self.linear(row)))(x)

    held = capture(Mapped(), torch.randn(2, 4))
    assert held.rungs["train"].name == "record"
    assert held.probe.ran
    assert held.probe.layers[0].executed
    assert not held.probe.dead
