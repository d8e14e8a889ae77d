"""The definitions agree with torch in float64, and groups are never too small."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from auditor.reference.normalization import batch_norm, group_count, layer_norm, rms_norm

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-8])
def test_against_torch(scale: float, epsilon: float) -> None:
    x, weight, bias = drawn(4, 6) * scale + scale, drawn(6), drawn(6) + 1
    torch.testing.assert_close(rms_norm(x, weight, epsilon), F.rms_norm(x, (6,), weight, epsilon), **EXACT)
    torch.testing.assert_close(rms_norm(x, None, epsilon), F.rms_norm(x, (6,), None, epsilon), **EXACT)
    torch.testing.assert_close(
        layer_norm(x, weight, bias, epsilon), F.layer_norm(x, (6,), weight, bias, epsilon), **EXACT
    )


def test_batch_norm_against_torch() -> None:
    x, weight, bias = drawn(3, 5, 2, 2), drawn(5), drawn(5) + 1
    wanted = F.batch_norm(x, None, None, weight, bias, training=True)
    torch.testing.assert_close(batch_norm(x, weight, bias), wanted, **EXACT)


@pytest.mark.parametrize(
    ("channels", "positions", "groups"),
    [
        (64, 1, 4),
        (64, 64, 16),
        (256, 1, 16),
        (512, 1, 32),
        (1024, 1, 32),
        (8, 1, 1),
        (8, 64, 2),
        (13, 64, 1),
        (48, 1, 3),
    ],
)
def test_group_count(channels: int, positions: int, groups: int) -> None:
    assert group_count(channels, positions) == groups


def test_group_norm_keeps_signal_at_one_position() -> None:
    """With the advised groups no output is constant, even at 1×1."""
    for channels in (16, 32, 64, 96, 512):
        out = torch.nn.GroupNorm(group_count(channels), channels)(drawn(2, channels, 1, 1).float())
        assert out.std() > 0.5
