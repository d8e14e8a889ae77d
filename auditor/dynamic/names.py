"""Public names of what a run meets: `torch.nn.functional.dropout`, `torch.Tensor.add`, `torch.nn.Dropout`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

# The first namespace that holds a function names it: `conv2d` is one object under both `torch` and `F`.
NAMESPACES = (
    "torch.nn.functional",
    "torch",
    "torch.fft",
    "torch.linalg",
    "torch.special",
    "torch.nn.init",
    "torch.sparse",
)
CLASS_NAMESPACES = ("torch.nn", "torch.nn.utils.parametrizations", "torch.ao.nn.quantized")
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "truediv", "floordiv", "pow", "matmul", "mod"})


@functools.cache
def _public_functions() -> dict[Any, str]:
    names: dict[Any, str] = {}
    for namespace in NAMESPACES:
        for name, value in vars(importlib.import_module(namespace)).items():
            # NumPy-style aliases (`torch.concatenate`) come after the name torch documents.
            if callable(value) and not name.startswith("_") and not isinstance(value, type):
                names.setdefault(value, f"{namespace}.{name}")
    for name in dir(torch.Tensor):
        value = getattr(torch.Tensor, name, None)
        if callable(value):
            names.setdefault(value, f"torch.Tensor.{name}")
    return names


def function_name(function: Callable[..., Any]) -> str:
    """The public dotted name of a torch function, method or property access; for others `module.qualname`."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__"):
        return f"torch.Tensor.{getattr(function.__self__, '__name__', '?')}"  # type: ignore[attr-defined]
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return f"{class_name(owner)}.{name}"
    public = _public_functions().get(function)
    if public is not None:
        return public
    qualname = (getattr(function, "__qualname__", "") or name or repr(function)).replace("TensorBase.", "Tensor.")
    if qualname.startswith("Tensor."):
        return f"torch.{qualname}"
    module = getattr(function, "__module__", "") or ""
    return f"{module}.{qualname.replace('_VariableFunctionsClass.', '')}".lstrip(".")


def class_name(cls: type) -> str:
    """The public dotted name of a class: `torch.nn.Dropout`, not `torch.nn.modules.dropout.Dropout`."""
    key: Any = cls
    return _class_name(key)


@functools.cache
def _class_name(cls: type) -> str:
    if cls.__module__.startswith("torch."):
        for namespace in CLASS_NAMESPACES:
            if vars(importlib.import_module(namespace)).get(cls.__name__) is cls:
                return f"{namespace}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def operation(function: str) -> str:
    """What a function does, however spelled: `relu` for `torch.relu`, `F.relu_`, `Tensor.relu`; `add`, `__iadd__`."""
    name = function.rpartition(".")[2]
    if not name.startswith("__"):
        return name.rstrip("_")
    name = name.strip("_")
    if name[1:] in ARITHMETIC and name[0] in "ir":  # in-place and reflected
        name = name[1:]
    return "div" if name == "truediv" else name
