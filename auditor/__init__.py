"""auditor: finds the silent mistakes in PyTorch models, fixes them, and proves each fix before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from auditor.pipeline import audit_model as audit
    from auditor.pipeline import check_paths as check

__all__ = ["audit", "check"]


def __getattr__(name: str) -> Any:  # loaded on first use: the command line must start fast
    if name in __all__:
        from auditor import pipeline

        value = {"audit": pipeline.audit_model, "check": pipeline.check_paths}[name]
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
