"""The formulas of dropout: against sampling, and against the table they are taken from."""

from __future__ import annotations

import math

import pytest
import torch

from auditor.reference.dropout import ADVISED, advised_range, effective_rate, noise_to_signal

CHAINS = [[0.1], [0.1, 0.1], [0.5, 0.5], [0.2, 0.3, 0.4]]


@pytest.mark.parametrize("rates", CHAINS, ids=str)
def test_chain_against_sampling(rates: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.ones(200_000, dtype=torch.float64)
    for rate in rates:
        keep = torch.rand(signal.shape, generator=generator) >= rate
        signal = signal * keep / (1 - rate)
    assert float((signal == 0).double().mean()) == pytest.approx(effective_rate(rates), abs=0.006)
    assert float(signal.var()) == pytest.approx(noise_to_signal(rates), rel=0.02)


def test_ends_of_the_range() -> None:
    assert effective_rate([]) == 0
    assert effective_rate([0.3, 1.0]) == 1
    assert noise_to_signal([1.0]) == math.inf


@pytest.mark.parametrize(
    ("width", "advised"), [(2048, (0.5, 0.5)), (1024, (0.5, 0.5)), (256, (0.3, 0.5)), (64, (0.1, 0.3))]
)
def test_linear_layers_by_width(width: int, advised: tuple[float, float]) -> None:
    assert advised_range("linear", width) == advised


def test_table() -> None:
    assert advised_range("linear") == ADVISED["a hidden layer"]
    assert all(0 <= low <= high <= 0.5 for low, high in ADVISED.values())
    with pytest.raises(KeyError):
        advised_range("a house")
