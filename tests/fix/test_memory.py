"""`auditor.rewrite`: models mended in memory, on a copy, with a certificate for every change; the rest left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auditor
from auditor.fix.memory import RewriteError

WIDTH = 32


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def drop(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p)


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Dropping(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class DroppingTwice(Stem):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(super().forward(x), 0.5)
        return F.dropout(x.relu(), 0.25)


class Deep(nn.Module):
    """Eight layers through which nothing gets."""

    def __init__(self, std: float = 0.01, tie: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(8):
            layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Clones(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(8, 8)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


def codes(certificates: Any, verdict: str = "validated") -> list[str]:
    return [one.code for one in certificates if one.verdict == verdict]


def test_methods_are_edited_on_the_copy_alone() -> None:
    model, x = Dropping(), batch(8, WIDTH)
    before = copy.deepcopy(model.state_dict())
    new, certificates = auditor.rewrite(model, x)
    assert codes(certificates) == ["MOD004"]
    assert certificates[0].diff == "the model: forward of Dropping edited\n"
    new.eval()
    assert torch.equal(new(x), new(x))
    assert isinstance(new, Dropping)
    assert type(model) is Dropping
    assert not torch.equal(model.eval()(x), model(x))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_two_edits_of_one_method() -> None:
    new, certificates = auditor.rewrite(DroppingTwice(), batch(8, WIDTH))
    assert codes(certificates) == ["MOD004", "MOD004"]
    assert torch.equal(new.eval()(batch(8, WIDTH)), new(batch(8, WIDTH)))
    copied = copy.deepcopy(new)
    assert torch.equal(copied(batch(8, WIDTH)), new(batch(8, WIDTH)))


def test_initial_weights() -> None:
    model, x = Deep(), batch(16, WIDTH)
    new, certificates = auditor.rewrite(model.eval(), x, seed=3)
    assert codes(certificates) == ["INI004"]
    assert certificates[0].seed == 3
    assert "net.0.weight: he_normal (relu)" in certificates[0].diff
    weight = new.get_submodule("net.0").weight
    assert float(weight.detach().std()) == pytest.approx((2 / WIDTH) ** 0.5, rel=0.15)
    assert torch.equal(new.get_submodule("net.16").weight, model.get_submodule("net.16").weight)
    assert not new.training
    again, _ = auditor.rewrite(model, x, seed=3)
    assert same_state(new, again)


def test_copies_are_initialised_anew() -> None:
    new, certificates = auditor.rewrite(Clones(), batch(16, 8))
    assert codes(certificates) == ["INI008"]
    first, second, _ = new.get_submodule("layers")
    assert not torch.equal(first.weight, second.weight)


def test_a_function_that_builds() -> None:
    new, certificates = auditor.rewrite(Deep, batch(16, WIDTH))
    assert codes(certificates) == ["INI004"]
    assert isinstance(new, Deep)


def test_select_ignore_and_unsafe() -> None:
    x = batch(16, WIDTH)
    assert auditor.rewrite(Deep(), x, select="MOD").certificates == []
    assert auditor.rewrite(Deep(), x, ignore=["vanishing-init"]).certificates == []
    model = Deep()
    new, certificates = auditor.rewrite(model, x, unsafe=False)
    assert certificates == []
    assert same_state(new, model)
    with pytest.raises(ValueError, match="unknown rule 'XYZ'"):
        auditor.rewrite(Deep(), x, select="XYZ")


def test_random_state_is_left_as_it_was() -> None:
    model, x, state = Clones(), batch(16, 8), torch.get_rng_state()
    auditor.rewrite(model, x)
    auditor.rewrite(Clones, x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (torch.jit.script(nn.Linear(2, 2)), "ScriptModule"),
        (torch.fx.symbolic_trace(nn.Linear(2, 2)), "GraphModule"),
        (nn.Linear(2, 2, device="meta"), "meta device"),
        (nn.Linear(3, 2), "cannot be run: RuntimeError"),
    ],
)
def test_models_that_cannot_be_rewritten(model: nn.Module, reason: str) -> None:
    with pytest.raises(RewriteError, match=reason):
        auditor.rewrite(model, batch(4, 2))


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="or a function that builds one, not int"):
        auditor.rewrite(3, batch(4, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be used here"):
        auditor.rewrite(nn.Linear(2, 2), batch(4, 2), device="cuda:99")
    with pytest.raises(ValueError, match="unknown dtype"):
        auditor.rewrite(nn.Linear(2, 2), batch(4, 2), dtype="float12")
