"""Random small models, with random things to rewrite: what is accepted keeps its claims, by a check of our own.

Plain, residual, convolutional, recurrent and attention models, in float64; norms written by hand, functional dropout
without a mode, biases before BatchNorm, initial weights through which nothing gets.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import auditor
from auditor.fix.trial import perturb

EXACT = {"NRM008", "NRM004", "MOD004", "MOD005"}  # these keep the function, in evaluation as in training


class HandNorm(nn.Module):
    def __init__(self, width: int, kind: str, eps: float, name: str) -> None:
        super().__init__()
        self.kind, self.eps, self.width, self.name = kind, eps, width, name
        self.register_parameter(name, nn.Parameter(torch.ones(width)))
        if kind == "layer":
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = getattr(self, self.name)
        if self.kind == "layer":
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            return (x - mean) / torch.sqrt(variance + self.eps) * scale + self.bias
        if self.kind == "normalize":
            return F.normalize(x, dim=-1) * math.sqrt(self.width) * scale
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * scale


class Dropped(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate)


class Attended(nn.Module):
    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, parts: list[nn.Module], residual: bool) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x) if self.residual else self.parts(x)


class Recurrent(nn.Module):
    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.rnn(x)[0])


class Convolutional(nn.Module):
    def __init__(self, rate: float, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, bias=bias)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.drop = Dropped(rate)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.bn(self.conv(x)).relu().mean((2, 3))))


@st.composite
def models(draw: Any) -> tuple[nn.Module, Tensor]:
    width, rate = draw(st.sampled_from((8, 12))), draw(st.sampled_from((0.1, 0.5)))
    kind = draw(st.sampled_from(("plain", "residual", "conv", "attention", "recurrent")))
    seed = draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    name = draw(st.sampled_from(("weight", "g")))
    norm = HandNorm(
        width, draw(st.sampled_from(("rms", "layer", "normalize"))), draw(st.sampled_from((1e-6, 1e-3))), name
    )
    generator = torch.Generator().manual_seed(seed)
    if kind == "conv":
        return Convolutional(rate, draw(st.booleans())), torch.randn((4, 2, 6, 6), generator=generator)
    x = torch.randn((4, 6, width), generator=generator)
    if kind == "recurrent":
        return Recurrent(width, norm), x
    first: nn.Module = Attended(width, rate) if kind == "attention" else nn.Linear(width, width)
    parts = [norm, first, nn.ReLU(), Dropped(rate), nn.Linear(width, width)]
    return nn.Sequential(Block(parts, kind != "plain"), nn.Linear(width, 3)), x


def double(model: nn.Module) -> nn.Module:
    """In float64, with weights that are not the default ones (drawn by name, so the same for both models)."""
    return copy.deepcopy(model).double()


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(models())
def test_what_is_accepted_keeps_the_function(drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    perturb(model)
    new, certificates = auditor.rewrite(model, x, select=sorted(EXACT))
    accepted = [one.code for one in certificates if one.accepted]
    assert all(one.accepted or one.reason for one in certificates)
    old, new = double(model), double(new)
    for mode in (True, False):
        # In training, what only gates dropout changes nothing; in evaluation it is off after the rewrite alone.
        torch.manual_seed(0)
        before = old.train(mode)(x.double()) if mode else silenced(old.eval(), x.double())
        torch.manual_seed(0)
        after = new.train(mode)(x.double())
        torch.testing.assert_close(
            after, before, rtol=1e-9, atol=1e-10, msg=f"{accepted} in {'train' if mode else 'eval'}"
        )
    if {"MOD004", "MOD005"} & set(accepted):
        assert torch.equal(new.eval()(x.double()), new(x.double()))


def silenced(model: nn.Module, x: Tensor) -> Tensor:
    """The model without dropout, its rates set to 0."""
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0
    return model(x)


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.integers(4, 8), st.sampled_from((nn.ReLU, nn.GELU, nn.Tanh)), st.sampled_from((0.0, 0.01, 2.0)), st.booleans()
)
def test_initial_weights_that_are_accepted_carry_a_signal(depth: int, act: Any, std: float, residual: bool) -> None:
    torch.manual_seed(depth)
    blocks = [Block([nn.Linear(12, 12), act()], residual) for _ in range(depth)]
    model = nn.Sequential(*blocks, nn.Linear(12, 3))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
    x = torch.randn((32, 12), generator=torch.Generator().manual_seed(0))
    new, certificates = auditor.rewrite(model, x, select=["INI001", "INI004", "INI005"])
    if not any(one.accepted for one in certificates):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), new.parameters(), strict=True))
        return
    wide, held = copy.deepcopy(new).double(), []
    wide[-1].register_forward_pre_hook(lambda module, args: held.append(args[0]))
    F.cross_entropy(wide(x.double()), torch.arange(32) % 3).backward()
    assert 0.1 <= float(held[0].square().mean().sqrt()) <= 10
    assert all(float(p.grad.abs().max()) > 0 for p in wide.parameters() if p.dim() > 1)
