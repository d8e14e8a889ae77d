"""Who constructed and last wrote what, and what nothing wrote."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from auditor.dynamic.build import BuildLog, build


def built(factory: Callable[[], object], seed: int = 0) -> tuple[Any, BuildLog]:
    return build(factory, seed)


def line_of(function: Callable[..., object] | type, text: str) -> int:
    """The line in this file on which `text` stands in the source of `function`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def row_of(log: BuildLog, module: nn.Module) -> int:
    location = log.location_of(module)
    assert location is not None
    assert location.path == __file__
    return location.row


def written(log: BuildLog, parameter: torch.Tensor) -> tuple[str, int]:
    write = log.write_to(parameter)
    assert write is not None
    return write.operation, write.location.row if write.location else 0


class Scaled(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.scale = nn.Parameter(torch.ones(width))


def make_layer(width: int) -> nn.Module:
    return nn.Linear(width, width)  # in a helper


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])  # in a comprehension
        self.helper = make_layer(4)
        self.scaled = Scaled(4)  # a class of ours
        self.body = nn.Sequential(
            nn.Linear(4, 4),  # first of two
            nn.Dropout(0.5),  # second of two
        )
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8)  # torch's own parts
        self.twin = copy.deepcopy(self.helper)


def test_construction_lines() -> None:
    model, log = built(Net)
    comprehension = line_of(Net, "comprehension")
    assert [row_of(log, layer) for layer in model.layers] == [comprehension, comprehension]
    assert row_of(log, model.helper) == line_of(make_layer, "in a helper")
    assert row_of(log, model.scaled) == line_of(Net, "a class of ours")
    assert row_of(log, model.body[0]) == line_of(Net, "first of two")
    assert row_of(log, model.body[1]) == line_of(Net, "second of two")
    assert row_of(log, model.encoder.self_attn.out_proj) == line_of(Net, "torch's own parts")
    assert log.reason == ""


def test_range_of_the_constructing_call() -> None:
    model, log = built(Net)
    location = log.location_of(model.body[1])
    assert location is not None
    source = inspect.getsource(inspect.getmodule(Net)).splitlines()[location.row - 1]  # type: ignore[arg-type]
    assert source[location.column - 1 : location.end_column - 1] == "nn.Dropout(0.5)"


def test_copies_come_from_where_their_original_came_from() -> None:
    model, log = built(Net)
    assert row_of(log, model.twin) == line_of(make_layer, "in a helper")
    assert written(log, model.twin.weight) == written(log, model.helper.weight)

    stacked, log = built(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 3))
    rows = {row_of(log, layer) for layer in stacked.layers}
    assert rows == {line_of(test_copies_come_from_where_their_original_came_from, "TransformerEncoderLayer")}


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.default = nn.Linear(3, 3)  # default
        self.xavier = nn.Linear(3, 3)
        nn.init.xavier_uniform_(self.xavier.weight)  # xavier
        self.xavier.bias.data.zero_()  # bias
        self.assigned = nn.Linear(3, 3)
        self.assigned.weight.data = torch.eye(3)  # assigned
        self.sliced = nn.Linear(3, 3)
        with torch.no_grad():
            self.sliced.weight[...] = 0.5  # sliced
            self.sliced.bias.copy_(torch.ones(3))  # copied
        self.created = nn.Parameter(torch.zeros(3))  # created
        self.padded = nn.Embedding(5, 3, padding_idx=0)  # padded
        self.apply(self.normal)

    def normal(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)  # normal
            module.weight.data[0].zero_()


def test_last_writes() -> None:
    model, log = built(Writes)
    assert written(log, model.default.weight) == ("kaiming_uniform_", line_of(Writes, "# default"))
    assert written(log, model.xavier.weight) == ("xavier_uniform_", line_of(Writes, "# xavier"))
    assert written(log, model.xavier.bias) == ("zero_", line_of(Writes, "# bias"))
    assert written(log, model.assigned.weight) == ("data", line_of(Writes, "# assigned"))
    assert written(log, model.sliced.weight)[1] == line_of(Writes, "# sliced")
    assert written(log, model.sliced.bias) == ("copy_", line_of(Writes, "# copied"))
    assert written(log, model.created) == ("zeros", line_of(Writes, "# created"))


def test_a_padding_row_does_not_hide_the_initialiser() -> None:
    model, log = built(Writes)
    assert written(log, model.padded.weight) == ("normal_", line_of(Writes, "# normal"))


class Uninitialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.empty(3))
        self.legacy = nn.Parameter(torch.Tensor(3, 2))
        self.typed = nn.Parameter(torch.FloatTensor(2))
        self.wide = nn.Parameter(torch.empty(3, dtype=torch.float64))
        self.converted = nn.Parameter(torch.empty(3).to(torch.bfloat16))
        self.scaled = nn.Parameter(torch.empty(3) * 0.02)
        self.tail = nn.Parameter(torch.empty(4))
        self.like = nn.Parameter(torch.empty_like(self.empty))
        nn.init.zeros_(self.tail[:3])
        self.register_buffer("steps", torch.empty(2, dtype=torch.int64))
        self.register_buffer("mean", torch.empty(2))


class Initialised(nn.Module):
    """Legitimate uses of uninitialised memory, and of NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.filled = nn.Parameter(torch.empty(3))
        nn.init.normal_(self.filled)
        self.legacy = nn.Parameter(torch.Tensor(2, 2))
        self.legacy.data.uniform_(-1, 1)
        self.lists = nn.Parameter(torch.Tensor([1.0, 2.0]))
        self.nan = nn.Parameter(torch.full((2,), float("nan")))
        self.computed = nn.Parameter(torch.log(-torch.ones(2)))
        self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(4, 4)))
        self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(4, 4), std=0.02))
        self.recurrent = nn.LSTM(3, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("largest", torch.full((2,), torch.iinfo(torch.int64).max))
        self.register_buffer("flags", torch.empty(2, dtype=torch.bool))
        self.lazy = nn.LazyLinear(3)


def test_uninitialised_parameters_are_named_exactly() -> None:
    model, log = built(Uninitialised)
    expected = {"empty", "legacy", "typed", "wide", "converted", "scaled", "tail", "like"}
    assert set(log.uninitialised) == expected
    assert set(log.uninitialised_buffers) == {"steps", "mean"}
    assert written(log, model.empty)[0] == "empty"


def test_uninitialised_values_are_replaced_so_that_the_model_runs() -> None:
    model, _ = built(Uninitialised)
    for tensor in (*model.parameters(), *model.buffers()):
        assert bool(torch.isfinite(tensor.float()).all())
    assert torch.equal(model.tail[:3], torch.zeros(3))


def test_nothing_initialised_is_accused() -> None:
    model, log = built(Initialised)
    assert log.uninitialised == ()
    assert log.uninitialised_buffers == ()
    assert bool(model.nan.isnan().all())  # theirs, left alone
    assert bool(model.computed.isnan().all())


def test_same_values_as_without_recorders() -> None:
    model, _ = built(Net, seed=7)
    torch.manual_seed(7)
    random.seed(7)
    plain = Net()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_global_state_is_restored() -> None:
    def rude() -> nn.Module:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.rand(3)
        random.random()
        return nn.Linear(2, 2)

    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    init = nn.Module.__init__
    model, _ = built(rude)
    assert next(model.parameters()).dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert nn.Module.__init__ is init
    assert not hasattr(nn.Module, "__deepcopy__")


def test_what_the_constructor_raises_is_raised_as_it_is() -> None:
    def broken() -> nn.Module:
        raise KeyError("width")

    with pytest.raises(KeyError, match="width") as caught:
        build(broken)
    assert caught.value.__context__ is None


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"returned dict, not a torch\.nn\.Module"):
        build(lambda: {})


def test_a_constructor_that_cannot_bear_the_filled_memory_is_built_without() -> None:
    def picky() -> nn.Module:
        if bool(torch.empty(3).isnan().any()):
            raise RuntimeError("NaN in my memory")
        return nn.Linear(2, 2)

    model, log = built(picky)
    assert "NaN in my memory" in log.reason
    assert log.location_of(model) is not None


def test_tied_and_shared_parameters() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    model, log = built(tied)
    assert written(log, model[1].weight) == written(log, model[0].weight)
    assert written(log, model[0].weight)[0] == "normal_"
