"""Recorded graphs are well-formed, point at the user's lines, and run again to the same outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.names import class_name, function_name, operation
from auditor.dynamic.record import Recording, Replay, record, stats_of, tensors_in
from auditor.dynamic.state import preserved, seed_all


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return self.head(self.drop(x.mean((2, 3))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x.flatten(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


class Structured(nn.Module):
    """Keyword arguments, some left out; a dataclass holding a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 2.0) -> dict[str, Any]:
        hidden = self.a(x) * scale
        if mask is not None:
            hidden = hidden.masked_fill(mask, 0.0)
        return {"out": Output(self.b(hidden), (hidden, x.T)), "count": 3}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.tanh(self.layer(x)))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x).clone()
        y[:, 0] = x[:, 1]
        y += 1
        y.mul_(2).clamp_(min=0)
        y[x > 0] = 0.5
        self.count.add_(1)
        y.data = y.data / 2
        return y * self.count


class Experts(nn.Module):
    """Top-1 routing: which experts run depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, choice = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = choice == index
            if chosen.any():
                out[chosen] = expert(x[chosen]) * weight[chosen, None]
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(self.embed(ids))
        return self.head(hidden)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8).gather(1, index).abs()


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return -grad


class CustomFunction(nn.Module):
    """Both ways of calling: `Reversal.apply`, and the method bound at import."""

    bound = Reversal.apply

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Reversal.apply(self.linear(x)) + CustomFunction.bound(x)


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(x.shape) + torch.arange(x.shape[1])


class Unregistered(nn.Module):
    """Tensors and layers where torch does not look for them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = [torch.ones(4)]
        self.hidden = [nn.Linear(4, 4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Dropout(0.5)(self.hidden[0](x)) * self.table[0]


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.utils.checkpoint.checkpoint(self.linear, x, use_reentrant=False)
        return torch.utils.checkpoint.checkpoint(self.linear, x.requires_grad_(), use_reentrant=True)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def whole(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)), (floats(3, 4),), {}),
    "conv": (ConvNet, (floats(2, 3, 6, 6),), {}),
    "residual": (Residual, (floats(2, 3, 6, 6),), {}),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        (floats(2, 5, 8),),
        {},
    ),
    "lstm": (lambda: nn.LSTM(4, 6, num_layers=2, dropout=0.3), (floats(5, 2, 4),), {}),
    "gru cell": (lambda: nn.GRUCell(4, 6), (floats(2, 4), floats(2, 6)), {}),
    "attention": (Attention, (floats(2, 5, 8),), {}),
    "structured": (Structured, (floats(4, 4),), {"mask": floats(4, 4) > 0}),
    "optional argument": (Structured, (), {"x": floats(4, 4), "scale": 0.5}),
    "shared": (Shared, (floats(2, 4),), {}),
    "in place": (InPlace, (floats(3, 4),), {}),
    "experts": (Experts, (floats(6, 4),), {}),
    "tied": (Tied, (whole(11, 2, 5),), {}),
    "complex": (Spectrum, (floats(2, 8), whole(8, 2, 3)), {}),
    "custom function": (CustomFunction, (floats(2, 4),), {}),
    "noise": (Noise, (floats(2, 4),), {}),
    "unregistered": (Unregistered, (floats(2, 4),), {}),
    "checkpoint": (Checkpointed, (floats(2, 4),), {}),
}


def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Recording:
    with preserved(model), torch.set_grad_enabled(training):
        model.train(training)
        seed_all(0)
        return record(model, args, kwargs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_graph_lints_and_runs_again_to_the_same_outputs(name: str, training: bool) -> None:
    seed_all(1)
    build, args, kwargs = MODELS[name]
    model = build()
    recording = run(model, args, kwargs, training)
    recording.graph.lint()
    model.train(training)
    with preserved(model), torch.set_grad_enabled(training):
        seed_all(0)
        expected = tensors_in(model(*args, **kwargs))
    with preserved(model), torch.set_grad_enabled(training):
        seed_all(0)
        again = Replay(model, recording).run(*tensors_in((args, kwargs)))
    assert len(again) == len(expected)
    for new, old in zip(again, expected, strict=True):
        torch.testing.assert_close(new, old)  # torch's fused transformer kernels round differently


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer", "attention", "tied", "in place"])
def test_graph_runs_on_new_inputs(name: str) -> None:
    seed_all(1)
    build, args, kwargs = MODELS[name]
    model = build()
    recording = run(model, args, kwargs, False)
    other = tuple(a.flip(0) for a in args)
    model.eval()
    with preserved(model), torch.no_grad():
        expected = tensors_in(model(*other, **kwargs))
    with preserved(model), torch.no_grad():
        again = Replay(model, recording).run(*tensors_in((other, kwargs)))
    for new, old in zip(again, expected, strict=True):
        torch.testing.assert_close(new, old)  # torch's fused transformer kernels round differently


def line_of(cls: type, text: str) -> int:
    lines, first = inspect.getsourcelines(cls)
    return next(first + index for index, line in enumerate(lines) if text in line)


def test_nodes_know_module_line_shape_and_figures() -> None:
    recording = run(ConvNet(), (floats(2, 3, 6, 6),), {}, True)
    nodes = {node.meta.get("function"): node for node in recording.graph.nodes}
    conv = nodes["torch.nn.functional.conv2d"]
    assert conv.meta["fqn"] == "conv"
    assert conv.meta["line"] == (__file__, line_of(ConvNet, "self.norm(self.conv(x))"))
    assert conv.meta["shape"] == (2, 8, 4, 4)
    assert conv.meta["dtype"] == torch.float32
    relu = nodes["torch.nn.functional.relu"]
    assert relu.meta["fqn"] == ""
    assert 0.3 < relu.meta["stats"].zeros < 0.7
    assert nodes["torch.nn.functional.dropout"].meta["random"]
    assert not conv.meta["random"]
    assert recording.moved == ("torch",)


def test_eval_dropout_stands_between_its_input_and_its_user() -> None:
    recording = run(ConvNet(), (floats(2, 3, 6, 6),), {}, False)
    head = next(node for node in recording.graph.nodes if node.meta.get("fqn") == "head" and node.op == "call_function")
    assert head.args[0].meta["function"] == "torch.nn.functional.dropout"
    assert recording.moved == ()


def test_in_place_results_carry_the_data_on() -> None:
    recording = run(InPlace(), (floats(3, 4),), {}, True)
    functions = [node.meta["function"] for node in recording.graph.nodes if node.op == "call_function"]
    assert functions.count("torch.Tensor.__setitem__") == 2
    clamp = next(node for node in recording.graph.nodes if node.meta.get("function") == "torch.Tensor.clamp_")
    assert clamp.args[0].meta["function"] == "torch.Tensor.mul_"
    assert [operation(user.meta["function"]) for user in clamp.users] == ["setitem"]


def test_custom_function_is_one_node() -> None:
    recording = run(CustomFunction(), (floats(2, 4),), {}, True)
    names = [node.meta["function"] for node in recording.graph.nodes if node.op == "call_function"]
    assert [name.rpartition("test_record.")[2] for name in names] == [
        "torch.nn.functional.linear",
        "Reversal.apply",
        "torch.Tensor.view_as",
        "torch.Tensor.add",
    ]
    assert torch.autograd.Function.__dict__["apply"].__func__.__module__ == "torch.autograd.function"


def test_strays_are_seen() -> None:
    recording = run(Unregistered(), (floats(2, 4),), {}, True)
    strays = {stray.kind: stray for stray in recording.watch.strays}
    assert strays["torch.nn.Dropout"].built_in_forward
    assert not strays["torch.nn.Linear"].built_in_forward
    assert strays["torch.nn.Linear"].parameters == 2
    assert strays["torch.nn.Dropout"].location.row == line_of(Unregistered, "nn.Dropout")


def test_autograd_works_through_the_recorder() -> None:
    model, held = ConvNet(), []

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.inner(x)
            held.append(out)
            return out

    run(Wrapper(), (floats(2, 3, 6, 6),), {}, True)
    held[0].sum().backward()
    assert model.conv.weight.grad is not None


def test_intermediate_tensors_are_not_kept_alive() -> None:
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    peak: list[int] = []

    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(10):
                x = x * 2
                alive.append(weakref.ref(x))
                peak.append(sum(reference() is not None for reference in alive))
            return x

    recording = run(Chain(), (floats(2, 2),), {}, False)
    assert max(peak) <= 2
    assert recording.constants == {}


def test_the_module_stack_survives_exceptions() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails, self.linear = nn.Sequential(Fails()), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                x = self.fails(x)
            except ValueError:
                x = x * 2
            return self.linear(x)

    recording = run(Catches(), (floats(2, 4),), {}, True)
    paths = [node.meta["fqn"] for node in recording.graph.nodes if node.op == "call_function"]
    assert paths == ["", "linear"]


def test_a_failing_model_leaves_nothing_behind() -> None:
    before = dict(torch.nn.modules.module._global_forward_hooks)
    apply = torch.autograd.Function.__dict__["apply"]
    with pytest.raises(RuntimeError):
        record(nn.Linear(3, 4), (floats(2, 5),), {})
    assert dict(torch.nn.modules.module._global_forward_hooks) == before
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert torch.overrides._get_current_function_mode_stack() == []


def test_scripted_modules_are_opaque_leaves() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) * 2

    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(Inner()), nn.Linear(4, 2))
    recording = run(model, (floats(2, 4),), {}, False)
    leaf = next(node for node in recording.graph.nodes if node.op == "call_module")
    assert leaf.target == "1"
    assert recording.opaque == ("1 is scripted: its inside was not seen",)
    with torch.no_grad():
        assert torch.equal(Replay(model, recording).run(floats(2, 4))[0], model(floats(2, 4)))


def test_stats() -> None:
    stats = stats_of(torch.tensor([0.0, 3.0, 0.0, 5.0]))
    assert stats is not None
    assert stats.mean == 2.0
    assert stats.zeros == 0.5
    assert stats.rms == pytest.approx((34 / 4) ** 0.5)
    assert stats.std == pytest.approx((34 / 4 - 4) ** 0.5)
    far = stats_of(torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 100)
    assert far is not None
    assert far.std == pytest.approx(1e-3, rel=0.1)
    half = stats_of(torch.full((100_000,), 100.0, dtype=torch.float16))
    assert half is not None
    assert half.rms == pytest.approx(100.0)
    nan = stats_of(torch.tensor([float("nan"), 1.0]))
    assert nan is not None
    assert nan.rms != nan.rms
    assert stats_of(torch.tensor([1, 2])) is None
    assert stats_of(torch.empty(0)) is None


@pytest.mark.parametrize(
    ("function", "name", "short"),
    [
        (F.dropout, "torch.nn.functional.dropout", "dropout"),
        (F.linear, "torch.nn.functional.linear", "linear"),
        (F.scaled_dot_product_attention, "torch.nn.functional.scaled_dot_product_attention", None),
        (torch.Tensor.mul, "torch.Tensor.mul", "mul"),
        (torch.Tensor.add_, "torch.Tensor.add_", "add"),
        (torch.Tensor.__rsub__, "torch.Tensor.__rsub__", "sub"),
        (torch.relu, "torch.relu", "relu"),
        (torch.einsum, "torch.einsum", "einsum"),
        (torch.conv2d, "torch.nn.functional.conv2d", "conv2d"),
        (torch.linalg.norm, "torch.linalg.norm", "norm"),
        (torch.Tensor.T.__get__, "torch.Tensor.T", "T"),
    ],
)
def test_function_names(function: Callable[..., Any], name: str, short: str | None) -> None:
    assert function_name(function) == name
    assert short is None or operation(name) == short


def test_class_names() -> None:
    assert class_name(nn.Dropout) == "torch.nn.Dropout"
    assert class_name(nn.modules.linear.NonDynamicallyQuantizableLinear).endswith("NonDynamicallyQuantizableLinear")
    assert class_name(ConvNet).endswith("test_record.ConvNet")
