"""Formulas of dropout: what a chain of rates amounts to, and which rate suits which layer.

The table follows Srivastava et al. 2014 (fully connected and input layers), Tompson et al. 2015 (convolutions),
Vaswani et al. 2017 (attention, residual branches) and Zaremba et al. 2014 (recurrent layers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# What the rate acts on → the range advised for it. "linear" is refined by its width below.
ADVISED: dict[str, tuple[float, float]] = {
    "the input": (0.1, 0.2),
    "a convolution": (0.0, 0.1),
    "pooled features": (0.2, 0.5),
    "attention weights": (0.0, 0.1),
    "a residual branch": (0.0, 0.1),
    "a recurrent layer": (0.2, 0.5),
    "an embedding": (0.1, 0.2),
    "a hidden layer": (0.1, 0.5),
}


def effective_rate(rates: Iterable[float]) -> float:
    """The share of units lost behind independent dropouts with no weights in between: 1 − ∏(1 − p)."""
    return 1.0 - math.prod(1.0 - rate for rate in rates)


def noise_to_signal(rates: Iterable[float]) -> float:
    """Variance of the noise that such a chain multiplies in, relative to the squared signal: ∏1/(1 − p) − 1.

    Infinite if any rate is 1.
    """
    keep = 1.0 - effective_rate(rates)
    return 1.0 / keep - 1.0 if keep > 0 else math.inf


def advised_range(kind: str, width: int | None = None) -> tuple[float, float]:
    """The rates advised behind a layer of this kind ("linear" or a key of `ADVISED`) with `width` units.

    Raises KeyError for another kind. A linear layer of unknown width gets the range of hidden layers in general.
    """
    if kind != "linear" or width is None:
        return ADVISED["a hidden layer" if kind == "linear" else kind]
    if width >= 1024:
        return 0.5, 0.5
    return (0.3, 0.5) if width >= 256 else (0.1, 0.3)
