"""auditor: finds the silent mistakes in PyTorch models, fixes them, and proves each fix before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
DOCUMENTATION = "https://OWNER.github.io/torch-auditor"  # where `make docs` is published

if TYPE_CHECKING:
    from auditor.dynamic.layer_facts import initialize
    from auditor.fix.memory import rewrite
    from auditor.integrations.healthy import assert_healthy
    from auditor.integrations.jupyter import load_ipython_extension
    from auditor.pipeline import audit_model as audit
    from auditor.pipeline import check_paths as check

__all__ = ["assert_healthy", "audit", "check", "initialize", "load_ipython_extension", "rewrite"]
_HOME = {
    "assert_healthy": ("auditor.integrations.healthy", "assert_healthy"),
    "audit": ("auditor.pipeline", "audit_model"),
    "check": ("auditor.pipeline", "check_paths"),
    "initialize": ("auditor.dynamic.layer_facts", "initialize"),
    "load_ipython_extension": ("auditor.integrations.jupyter", "load_ipython_extension"),
    "rewrite": ("auditor.fix.memory", "rewrite"),
}


def __getattr__(name: str) -> Any:  # loaded on first use: the command line must start fast
    if name in _HOME:
        from importlib import import_module

        module, attribute = _HOME[name]
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
