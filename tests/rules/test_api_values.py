"""Rewritten expressions are evaluated: before and after give the same values, shapes and dtypes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from auditor.fix.engine import fix_text
from tests.fixtures import BY_CODE

SETUP = """\
import functools
import math
import functorch
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Variable

torch.manual_seed(0)
x = torch.randn(3, 4, 5, dtype=torch.float64)
z = torch.complex(x, x + 1)
a = torch.randn(5, 5, dtype=torch.float64)
g = a @ a.mT + 5 * torch.eye(5, dtype=torch.float64)
image = torch.randn(1, 2, 6, 6)
signal = torch.randn(200)
"""

UNCHANGED = {
    "API003": [
        "torch.norm(x)",
        "torch.norm(x, 2)",
        "torch.norm(x, p=2, dim=1)",
        "torch.norm(x, 'fro', (1, 2), True)",
        "torch.norm(x, p='fro', dim=-1, keepdim=True)",
        "torch.norm(x, None, 0)",
        "torch.norm(x, 0, dim=2)",
        "torch.norm(x, 1)",
        "torch.norm(x, -1.5, dim=[0, 1])",
        "torch.norm(x, float('inf'), dim=1)",
        "torch.norm(x, -math.inf)",
        "torch.norm(x, math.inf, keepdim=True)",
        "torch.norm(x, p='nuc', dim=(1, 2), keepdim=True)",
        "torch.norm(x, p='nuc', dim=(0, 2))",
        "torch.norm(x.float(), dtype=torch.float64, dim=1)",
        "torch.norm(input=x, dim=1)",
        "torch.norm(z, dim=1)",
        "torch.norm(z, p='nuc', dim=(0, 1))",
        "torch.norm(x, dim=1, out=torch.empty(0, dtype=torch.float64))",
        "torch.norm(x - torch.norm(x, dim=0), p=3)",
        "torch.functional.norm(x, dim=(0, 1, 2), p=2)",
    ],
    "API004": [
        "torch.qr(a)",
        "torch.qr(torch.ones(4, 2), False)",
        "torch.qr(torch.ones(4, 2), some=False)",
        "torch.cholesky(g)",
        "torch.cholesky(g, True)",
        "torch.cholesky(g, upper=bool(len([1])))",
        "torch.lu(g)",
        "torch.lu(g, get_infos=True)",
        "torch.lu_solve(a, *torch.lu(g))",
        "torch.lu_solve(a, torch.lu(g)[0], torch.lu(g)[1])",
        "torch.triangular_solve(a, g)[0]",
        "torch.triangular_solve(a, g, False).solution",
        "torch.triangular_solve(a, g + a, upper=False, transpose=True, unitriangular=True)[0]",
        "torch.triangular_solve(A=g, input=a, transpose=True).solution",
        "torch.chain_matmul(a, g, a)",
        "torch.svd(a)[1]",
        "torch.svd(a, compute_uv=False).S",
    ],
    "API005": [
        "F.upsample(image, scale_factor=2)",
        "F.upsample(image, (7, 9), None, 'bilinear', True)",
        "F.upsample_nearest(image, 9)",
        "F.upsample_bilinear(image, size=(9, 7))",
        "F.upsample_bilinear(image, None, 1.5)",
        "nn.UpsamplingBilinear2d(scale_factor=2)(image)",
        "nn.UpsamplingNearest2d((7, 7))(image)",
        "torch.ger(a[0], a[1])",
        "torch.ger(vec2=a[0], input=a[1])",
    ],
    "API007": [
        "functorch.vmap(torch.sin)(a)",
        "functorch.vmap(functorch.grad(lambda row: row.pow(3).sum()))(a)",
        "functorch.jacrev(torch.tanh)(a[0])",
    ],
    "API013": [
        "Variable(x)",
        "Variable(x * 2).sum()",
        "Variable(torch.ones(3), requires_grad=True)",
        "(Variable(nn.Parameter(x)).requires_grad, Variable(nn.Parameter(x), requires_grad=True).is_leaf)",
    ],
    "API014": [
        f"F.mse_loss(x, x + {{}}, size_average={average}, reduce={reduce})".format("torch.arange(5.0)")
        for average in (None, True, False)
        for reduce in (None, True, False)
    ]
    + ["nn.L1Loss(size_average=False)(x, x * 2)", "F.kl_div(x, x.exp(), reduce=False)"],
    "API019": ["torch.cross(x[1:, :, :3], x[1:, :, :3] + 1)"],
    "API020": [
        "torch.stft(signal, 16, return_complex=False)",
        "torch.stft(signal, n_fft=16, hop_length=4, return_complex=False, center=False)[..., 0]",
    ],
    "API021": [
        "torch.range(0, 7)",
        "torch.range(1, 8, 3)",
        "torch.range(8, 1, -3)",
        "torch.range(8, 2, -3)",
        "torch.range(0, 8, 2)",
        "torch.range(-3, -1)",
        "torch.range(0, len(a) - 1)",
        "torch.range(0, x.shape[0] * 2, 2, dtype=torch.int64)",
        "torch.range(len(a) + 1, -1, -1)",
    ],
    "API023": [
        "torch.add(x, 2, x)",
        "torch.addcmul(x, 0.5, x, x)",
        "x.clone().add_(-3, x)",
        "x.clone().sub_(2, x + 1)",
        "x.clone().addcmul_(0.5, x, x)",
        "x.addcdiv(0.5, x, x.abs() + 1)",
        "torch.add(torch.add(x, 2, x), 3, x)",
    ],
    "API024": ["nn.Hardtanh(min_value=-0.2, max_value=0.1)(x)", "nn.Hardtanh(max_value=0.3)(x)"],
}
CASES = [(code, expression) for code, expressions in UNCHANGED.items() for expression in expressions]


def evaluate(text: str) -> Any:
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(text, space)
    return space["result"]


def leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (tuple, list)) else [value]


@pytest.mark.parametrize(("code", "expression"), CASES)
def test_same_value(code: str, expression: str) -> None:
    rule = BY_CODE[code]
    before = f"{SETUP}result = {expression}\n"
    outcome = fix_text("net.py", before, [rule], unsafe=True)
    assert outcome.text != before, "not fixed"
    assert not outcome.result.findings or "*torch.lu" in expression
    old, new = leaves(evaluate(before)), leaves(evaluate(outcome.text))
    assert len(old) == len(new)
    for first, second in zip(old, new, strict=True):
        if isinstance(first, torch.Tensor):
            assert (first.dtype, first.shape) == (second.dtype, second.shape)
            assert first.requires_grad == second.requires_grad
            torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
        else:
            assert first == second


def test_singular_vectors() -> None:
    """The third factor is turned round where it is used."""
    before = f"{SETUP}u, s, v = torch.svd(a)\nresult = (u @ torch.diag(s) @ v.mT, v)\n"
    outcome = fix_text("net.py", before, [BY_CODE["API004"]])
    assert "v = v.mH" in outcome.text
    for first, second in zip(evaluate(before), evaluate(outcome.text), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("code", "expression"),
    [
        ("API003", "torch.norm(x, p=order)"),
        ("API003", "torch.norm(x, **options)"),
        ("API003", "torch.norm(*both)"),
        ("API003", "torch.norm(x, p='nuc')"),
        ("API004", "torch.qr(x, some)"),
        ("API004", "torch.svd(x)"),
        ("API004", "torch.chain_matmul(*both)"),
        ("API005", "nn.UpsamplingBilinear2d(*both)"),
        ("API014", "nn.MSELoss(size_average=some)"),
        ("API014", "nn.MSELoss(size_average=False, **options)"),
        ("API020", "torch.stft(x, 16)"),
        ("API021", "torch.range(*both)"),
        ("API021", "torch.range(0, order)"),
        ("API021", "torch.range(0, 1, 0.1)"),
    ],
)
def test_left_alone_where_the_meaning_is_not_known(code: str, expression: str) -> None:
    before = f"{SETUP}def f(x, order, some, both, options):\n    return {expression}\n"
    outcome = fix_text("net.py", before, [BY_CODE[code]], unsafe=True)
    assert outcome.text == before
    assert [finding.code for finding in outcome.found] == [code]


def test_nothing_of_a_template_reaches_the_file() -> None:
    before = SETUP + "result = torch.cholesky({'A': g}['A'], upper=not len('{linalg}'))\n"
    text = fix_text("net.py", before, [BY_CODE["API004"]]).text
    assert "torch.linalg.cholesky({'A': g}['A'], upper=not len('{linalg}'))" in text


def test_many_nested_calls_are_all_mended() -> None:
    """Also more of them than the engine has rounds."""
    lines = "".join(f"y{i} = torch.chain_matmul(a, torch.chain_matmul(a, g), g)\n" for i in range(30))
    text = fix_text("net.py", SETUP + lines, [BY_CODE["API004"]]).text
    assert text.count("torch.linalg.multi_dot") == 60
    assert "chain_matmul" not in text
