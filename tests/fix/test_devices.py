"""Proofs on accelerators, in half precision, under torch.compile. Those for a GPU are skipped where there is none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auditor
from auditor.fix.service import available_devices

ACCELERATORS = [device for device in ("cuda", "mps") if device in available_devices()]
gpu = pytest.mark.skipif(not ACCELERATORS, reason="no GPU here")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = Rms(32)
        self.second = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.dropout(self.norm(self.first(x)), 0.25))


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Vanishing(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*[layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 4))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)


def inputs() -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def test_the_cpu_is_always_there() -> None:
    assert available_devices()[0] == "cpu"
    new, certificates = auditor.rewrite(Net(), inputs(), device="all")
    assert {one.device for one in certificates} == set(available_devices())
    assert all(one.accepted for one in certificates)
    assert next(new.parameters()).device.type == "cpu"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_the_cpu(dtype: str) -> None:
    model = Net().to(getattr(torch, dtype))
    new, certificates = auditor.rewrite(model, inputs())
    assert {one.code for one in certificates if one.accepted} == {"MOD004", "NRM008"}
    assert {one.dtype for one in certificates} == {dtype}
    assert {parameter.dtype for parameter in new.parameters()} == {getattr(torch, dtype)}


def test_under_compile() -> None:
    _, certificates = auditor.rewrite(Net(), inputs(), select="NRM008", compile=True)
    (one,) = certificates
    assert one.accepted, one.reason
    assert one.compiled
    assert any("compiled float32" in result.detail for result in one.claims)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ACCELERATORS)
def test_rewrites_on_an_accelerator(device: str, dtype: str) -> None:
    new, certificates = auditor.rewrite(Net().to(device), inputs(), dtype=dtype)
    assert {one.code for one in certificates if one.accepted} == {"MOD004", "NRM008"}
    assert {one.device.partition(":")[0] for one in certificates} == {device}
    assert next(new.parameters()).device.type == device
    again, _ = auditor.rewrite(Vanishing().to(device), inputs())
    assert next(again.parameters()).device.type == device


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("device", ACCELERATORS)
def test_initial_weights_on_an_accelerator(device: str) -> None:
    _, certificates = auditor.rewrite(Vanishing(), inputs(), device=device)
    assert [(one.code, one.verdict) for one in certificates] == [("INI004", "validated")]


@gpu
@pytest.mark.gpu
def test_compiled_on_an_accelerator() -> None:
    _, certificates = auditor.rewrite(Net(), inputs(), select="NRM008", device=ACCELERATORS[0], compile=True)
    assert certificates[0].accepted, certificates[0].reason
