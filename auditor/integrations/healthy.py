"""`assert_healthy`: an audit as an assertion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from auditor.finding import Severity

if TYPE_CHECKING:
    from auditor.report import Report


class UnhealthyModel(AssertionError):
    """The audit found something, or could not be done. `report`: all of it."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def assert_healthy(
    model: Any,
    inputs: Any,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    fail_on: str = "",
    device: str = "",
    dtype: str = "",
    seed: int | None = None,
) -> Report:
    """Audit a live model and raise `UnhealthyModel` (an AssertionError) if something is found or cannot be done.

    `inputs`: a tensor, a tuple of arguments or a dict of keyword arguments for one forward. `select`, `ignore`: rules
    by code, beginning of a code, or name, on top of the settings in force for the current folder; `fail_on`: "error",
    "warning" (default) or "info"; `device` and `dtype` ("cpu", "float32"): where and in which number format it is run.
    The model, its gradients, modes and hooks and all random generators are left as they were. Returns the report.
    Raises ValueError for an unknown rule or severity, ImportError if torch is not installed.
    """
    from auditor.pipeline import audit_model
    from auditor.settings import load

    settings = load()
    settings = settings.override(
        select=tuple(select),
        ignore=(*settings.ignore, *ignore),
        fail_on=Severity.parse(fail_on) if fail_on else None,
        seed=seed,
    )
    report = audit_model(
        model, inputs, settings, device=device or settings.device, dtype=dtype or settings.dtype, facts=False
    )
    if report.exit_code(settings.fail_on):
        raise UnhealthyModel(f"{type(model).__name__} is not healthy\n\n{report}", report)
    return report
