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


# Layers exchanged ----------------------------------------------------------------------------------------------------


class Rms(nn.Module):
    """RMSNorm by hand, in the forms that published code has."""

    def __init__(self, form: str, name: str = "weight", eps: float = 1e-5) -> None:
        super().__init__()
        self.form, self.name, self.eps = form, name, eps
        self.register_parameter(name, nn.Parameter(torch.zeros(WIDTH) if form == "1 + w" else torch.ones(WIDTH)))

    def forward(self, x: Tensor) -> Tensor:
        weight = getattr(self, self.name)
        if self.form == "plain":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight
        if self.form == "upcast":
            h = x.float()
            return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * weight
        if self.form == "1 + w":
            return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + weight)
        if self.form == "normalize":
            return F.normalize(x, dim=-1) * WIDTH**0.5 * weight
        return x / (x.norm(dim=-1, keepdim=True) * WIDTH**-0.5).clamp(min=1e-8) * weight


class Rooted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(16, WIDTH), norm, nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu())


@pytest.mark.parametrize("name", ["weight", "g"])
@pytest.mark.parametrize("form", ["plain", "upcast", "1 + w", "normalize", "clamp"])
def test_hand_written_rms_norm(form: str, name: str) -> None:
    model, x = Normed(Rms(form, name)), batch(8, 16)
    calls: list[int] = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    new, certificates = auditor.rewrite(model, x, select="NRM008")
    assert codes(certificates) == ["NRM008"]
    norm = new.get_submodule("norm")
    assert isinstance(norm, nn.RMSNorm) is (name == "weight" and form != "1 + w")
    assert list(new.state_dict()) == list(model.state_dict())
    calls.clear()
    torch.testing.assert_close(new(x), model(x))
    assert len(calls) == 2, "its hook stays"
    if form in ("plain", "upcast", "1 + w"):
        assert norm.eps == 1e-5


def test_a_norm_that_is_the_model_itself_keeps_its_class() -> None:
    """There is nothing to put another layer into: the edit of the source fix is made on its class."""
    model = Rooted()
    new, certificates = auditor.rewrite(model, batch(8, WIDTH), select="NRM008")
    assert codes(certificates) == ["NRM008"]
    assert "forward of Rooted edited" in certificates[0].diff
    torch.testing.assert_close(new(batch(8, WIDTH)), model(batch(8, WIDTH)))


def test_hand_written_norm_that_is_none() -> None:
    """Over the wrong axis, or with the variance of a sample: nothing is found, nothing is replaced."""

    class Wrong(Rms):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / (WIDTH - 1) + self.eps) * self.weight

    new, certificates = auditor.rewrite(Normed(Wrong("plain")), batch(8, 16), select="NRM008")
    assert certificates == []
    assert isinstance(new.get_submodule("norm"), Wrong)


class Pictures(nn.Module):
    def __init__(self, shared: bool = False, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.bn = nn.BatchNorm2d(16, eps=1e-3, **options)
        self.again = nn.Conv2d(16, 16, 3)
        self.norm = self.bn if shared else nn.BatchNorm2d(16, eps=1e-3, **options)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        return self.head(self.norm(self.again(x)).relu().mean((2, 3)))


def test_batch_of_one_gets_groups() -> None:
    model, x = Pictures(), batch(1, 3, 12, 12)
    nn.init.normal_(model.bn.weight)
    model.bn.bias.requires_grad_(False)
    new, certificates = auditor.rewrite(model.eval().half(), x.half(), select="NRM001", dtype="float32")
    assert codes(certificates) == ["NRM001", "NRM001"]
    norm = new.get_submodule("bn")
    assert isinstance(norm, nn.GroupNorm)
    assert torch.equal(norm.weight, model.bn.weight)
    assert (norm.eps, norm.training, norm.weight.dtype) == (1e-3, False, torch.float16)
    assert not norm.bias.requires_grad


def test_batch_of_one_without_affine() -> None:
    new, certificates = auditor.rewrite(Pictures(affine=False), batch(1, 3, 12, 12), select="NRM001")
    assert codes(certificates) == ["NRM001", "NRM001"]
    assert new.get_submodule("bn").weight is None


def test_a_shared_layer_stays_shared() -> None:
    new, certificates = auditor.rewrite(Pictures(shared=True), batch(1, 3, 12, 12), select="NRM001")
    assert codes(certificates) == ["NRM001"]
    assert new.get_submodule("bn") is new.get_submodule("norm")
    assert isinstance(new.get_submodule("bn"), nn.GroupNorm)


def test_trained_statistics_are_frozen() -> None:
    model, x = Pictures(), batch(1, 3, 12, 12)
    model(batch(32, 3, 12, 12))
    new, certificates = auditor.rewrite(model, x, select="NRM001")
    assert codes(certificates) == ["NRM001", "NRM001"]
    torch.testing.assert_close(new.train()(x), model.eval()(x))


def test_bias_is_folded_into_the_running_mean() -> None:
    model = Pictures()
    for _ in range(5):
        model(batch(32, 3, 12, 12) + 1)
    new, certificates = auditor.rewrite(model, batch(8, 3, 12, 12), select="NRM004")
    assert codes(certificates) == ["NRM004", "NRM004"]
    assert new.get_submodule("conv").bias is None
    torch.testing.assert_close(new.eval()(batch(4, 3, 12, 12)), model.eval()(batch(4, 3, 12, 12)))


def test_bias_of_two_layers_before_one_norm_is_refused() -> None:
    new, certificates = auditor.rewrite(Pictures(shared=True), batch(8, 3, 12, 12), select="NRM004")
    assert codes(certificates) == []
    assert all("several layers" in one.reason for one in certificates)
    assert new.get_submodule("conv").bias is not None


def test_dropout_is_moved_behind_the_norm() -> None:
    model = nn.Sequential(
        nn.Linear(WIDTH, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 4)
    )
    new, certificates = auditor.rewrite(nn.ModuleDict({"net": model})["net"], batch(64, WIDTH), select="DRP005")
    assert codes(certificates) == ["DRP005"]
    assert [type(layer).__name__ for layer in new] == ["Linear", "ReLU", "Linear", "BatchNorm1d", "Dropout", "Linear"]
    assert list(new.state_dict()) == list(model.state_dict())


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(8))
        self.matrix = nn.Parameter(torch.empty(8, 4))
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.scale) @ self.matrix


def test_uninitialised_parameters() -> None:
    new, certificates = auditor.rewrite(Bare, batch(64, 8), select="INI007")
    assert codes(certificates) == ["INI007", "INI007"]
    assert torch.equal(new.get_parameter("scale"), torch.ones(8))
    assert 0.1 < float(new.get_parameter("matrix").detach().std()) < 1


# What must be refused, or done right ----------------------------------------------------------------------------------


def test_a_layer_held_in_a_plain_list_is_refused() -> None:
    class Holding(Pictures):
        def __init__(self) -> None:
            super().__init__()
            self.every = [self.bn, self.norm]

    _, certificates = auditor.rewrite(Holding(), batch(1, 3, 12, 12), select="NRM001")
    assert codes(certificates) == []
    assert "held in a plain attribute" in certificates[0].reason


def test_parametrizations_are_refused() -> None:
    model = Pictures()
    nn.utils.parametrizations.weight_norm(model.conv)
    _, certificates = auditor.rewrite(model, batch(8, 3, 12, 12), select="NRM004")
    assert {one.verdict for one in certificates if "conv" in one.reason} == {"refused"}


def test_subclasses_are_refused() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    model = Pictures()
    model.bn = Activated(16)
    new, _ = auditor.rewrite(model, batch(1, 3, 12, 12), select="NRM001")
    assert isinstance(new.get_submodule("bn"), Activated)


def test_lazy_layers() -> None:
    """Run once, they are layers like others; those that torch cannot copy before must be run first."""
    model = nn.Sequential(nn.LazyLinear(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64))
    new, certificates = auditor.rewrite(model, batch(64, WIDTH), select="DRP005")
    assert codes(certificates) == ["DRP005"]
    assert not any(isinstance(parameter, nn.UninitializedParameter) for parameter in new.parameters())
    assert any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters())
    with pytest.raises(RewriteError, match="lazy layers that torch cannot copy: call it once"):
        auditor.rewrite(nn.Sequential(nn.LazyBatchNorm1d()), batch(4, 2))


def test_tied_weights_stay_tied() -> None:
    class Tied(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.net[2].weight = self.net[0].weight

    new, certificates = auditor.rewrite(Tied(), batch(16, WIDTH), select="INI")
    assert codes(certificates) == ["INI004"]
    assert new.get_submodule("net.2").weight is new.get_submodule("net.0").weight


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_keeps_its_batch_axis(batch_first: bool) -> None:
    """A copied stack is initialised anew; what attends to what stays."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2)
    new, certificates = auditor.rewrite(model, batch(6, 5, 32), select="INI008")
    assert codes(certificates) == ["INI008"]
    assert new.get_submodule("layers.0.self_attn").batch_first is batch_first
    x = batch(6, 5, 32)
    changed = x.clone()
    changed[0] += 1
    moved = (new.eval()(changed) - new(x)).detach().abs().amax((1, 2)) if batch_first else None
    if moved is not None:
        assert float(moved[0]) > 0
        assert float(moved[1:].max()) == 0
