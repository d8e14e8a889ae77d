"""Checks a fix's claims by running the model before and after it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from auditor.dynamic.record import eager
from auditor.dynamic.state import RandomState
from auditor.fix import compare, measure
from auditor.fix.certificate import ClaimResult
from auditor.fix.claims import Claim
from auditor.fix.trial import Subject

__all__ = ["ClaimResult", "Subject", "validate"]


def validate(
    before: Subject,
    after: Subject,
    claims: Sequence[Claim],
    *,
    moved: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[ClaimResult]:
    """One result per claim, in order. Runs user code; raises nothing that user code raises.

    Equal-claims compare both models with the same, non-default weights, in float64 first (relative difference up to
    1e-10; what rounding explains in float32 where the code itself computes in float32), then in the dtype and on the
    device asked for. Improve-claims are measured on both sides: not met before, met after. `moved` maps names of
    parameters that the fix moves from old to new. The process's random state and switches are left as they were.
    """
    moved = dict(moved or {})
    comparison = compare.Comparison(before, after, claims, moved)
    benches = measure.benches(before, after, moved)
    results = []
    with _undisturbed():
        for claim in claims:
            progress(claim.text)
            if claim.must == "equal":
                results.append(comparison.check(claim))
            else:
                results.append(measure.measure(claim, benches))
    return results


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Full float32 precision on GPUs, no compilation, no warnings; everything back afterwards."""
    generators, dtype = RandomState.now(), torch.get_default_dtype()
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with eager(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.set_default_dtype(dtype)
        generators.restore()
