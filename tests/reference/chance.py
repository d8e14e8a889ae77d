"""How far a random figure may be from what is expected before a test may fail: false alarms below 1e-6."""

from __future__ import annotations

import math

import torch

FALSE_ALARM = 1e-6
# |z| of a standard normal variable that is exceeded with probability 1e-9: a thousand comparisons stay below 1e-6.
Z = 6.11

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]


def binomial_region(n: int, p: float) -> tuple[int, int]:
    """The counts k of n trials with lowest ≤ k ≤ highest are those outside both exact tails of 5e-7."""

    def probability(k: int) -> float:
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))

    def end(counts: range) -> int:
        tail = 0.0
        for k in counts:
            tail += probability(k)
            if tail > FALSE_ALARM / 2:
                return k
        raise AssertionError("the probabilities add up to 1")

    return end(range(n + 1)), end(range(n, -1, -1))
