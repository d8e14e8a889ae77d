"""Normalisations against torch, forward and backward, in two precisions; and what ε outside the root does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from auditor.reference.normalization import batch_norm, group_norm, layer_norm, rms_norm, rms_norm_outside

Function = Callable[..., Tensor]

# Ours, torch's, the shape of x, the size of γ, whether there is a β
PAIRS: dict[str, tuple[Function, Function, tuple[int, ...], int, bool]] = {
    "rms": (lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, (6,), w, 1e-6), (4, 3, 6), 6, False),
    "layer": (layer_norm, lambda x, w, b: F.layer_norm(x, (6,), w, b), (4, 3, 6), 6, True),
    "batch": (batch_norm, lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (4, 6, 3, 2), 6, True),
    "group 1": (lambda x, w, b: group_norm(x, 1, w, b), lambda x, w, b: F.group_norm(x, 1, w, b), (4, 6, 5), 6, True),
    "group 2": (
        lambda x, w, b: group_norm(x, 2, w, b),
        lambda x, w, b: F.group_norm(x, 2, w, b),
        (4, 6, 3, 2),
        6,
        True,
    ),
    "group 6": (
        lambda x, w, b: group_norm(x, 6, w, b),
        lambda x, w, b: F.group_norm(x, 6, w, b),
        (4, 6, 3, 2),
        6,
        True,
    ),
    "group flat": (lambda x, w, b: group_norm(x, 2, w, b), lambda x, w, b: F.group_norm(x, 2, w, b), (4, 6), 6, True),
}
# rows of x: of different size, far from zero, and zero
ROWS = {"normal": (1.0, 0.0), "tiny": (1e-3, 0.0), "huge": (1e3, 0.0), "shifted": (1.0, 20.0), "zero": (0.0, 0.0)}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradients(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of a fixed combination of its elements with respect to all inputs."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad((y * drawn(*y.shape, seed=1).to(y.dtype)).sum(), inputs)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", PAIRS)
def test_against_torch(name: str, rows: str) -> None:
    ours, torchs, shape, size, has_bias = PAIRS[name]
    scale, shift = ROWS[rows]
    inputs = [drawn(*shape, seed=2) * scale + shift, drawn(size, seed=3), *[drawn(size, seed=4)] * has_bias]
    for dtype, epsilon in ((torch.float64, 1e-11), (torch.float32, 2**-23 * 100 * (1 + shift))):
        typed = [tensor.to(dtype) for tensor in inputs]
        for mine, theirs in zip(with_gradients(ours, typed), with_gradients(torchs, typed), strict=True):
            assert mine.dtype == dtype
            error = float((mine - theirs).abs().max())
            assert error <= epsilon * max(float(theirs.abs().max()), 1e-300)


@pytest.mark.parametrize("function", [rms_norm, layer_norm, lambda x: group_norm(x, 2)])
def test_samples_do_not_mix(function: Callable[[Tensor], Tensor]) -> None:
    x = drawn(4, 6).requires_grad_()
    (gradient,) = torch.autograd.grad((function(x)[0] * drawn(6, seed=1)).sum(), x)
    assert bool(gradient[0].any())
    assert not gradient[1:].any()


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="5 channels"):
        group_norm(drawn(2, 5), 2)


def test_epsilon_outside_is_its_square_inside() -> None:
    x = drawn(64, 256)
    for scale in (1.0, 1e-3):
        outside = rms_norm_outside(scale * x, epsilon=1e-8)
        torch.testing.assert_close(outside, rms_norm(scale * x, epsilon=1e-16), rtol=1.2e-5, atol=0)
        # not with the same ε: at rms 1e-3 the output would be 0.41 larger
        difference = float((outside / rms_norm(scale * x, epsilon=1e-6) - 1).max())
        assert difference == pytest.approx(5e-7 if scale == 1.0 else 0.414, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_row(dtype: torch.dtype) -> None:
    for function, finite in ((rms_norm, True), (rms_norm_outside, False)):
        epsilon = 1e-6 if function is rms_norm else 1e-8
        x = torch.zeros(2, 8, dtype=dtype, requires_grad=True)
        y = function(x, epsilon=epsilon)
        y.sum().backward()
        # 1e-8 is 0 in half precision only; the slope of the root at 0 is infinite in all
        assert bool(y.isfinite().all()) is (finite or dtype != torch.float16)
        assert bool(x.grad.isfinite().all()) is finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_against_torch(name: str, dtype: torch.dtype) -> None:
    ours, torchs, shape, size, has_bias = PAIRS[name]
    for scale in (1e-3, 1.0, 3000.0):
        inputs = [drawn(*shape, seed=2) * scale, drawn(size, seed=3), *[drawn(size, seed=4)] * has_bias]
        typed = [tensor.to(dtype) for tensor in inputs]
        for mine, theirs in zip(with_gradients(ours, typed), with_gradients(torchs, typed), strict=True):
            assert mine.dtype == dtype
            assert bool(mine.isfinite().all())
            assert float((mine - theirs).abs().max()) <= 8 * torch.finfo(dtype).eps * float(theirs.abs().max())


def test_huge_rows_in_half_precision() -> None:
    x = torch.full((1, 8), 3000.0, dtype=torch.float16)
    torch.testing.assert_close(rms_norm(x), torch.ones_like(x))
    assert not rms_norm_outside(x).any()  # the squares overflow


def test_gradients_at_small_rows() -> None:
    x = torch.full((1, 8), 1e-12, dtype=torch.float64, requires_grad=True)
    for function, gain in ((rms_norm, 1e3), (rms_norm_outside, 1e8)):
        weights = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((function(x) * weights).sum(), x)
        assert float(gradient.abs().max()) == pytest.approx(gain, rel=0.01)
