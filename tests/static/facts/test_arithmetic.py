"""Forms of norms are recognised however they are spelled, and nothing else is."""

from __future__ import annotations

import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.norms import measured_norm
from auditor.static.facts.arithmetic import HandWrittenNorm, hand_written_norm
from auditor.static.source import Source

CLASS = """
import math
import torch
import torch.nn.functional as F
from torch import nn

class Norm(nn.Module):
    def __init__(self, dim=8, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.dim = dim
        self.scale = dim ** 0.5
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def rms(self, x):
        return x.pow(2).mean(-1, keepdim=True)

    def forward(self, x):
{body}
"""


def text_of(body: str) -> str:
    return CLASS.format(body=textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8))


def form_of(body: str) -> HandWrittenNorm | None:
    source = Source("norm.py", text_of(body))
    facts = source.module_class("Norm")
    assert facts is not None
    return hand_written_norm(source, facts)


def module_of(body: str) -> nn.Module:
    namespace: dict[str, type[nn.Module]] = {}
    exec(text_of(body), namespace)
    module = namespace["Norm"]()
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    return module.double()


RMS = {
    "rsqrt": "return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight",
    "method rsqrt": "return self.weight * (x * (self.rms(x) + self.eps).rsqrt())",
    "division": "return self.weight * x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + self.eps)",
    "power": "return x * (x.square().mean(-1, True) + self.eps) ** -0.5 * self.weight",
    "pow": "return x * torch.pow(torch.mean(torch.square(x), (-1,), keepdim=True) + self.eps, -0.5) * self.weight",
    "sum": "return x * torch.rsqrt((x ** 2).sum(-1, keepdim=True) / x.shape[-1] + self.eps) * self.weight",
    "sum over dim": "return x * torch.rsqrt((x ** 2).sum(-1, keepdim=True) / self.dim + self.eps) * self.weight",
    "norm": "return x / torch.sqrt((x.norm(2, dim=-1, keepdim=True) / self.scale) ** 2 + self.eps) * self.weight",
    "offset": "return x * torch.rsqrt(self.rms(x) + self.eps) * (1 + self.weight)",
    "normalize": "return F.normalize(x, dim=-1) * self.scale * self.weight",
    "normalize sqrt": "return self.weight * F.normalize(x, p=2, dim=-1) * x.shape[-1] ** 0.5",
    "no weight": "return x * torch.rsqrt(self.rms(x) + 1e-5)",
    "statements": """
        dtype = x.dtype
        y = x.to(torch.float64)
        y = y * torch.rsqrt(self.rms(y) + self.eps)
        return (self.weight * y).to(dtype)
    """,
    "optional": """
        x = x * torch.rsqrt(self.rms(x) + self.eps)
        if self.weight is not None:
            x = x * self.weight
        return x
    """,
}
LAYER = {
    "two-pass": """
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias
    """,
    "var": """
        mean = torch.mean(x, -1, keepdim=True)
        return self.bias + self.weight * (x - mean) * (x.var(-1, unbiased=False, keepdim=True) + self.eps).rsqrt()
    """,
}
OTHER = {
    "eps outside": "return x / (self.rms(x).sqrt() + self.eps) * self.weight",
    "no eps": "return x / self.rms(x).sqrt() * self.weight",
    "other axis": "return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps) * self.weight",
    "no keepdim": "return x * torch.rsqrt(x.pow(2).mean(-1) + self.eps) * self.weight",
    "sum, not mean": "return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.eps) * self.weight",
    "cube": "return x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + self.eps) * self.weight",
    "factor": "return 2 * x * torch.rsqrt(self.rms(x) + self.eps) * self.weight",
    "added": "return x * torch.rsqrt(self.rms(x) + self.eps) * self.weight + x",
    "weight twice": "return x * torch.rsqrt(self.rms(x) + self.eps) * self.weight * self.weight",
    "weight inside": "x = x * self.weight\nreturn x * torch.rsqrt(self.rms(x) + self.eps)",
    "detached": "return x * torch.rsqrt(self.rms(x.detach()) + self.eps) * self.weight",
    "absolute": "return torch.sqrt(x ** 2) * torch.rsqrt(self.rms(x) + self.eps) * self.weight",
    "unbiased": "m = x.mean(-1, keepdim=True)\nreturn (x - m) / torch.sqrt(x.var(-1, keepdim=True) + self.eps)",
    "not centred": "return x / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + self.eps) * self.weight",
    "rms with bias": "return x * torch.rsqrt(self.rms(x) + self.eps) * self.weight + self.bias",
    "plain normalize": "return F.normalize(x, dim=-1) * self.weight",
    "large floor": "return F.normalize(x, dim=-1, eps=1e-3) * self.scale * self.weight",
    "activation": "return F.silu(x) * torch.rsqrt(self.rms(x) + self.eps) * self.weight",
    "in place": "x = x.float()\nx *= torch.rsqrt(self.rms(x) + self.eps)\nreturn x * self.weight",
    "a loop": "for _ in range(2):\n    x = x * torch.rsqrt(self.rms(x) + self.eps)\nreturn x",
}


@pytest.mark.parametrize("body", [*RMS.values(), *LAYER.values()], ids=[*RMS, *LAYER])
def test_recognised_and_equal(body: str) -> None:
    """The call that is proposed gives the same outputs and gradients."""
    form = form_of(body)
    assert form is not None
    assert form.function == ("layer_norm" if body in LAYER.values() else "rms_norm")
    module = module_of(body)
    proposed = eval(f"lambda self, x: {form.call('F')}", {"F": F})
    for scale in (1e-3, 1.0, 1e3):
        x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale
        x.requires_grad_()
        old, new = module(x), proposed(module, x)
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-12)
        cotangent = torch.linspace(-1, 2, 8, dtype=torch.float64).expand(4, 8)
        wanted, got = (torch.autograd.grad(out, x, cotangent)[0] for out in (old, new))
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9 / scale)


@pytest.mark.parametrize("body", OTHER.values(), ids=OTHER)
def test_not_recognised(body: str) -> None:
    assert form_of(body) is None


def test_a_result_in_float32_stays_in_float32() -> None:
    form = form_of("x = x.float()\nreturn x * torch.rsqrt(self.rms(x) + self.eps) * self.weight")
    assert form is not None
    assert form.call("F") == "F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)"


class Reference(nn.Module):
    """RMSNorm with a configurable place of ε."""

    def __init__(self, outside: bool = False, eps: float = 1e-4) -> None:
        super().__init__()
        self.outside = outside
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return self.weight * x / (mean.sqrt() + self.eps if self.outside else (mean + self.eps).sqrt())


def test_measured() -> None:
    norm = measured_norm(Reference(), 8)
    assert norm is not None
    assert (norm.function, norm.epsilon, norm.offset_weight) == ("rms_norm", 1e-4, False)
    assert measured_norm(Reference(outside=True), 8) is None
    assert measured_norm(nn.Linear(8, 8), 8) is None


def test_measured_leaves_the_module_alone() -> None:
    module = Reference()
    state, generator = module.weight.detach().clone(), torch.get_rng_state()
    measured_norm(module, 8)
    assert torch.equal(module.weight, state)
    assert module.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), generator)
