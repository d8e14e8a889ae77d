"""Specifications of inputs are read exactly, and inputs are inferred without a trace."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.inputs import InputError, Inputs, Leaf, describe, from_tensors, parse, rebatched
from auditor.dynamic.inputs.guesses import first_weighted
from auditor.dynamic.inputs.infer import from_hooks, infer

# Specifications ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("2x3x32x32", (2, 3, 32, 32), torch.float32),
        ("4", (4,), torch.float32),
        ("scalar", (), torch.float32),
        ("float16:2x3", (2, 3), torch.float16),
        ("half:2x3", (2, 3), torch.float16),
        ("bfloat16:2x3", (2, 3), torch.bfloat16),
        ("double:2x3", (2, 3), torch.float64),
        ("complex64:2x3", (2, 3), torch.complex64),
        ("int:2x16:0-100", (2, 16), torch.int64),
        ("int32:2x16:5", (2, 16), torch.int32),
        ("tokens:2x16:100", (2, 16), torch.int64),
        ("tokens:2x16", (2, 16), torch.int64),
        ("bool:2x16", (2, 16), torch.bool),
    ],
)
def test_one_tensor(text: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = parse(text).make()
    (tensor,) = inputs.args
    assert tuple(tensor.shape) == shape
    assert tensor.dtype == dtype
    assert inputs.source == "given"
    assert parse(inputs.description) == parse(text)


@pytest.mark.parametrize(("text", "low", "high"), [("1000:0-1", 0, 1), ("1000:-2..3", -2, 3), ("1000:-2--1", -2, -1)])
def test_float_ranges(text: str, low: float, high: float) -> None:
    (tensor,) = parse(text).make().args
    assert low <= float(tensor.min())
    assert float(tensor.max()) < high
    assert float(tensor.max() - tensor.min()) > 0.9 * (high - low)


def test_integer_ranges_leave_out_their_end() -> None:
    (tensor,) = parse("int:1000:3-6").make().args
    assert set(tensor.tolist()) == {3, 4, 5}


def test_masks_hide_and_show_something_in_every_row() -> None:
    (mask,) = parse("bool:64x3").make().args
    assert bool(mask.any(dim=1).all())
    assert not bool(mask.all(dim=1).any())


def test_several_inputs() -> None:
    inputs = parse("2x3;tokens:2x5:7").make()
    assert [tuple(tensor.shape) for tensor in inputs.args] == [(2, 3), (2, 5)]
    assert inputs.batch == inputs.batch_axis_size == 2
    assert parse(["2x3", "tokens:2x5:7"]) == parse("2x3;tokens:2x5:7")


def test_keywords_groups_and_values() -> None:
    inputs = parse(
        "2x3,{image=2x3x8x8,ids=tokens:2x4:9},[2x1,2x1],mask=bool:2x16,flag=True,mode='a,b',n=value:3"
    ).make()
    assert set(inputs.args[1]) == {"image", "ids"}
    assert isinstance(inputs.args[2], list)
    assert inputs.kwargs["flag"] is True
    assert inputs.kwargs["mode"] == "a,b"
    assert inputs.kwargs["n"] == 3
    assert inputs.kwargs["mask"].dtype == torch.bool
    assert str(parse(inputs.description)) == inputs.description


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no shape"),
        ("2y3", "'2y3' is not a shape: write sizes joined by `x`"),
        ("flot:2x3", "did you mean 'float'"),
        ("2x3:1-0", "is empty"),
        ("2x3:abc", "is not a range"),
        ("bool:2:0-1", "booleans have no range"),
        ("int:2:0.5-3", "whole bounds"),
        ("2x3:0-1:2", "too many"),
        ("x=2,3", "stands after a named one"),
        ("x=2,x=3", "given twice"),
        ("{2x3}", "need names"),
        ("[2x3", "not closed"),
        ("2x3]", "closes nothing"),
        ("value:oops(", "not closed"),
        ("value:oops", "not a Python literal"),
    ],
)
def test_bad_specifications_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert message in str(caught.value)


def test_same_numbers_for_a_seed_in_every_dtype() -> None:
    first, second = parse("2x3").make(seed=1), parse("2x3").make(seed=1, dtype="float64")
    assert second.args[0].dtype == torch.float64
    assert torch.equal(first.args[0], second.args[0].float())
    assert not torch.equal(first.args[0], parse("2x3").make(seed=2).args[0])


def test_making_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    parse("2x3;tokens:2x3;bool:2x3;2:0-1").make()
    assert torch.equal(before, torch.get_rng_state())


def test_moving_changes_only_floats() -> None:
    moved = parse("2x3;tokens:2x3").make().to("cpu", "bfloat16")
    assert [tensor.dtype for tensor in moved.args] == [torch.bfloat16, torch.int64]


def test_reading_a_specification_imports_no_torch() -> None:
    code = "import sys; from auditor.dynamic.inputs import parse; parse('2x3'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Hooks ---------------------------------------------------------------------------------------------------------------


def test_from_tensors() -> None:
    x = torch.zeros(2, 3)
    assert from_tensors(x).args == (x,)
    assert from_tensors((x, x)).args == (x, x)
    assert from_tensors({"x": x}).kwargs == {"x": x}
    assert from_tensors(((x,), {"y": x})).kwargs == {"y": x}
    assert from_tensors(x).description == "2x3"
    assert from_tensors(x).batch == 2
    assert from_tensors(x).source == "hook"
    with pytest.raises(TypeError, match="not str"):
        from_tensors("x")


def test_description_of_tensors_can_be_pasted() -> None:
    text = describe(
        (torch.zeros(2, 3), torch.tensor([[1, 4]])), {"mask": torch.ones(2, dtype=torch.bool), "flag": True}
    )
    assert text == "2x3;int64:1x2:1-5;mask=bool:2;flag=True"
    parse(text)


class Hooked(nn.Linear):
    def example_inputs(self) -> Any:
        return torch.randn(5, self.in_features)


def test_hook_of_the_model() -> None:
    before = torch.get_rng_state()
    inputs = from_hooks(Hooked(3, 2), None)
    assert inputs is not None
    assert inputs.description == "5x3"
    again = from_hooks(Hooked(3, 2), None)
    assert again is not None
    assert torch.equal(inputs.args[0], again.args[0])
    torch.set_rng_state(before)


def test_lightning_attribute() -> None:
    model: Any = nn.Linear(3, 2)
    model.example_input_array = torch.zeros(7, 3)
    inputs = from_hooks(model, None)
    assert inputs is not None
    assert inputs.batch == 7


def test_a_failing_hook_is_reported() -> None:
    class Failing(nn.Linear):
        def example_inputs(self) -> Any:
            raise KeyError("size")

    with pytest.raises(InputError, match="the hook `example_inputs` failed: KeyError"):
        from_hooks(Failing(3, 2), None)


def test_unsuitable_dummy_inputs_of_a_library_are_passed_over() -> None:
    model: Any = nn.Linear(3, 2)
    model.dummy_inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}
    assert from_hooks(model, None) is None


# Inference -----------------------------------------------------------------------------------------------------------


class LeNet(nn.Module):
    """Only 28×28 pictures of one channel fit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.head(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, x: Any) -> Any:
        return self.head(x.view(-1, 28 * 28))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.positions = nn.Parameter(torch.zeros(1, 65, 16))
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, images: Any) -> Any:
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.head((torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions)[:, 0])


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(12, 8)
        self.words = nn.Embedding(50, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        places = torch.arange(input_ids.shape[1])
        return self.encoder(self.words(input_ids) + self.positions(places))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(7, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0][-1])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, text: Any, lengths: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(self.words(text), lengths, batch_first=True)
        return self.rnn(packed)[1][0]


class Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 8), nn.SiLU())
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Any, t: Any) -> Any:
        return self.conv(x) + self.time(t)[:, :, None, None]


class FromDictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, batch: Any) -> Any:
        return self.words(batch["tokens"]).mean(1) + self.conv(batch["image"]).mean((2, 3))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 4)

    def forward(self, x: Any, edge_index: Any) -> Any:
        source, target = edge_index
        return torch.zeros(len(x), 4).index_add(0, target, self.lin(x)[source])


class Differentiating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, x: Any) -> Any:
        x = x.requires_grad_(True)
        return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(20, 8, 4)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, z: Any) -> Any:
        return self.norm(self.up(z))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(9, 2)
        self.layers = nn.ModuleList([nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 9, 3)])

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(-1))


class Loss(nn.Module):
    def forward(self, inputs: Any, targets: Any) -> Any:
        return F.cross_entropy(inputs, targets)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(24))

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LeNet(), "4x1x28x28"),
        (Flattening(), "4x1x28x28"),
        (VisionTransformer(), "4x3x64x64"),
        (LanguageModel(), "tokens:4x8:50"),
        (Recurrent(), "16x4x7"),
        (Packed(), "tokens:4x16:50;int64:4:16-17"),
        (Diffusion(), "4x3x32x32;4x1:0-1"),
        (FromDictionary(), "{tokens=tokens:4x16:20,image=4x3x32x32}"),
        (Graph(), "16x6;int64:2x40:0-16"),
        (Differentiating(), "4x2"),
        (Generator(), "4x20x1x1"),
        (Loop(), "4x4x16"),
        (Loss(), "4x16;int64:4:0-10"),
        (nn.MSELoss(), "4x16;4x16"),
        (Norm(), "4x16x24"),
        (nn.Bilinear(3, 5, 2), "4x3;4x5"),
        (nn.LazyLinear(3), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inferred(model: nn.Module, expected: str | None) -> None:
    inputs = infer(model)
    assert inputs.source == "inferred"
    if expected is not None:
        assert inputs.description == expected
    assert parse(inputs.description).make().description == inputs.description


def test_batch_of_a_sequence_first_model() -> None:
    inputs = infer(Recurrent())
    assert (inputs.batch, inputs.batch_axis) == (4, 1)
    inputs = infer(LeNet())
    assert (inputs.batch, inputs.batch_axis) == (4, 0)
    assert infer(Graph()).batch_axis is None


def test_inference_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    infer(model)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inference_leaves_lazy_modules_lazy() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    infer(model)
    assert all(nn.parameter.is_lazy(parameter) for parameter in model.parameters())


def test_inference_is_repeatable() -> None:
    first, second = infer(LeNet(), seed=3), infer(LeNet(), seed=3)
    assert torch.equal(first.args[0], second.args[0])


def test_shapes_seen_in_the_file_are_tried_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    assert infer(model, hints=[(1, 3, 50, 40)]).description == "4x3x50x40"
    assert infer(model, hints=[(1, 7, 50, 40)]).description == "4x3x50x40"  # its channels repaired


def test_what_cannot_be_inferred_says_why_and_what_to_write() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            raise RuntimeError("the stars are not right")

    with pytest.raises(InputError, match="the stars are not right") as caught:
        infer(Picky())
    assert "--input" in caught.value.remedy
    assert "called with 4x3" in str(caught.value)


def test_user_code_that_exits_is_one_more_failed_try() -> None:
    class Exiting(nn.Linear):
        def forward(self, x: Any) -> Any:
            raise SystemExit(3)

    with pytest.raises(InputError, match="SystemExit"):
        infer(Exiting(2, 2))


def test_first_weighted() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert first_weighted(nn.Sequential(nn.ReLU(), attention)) is attention
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    assert first_weighted(nn.Sequential(convolution)) is convolution
    assert first_weighted(nn.ReLU()) is None


def test_leaf_prints_as_it_is_read() -> None:
    for leaf in (Leaf("float", (2, 3)), Leaf("int64", (2,), 1.0, 4.0), Leaf("float", (), 0.0, 0.5)):
        assert parse(str(leaf)).args == (leaf,)
    assert isinstance(parse("2x3").make(), Inputs)


def test_a_batch_size_replaces_ours() -> None:
    inputs = parse("tokens:4x16:100;mask=bool:4x16;scale=3x4").make(source="inferred")
    assert inputs.batch is None  # `scale` has no sample axis
    assert rebatched(inputs, 2) is inputs
    inputs = parse("tokens:4x16:100;mask=bool:4x16").make(source="inferred")
    changed = rebatched(inputs, 2)
    assert (changed.description, changed.batch, changed.source) == ("tokens:2x16:100;mask=bool:2x16", 2, "given")
    assert changed.args[0].shape == (2, 16)


RUNS: list[tuple[int, ...]] = []  # not on the model, which is put back as it was


class Attends(nn.Module):
    """Attention over the pixels of images of one size: the square of their number."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(3, 8, 1)
        RUNS.clear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.size:
            raise ValueError(f"images of another size are wanted, not of {x.shape[-1]}")
        if not x.is_meta:
            RUNS.append(tuple(x.shape))
        pixels = self.conv(x).flatten(2)
        return (pixels.transpose(1, 2) @ pixels).softmax(-1).mean(dim=(1, 2))[:, None]


def test_a_guess_that_needs_too_much_memory_is_not_run() -> None:
    model = Attends(224)  # 4 × 50176² numbers: 40 GB
    with pytest.raises(InputError):
        infer(model)
    assert RUNS == []


def test_what_is_affordable_only_for_few_samples_gets_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.dynamic.inputs.infer.CHEAP", 0)
    monkeypatch.setattr("auditor.dynamic.inputs.infer.AFFORDABLE", 10 << 20)  # a sample takes 8 MB
    model = Attends(32)
    assert infer(model).description == "2x3x32x32"
    assert RUNS == [(2, 3, 32, 32)]
