"""Conversions of BatchNorm: what is said to be kept is kept, the rest is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from auditor.reference.conversion import (
    CONVERSIONS,
    FrozenBatchNorm,
    convert,
    to_frozen_batch_norm,
    to_group_norm,
    to_layer_norm,
    to_sync_batch_norm,
)
from auditor.reference.normalization import group_norm, layer_norm


def trained(kind: Any = nn.BatchNorm2d, channels: int = 8, **options: Any) -> Any:
    """A BatchNorm none of whose values are those of a new one."""
    bn = kind(channels, eps=1e-3, **options)
    generator = torch.Generator().manual_seed(0)
    for tensor in (bn.weight, bn.bias, bn.running_mean):
        if tensor is not None:
            tensor.data = torch.randn(channels, generator=generator, dtype=tensor.dtype)
    if bn.running_var is not None:
        bn.running_var.uniform_(0.5, 2.0, generator=generator)
        bn.num_batches_tracked.fill_(7)
    return bn


KINDS = {"group": nn.BatchNorm2d, "layer": nn.BatchNorm1d, "frozen": nn.BatchNorm2d, "sync": nn.BatchNorm2d}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_keeps_affine_epsilon_dtype_and_mode(name: str, training: bool, dtype: torch.dtype) -> None:
    bn = trained(KINDS[name], dtype=dtype).train(training)
    bn.bias.requires_grad_(False)
    bn.note = "the user's own"
    norm: Any = CONVERSIONS[name].convert(bn)
    assert norm.weight is bn.weight
    assert norm.bias is bn.bias
    assert not norm.bias.requires_grad
    assert norm.eps == 1e-3
    assert norm.training is training
    assert norm.note == "the user's own"
    assert {tensor.dtype for tensor in norm.state_dict().values()} <= {dtype, torch.int64}
    if "running statistics" in CONVERSIONS[name].keeps:
        assert list(norm.state_dict()) == list(bn.state_dict())
        for key, value in bn.state_dict().items():
            assert torch.equal(norm.state_dict()[key], value)
        assert norm.running_mean is not bn.running_mean


@pytest.mark.parametrize("name", CONVERSIONS)
def test_keeps_hooks_and_their_handles(name: str) -> None:
    bn = trained(KINDS[name])
    calls: list[str] = []
    bn.register_forward_pre_hook(lambda *_: calls.append("before"))
    handle = bn.register_forward_hook(lambda *_, **__: calls.append("after"), with_kwargs=True)
    bn.register_full_backward_hook(lambda *_: calls.append("back"))
    norm = CONVERSIONS[name].convert(bn)
    x = torch.randn(4, 8) if name == "layer" else torch.randn(4, 8, 3, 3)
    norm(x.requires_grad_()).sum().backward()
    assert calls == ["before", "after", "back"]
    handle.remove()
    norm(x)
    assert calls[3:] == ["before"]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_without_affine(name: str) -> None:
    norm: Any = CONVERSIONS[name].convert(trained(KINDS[name], affine=False))
    assert norm.weight is None
    assert norm.bias is None
    assert not list(norm.parameters())
    norm(torch.randn(4, 8) if name == "layer" else torch.randn(4, 8, 3, 3))


def test_to_group_norm_is_the_reference_with_its_affine() -> None:
    bn = trained(channels=32).double()
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norm = to_group_norm(bn, positions=16)
    assert norm.num_groups == 8
    torch.testing.assert_close(norm(x), group_norm(x, 8, bn.weight, bn.bias, 1e-3))
    assert to_group_norm(bn, groups=2).num_groups == 2
    assert torch.equal(norm(x)[:1], norm(x[:1]))


def test_to_layer_norm_is_the_reference_with_its_affine() -> None:
    bn = trained(nn.BatchNorm1d).double()
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(to_layer_norm(bn)(x), layer_norm(x, bn.weight, bn.bias, 1e-3))
    with pytest.raises(ValueError, match="one group"):
        to_layer_norm(trained())


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 3), (4, 8, 3, 3)])
def test_frozen_is_evaluation_in_both_modes(shape: tuple[int, ...]) -> None:
    bn = trained(nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d).eval()
    frozen = to_frozen_batch_norm(bn)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(frozen.eval()(x), bn(x))
    assert torch.equal(frozen.train()(x), bn(x))
    assert torch.equal(frozen.running_mean, bn.running_mean)
    frozen.load_state_dict(bn.state_dict())
    bn.load_state_dict(frozen.state_dict())


def test_sync_is_the_same_function_on_one_device() -> None:
    bn = trained()
    sync = to_sync_batch_norm(copy.deepcopy(bn))
    x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    for mode in (True, False):
        assert torch.equal(sync.train(mode)(x), bn.train(mode)(x))
    assert torch.equal(sync.running_var, bn.running_var)
    assert sync.momentum == bn.momentum
    assert to_group_norm(sync).weight is sync.weight


def test_refuses_to_freeze_what_was_never_trained() -> None:
    with pytest.raises(ValueError, match="new layer"):
        to_frozen_batch_norm(nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="without running statistics"):
        to_frozen_batch_norm(nn.BatchNorm1d(4, track_running_stats=False))


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Renamed(nn.BatchNorm2d):
    pass


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(nn.BatchNorm2d(8), "weight", Double())


def with_state_hook() -> nn.Module:
    bn = nn.BatchNorm2d(8)
    bn.register_load_state_dict_post_hook(lambda module, keys: None)
    return bn


@pytest.mark.parametrize(
    ("bn", "reason"),
    [
        (Activated(8), "does more"),
        (nn.LazyBatchNorm2d(), "does not know its size"),
        (parametrized(), "parametrization"),
        (with_state_hook(), "state dict"),
        (nn.InstanceNorm2d(8), "not a BatchNorm"),
        (nn.Linear(2, 2), "not a BatchNorm"),
    ],
)
def test_refuses_with_a_reason(bn: nn.Module, reason: str) -> None:
    for convert_one in (to_group_norm, to_layer_norm, to_frozen_batch_norm, to_sync_batch_norm):
        with pytest.raises(ValueError, match=reason):
            convert_one(bn)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = trained()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), shared)
        self.again = shared
        self.last = Renamed(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.stem(x)))


def test_convert_keeps_shared_instances_shared() -> None:
    model, placed = convert(Net(), to_group_norm)
    assert isinstance(model, Net)
    assert model.stem[1] is model.again
    assert isinstance(model.last, nn.GroupNorm)
    assert list(placed) == ["stem.1", "again", "last"]
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 8, 3, 3)


def test_convert_only_what_is_selected() -> None:
    model, placed = convert(Net(), to_group_norm, lambda path, module: path == "again")
    assert list(placed) == ["stem.1", "again"]
    assert isinstance(model.last, Renamed)
    root, placed = convert(trained(), to_frozen_batch_norm)
    assert isinstance(root, FrozenBatchNorm)
    assert placed == {"": root}


def test_convert_changes_nothing_if_one_layer_is_refused() -> None:
    net = Net()
    net.last = Activated(8)
    with pytest.raises(ValueError, match="does more"):
        convert(net, to_group_norm)
    assert isinstance(net.again, nn.BatchNorm2d)
