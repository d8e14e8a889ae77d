"""Rewrites, and mutants of them: every mutant must be refused, by a claim or because a run finds something in it.

`python -m tests.fix.test_mutants` prints the share that is.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditor.dynamic.capture import as_inputs
from auditor.fix.memory import Step, _source, _Work
from auditor.settings import Settings
from auditor.static.check import chosen_rules

WIDTH = 16
Spoil = Callable[[nn.Module], None]


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# Models ---------------------------------------------------------------------------------------------------------------


class Rms(nn.Module):
    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset, self.eps = offset, 1e-6
        self.weight = nn.Parameter(torch.full((WIDTH,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.offset + self.weight)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * self.weight + self.bias


class Normed(nn.Module):
    """Tokens, normalised between two layers."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(8, WIDTH)
        self.norm = norm
        self.second = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.drop = nn.Dropout(0.25)
        self.again = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.drop(self.norm(self.conv(x)).relu()))
        return self.head(x.relu().mean((2, 3)))


def before_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 64),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )


class Deep(nn.Module):
    def __init__(self, std: float) -> None:
        super().__init__()
        layers = [part for _ in range(8) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(WIDTH, 4))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Copies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(8, 8)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.rate = 0.25

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate)
        return self.out(y.transpose(1, 2).flatten(2))


# Mutants: what is done to the model after the right rewrite ----------------------------------------------------------


def at(path: str, spoil: Callable[[Any], None]) -> Spoil:
    return lambda model: spoil(model.get_submodule(path))


def swap(path: str, make: Callable[[Any], nn.Module]) -> Spoil:
    def spoil(model: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = make(model.get_submodule(path))

    return spoil


def set_(**values: Any) -> Callable[[Any], None]:
    return lambda layer: vars(layer).update(values)


def new_parameter(name: str, value: float) -> Callable[[Any], None]:
    def spoil(layer: Any) -> None:
        layer._parameters[name] = nn.Parameter(torch.full_like(layer._parameters[name], value))

    return spoil


class Through(nn.Module):
    """A layer, and something done to what comes out of it; same names in the state dict as the layer's."""

    def __init__(self, layer: nn.Module, change: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self._parameters, self._buffers, self.change = layer._parameters, layer._buffers, change
        self.held = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x, self.held[0])


def axis_one(x: Tensor, layer: nn.Module) -> Tensor:
    scale = x.square().mean(1, keepdim=True)
    return x * torch.rsqrt(scale + 1e-6) * layer._parameters["weight"]


def through(change: Callable[[Tensor, nn.Module], Tensor]) -> Spoil:
    return swap("norm", lambda layer: Through(layer, change))


def scaled(factor: float) -> Spoil:
    return lambda model: [p.data.mul_(factor) for p in model.parameters() if p.dim() > 1] and None


def filled(value: float) -> Spoil:
    return lambda model: [p.data.fill_(value) for p in model.parameters() if p.dim() > 1] and None


def equal_rows(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(parameter.data[:1].expand_as(parameter.data))


def one_wide(model: nn.Module) -> None:
    model.get_submodule("net.0").double()


class Unscaled(nn.Dropout2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.p, self.training) * (1 - self.p) if self.training else x


def rolled(model: nn.Module) -> None:
    norm = model.get_submodule("norm")
    norm.running_mean.copy_(norm.running_mean.roll(1))


class Case(NamedTuple):
    code: str
    make: Callable[[], nn.Module]
    x: Tensor
    mutants: dict[str, Spoil]
    edits: dict[str, tuple[str, str]] = {}  # noqa: RUF012


RMS = {
    "wrong ε": at("norm", set_(eps=1e-5)),
    "lost scale": at("norm", new_parameter("weight", 1.0)),
    "mean subtracted": through(lambda x, layer: layer(x - x.mean(-1, keepdim=True))),
    "wrong axis": through(axis_one),
    "ddof 1": through(lambda x, layer: layer(x) * math.sqrt((WIDTH - 1) / WIDTH)),
    "missing √d": through(lambda x, layer: layer(x) / math.sqrt(WIDTH)),
    "ε outside": through(lambda x, layer: x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-6) * layer.weight),
    "result in half": through(lambda x, layer: layer(x).half().to(x.dtype)),
    "detached": through(lambda x, layer: layer(x.detach()) + 0 * x),
    "nothing done": swap("norm", lambda layer: Rms()),
}
SPOILT_WEIGHTS = {
    "zeros": filled(0.0),
    "constant": filled(0.1),
    "too small": scaled(0.02),
    "too large": scaled(50.0),
    "equal rows": equal_rows,
    "not a number": filled(float("nan")),
    "frozen": lambda model: [p.requires_grad_(False) for p in model.parameters()] and None,
}
CASES = [
    Case("NRM008", lambda: Normed(Rms()), batch(8, 5, 8), RMS),
    Case(
        "NRM008",
        lambda: Normed(Rms(1.0)),
        batch(8, 5, 8),
        {"lost offset": at("norm", set_(offset=False)), "wrong ε": at("norm", set_(eps=1e-8))},
    ),
    Case(
        "NRM008",
        lambda: Normed(Layer()),
        batch(8, 5, 8),
        {
            "wrong ε": at("norm", set_(eps=1e-6)),
            "lost shift": at("norm", new_parameter("bias", 0.0)),
            "lost scale": at("norm", new_parameter("weight", 1.0)),
            "mean kept": through(lambda x, layer: F.rms_norm(x, (WIDTH,), layer.weight, 1e-5) + layer.bias),
            "ddof 1": through(
                lambda x, layer: (
                    (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5) * layer.weight
                    + layer.bias
                )
            ),
        },
    ),
    Case(
        "NRM001",
        Pictures,
        batch(1, 3, 10, 10),
        {
            "wrong ε": at("norm", set_(eps=1e-5)),
            "lost affine": at("norm", new_parameter("weight", 1.0)),
            "no affine": at("norm", lambda layer: layer._parameters.update(weight=None, bias=None)),
            "wrong shape": swap("norm", lambda layer: nn.Sequential(layer, nn.Upsample(scale_factor=2))),
            "BatchNorm again": swap("norm", lambda layer: nn.BatchNorm2d(8, eps=1e-3)),
            "normalises the batch": swap("norm", lambda layer: nn.BatchNorm2d(8, 1e-3, track_running_stats=False)),
            "constant": through(lambda x, layer: layer(0 * x)),
            "left in evaluation": at("norm", lambda layer: layer.eval()),
        },
    ),
    Case(
        "NRM004",
        Pictures,
        batch(8, 3, 10, 10),
        {
            "not folded": at("norm", lambda layer: layer.running_mean.add_(0.1)),
            "wrong sign": at("norm", lambda layer: layer.running_mean.mul_(-1)),
            "wrong axis": rolled,
            "bias of another layer": at("again", lambda layer: layer.register_parameter("bias", None)),
            "wrong ε": at("norm", set_(eps=1e-5)),
            "variance too": at("norm", lambda layer: layer.running_var.mul_(1.1)),
        },
    ),
    Case(
        "DRP004",
        Pictures,
        batch(8, 3, 10, 10),
        {
            "missing scale": swap("drop", lambda layer: Unscaled(layer.p)),
            "wrong rate": at("drop", set_(p=0.1)),
            "never drops": swap("drop", lambda layer: nn.Identity()),
            "always drops": swap("drop", lambda layer: Through(layer, lambda x, _: F.dropout2d(x, 0.25))),
        },
    ),
    Case(
        "DRP005",
        before_norm,
        batch(64, 32),
        {
            "removed": swap("2", lambda layer: nn.Identity()),
            "wrong rate": at("2", set_(p=0.1)),
            "still before": lambda model: model._modules.update(
                {k: model._modules.pop(k) for k in ("3", "4", "5", "6")}
            ),
        },
    ),
    Case("INI004", functools.partial(Deep, 0.01), batch(32, WIDTH), SPOILT_WEIGHTS),
    Case("INI005", functools.partial(Deep, 3.0), batch(32, WIDTH), {"too large": scaled(50.0)}),
    Case("INI001", functools.partial(Deep, 0.0), batch(32, WIDTH), {"zeros": filled(0.0), "equal rows": equal_rows}),
    Case(
        "INI008",
        Copies,
        batch(32, 8),
        {
            "copies still": lambda model: [p.data.fill_(0.3) for p in model.parameters()] and None,
            "tied": lambda model: (
                [
                    setattr(layer, "weight", model.get_parameter("layers.0.weight"))
                    for layer in model.get_submodule("layers")
                ]
                and None
            ),
        },
    ),
    Case(
        "MOD005",
        Attention,
        batch(8, 6, WIDTH),
        {},
        {
            "transposed heads": ("y.transpose(1, 2).flatten(2)", "y.transpose(1, 2).transpose(2, 3).flatten(2)"),
            "heads over positions": ("y.transpose(1, 2).flatten(2)", "y.reshape(x.shape)"),
            "wrong scale": ("dropout_p=", "scale=0.25, dropout_p="),
            "causal": ("dropout_p=", "is_causal=True, dropout_p="),
            "query for key": ("(q, k, v", "(q, q, v"),
            "never drops": ("self.rate if self.training else 0.0", "0.0"),
            "another rate": ("self.rate if", "0.5 * self.rate if"),
            "still ungated": ("self.rate if self.training else 0.0", "self.rate + 0.0"),
        },
    ),
]
MUTANTS = [(case, name) for case in CASES for name in (*case.mutants, *case.edits)]


@functools.cache
def for_mutants(number: int) -> tuple[_Work, Any, list[Step]]:
    """A refused attempt leaves everything as it was: all mutants of a case can share the run before it."""
    return prepared(CASES[number])


def prepared(case: Case) -> tuple[_Work, Any, list[Step]]:
    """The model, ready for its right rewrite: everything up to the attempt."""
    torch.manual_seed(0)
    inputs = as_inputs(case.x)
    settings = Settings()
    make, log = _source(case.make(), inputs, 0)
    work = _Work(make, log, inputs, chosen_rules(settings), settings, ["cpu"], True, lambda message: None)
    captured, found = work.look()
    steps = [step for step in work.plan(captured, found)[0] if step.finding.code == case.code]
    assert steps, [finding.code for finding in found]
    return work, found, steps


def refusal(case: Case, name: str = "") -> str:
    """Why the rewrite, or the mutant of that name, is refused; empty if it is accepted."""
    work, found, steps = for_mutants([other is case for other in CASES].index(True)) if name else prepared(case)
    steps = list(steps)
    if name in case.mutants:
        last = steps[-1]

        def mutant(model: nn.Module) -> list[str]:
            assert last.change is not None
            done = last.change(model)
            with torch.no_grad():
                case.mutants[name](model)
            return done

        steps[-1] = last._replace(change=mutant)
    elif name:
        steps = [_with_text(work, steps[0], case.edits[name])]
    outcome = work.attempt(found, steps)
    return outcome if isinstance(outcome, str) else ""


def _with_text(work: _Work, step: Step, edit: tuple[str, str]) -> Step:
    from auditor.fix.memory import _with_edits
    from auditor.fix.methods import edit_methods

    text = work.texts[step.path]
    right = _with_edits(text, step.edits)
    assert edit[0] in right, right
    start = right.index("class Attention")
    wrong = right[:start] + right[start:].replace(edit[0], edit[1], 1)
    return step._replace(change=lambda model: edit_methods(model, step.path, text, wrong))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_the_right_rewrite_is_accepted(case: Case) -> None:
    assert refusal(case) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), MUTANTS, ids=[f"{case.code}-{name}" for case, name in MUTANTS])
def test_the_mutant_is_refused(case: Case, name: str) -> None:
    assert refusal(case, name)


if __name__ == "__main__":
    killed = [(case.code, name, bool(refusal(case, name))) for case, name in MUTANTS]
    print(f"{sum(dead for *_, dead in killed)} of {len(killed)} mutants refused")
    print(*(f"survives: {code} {name}" for code, name, dead in killed if not dead), sep="\n")
