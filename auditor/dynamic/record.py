"""Run a model once and write down every torch call it makes, as a `torch.fx.Graph` that can be run again.

Unlike a symbolic trace this sees real values, so it works for any model that runs, and shapes, dtypes and figures come
with it. It records one path: branches not taken are not in the graph.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import sysconfig
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import fx
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode

from auditor.dynamic.names import class_name, function_name
from auditor.finding import Location

TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "grad", "real", "imag"})
NO_TENSOR = frozenset({"size", "dim", "__len__", "numel", "stride", "is_floating_point", "is_contiguous", "data_ptr", "item"})
MAX_DEPTH = 8  # nesting of containers searched for tensors
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one floating-point tensor. `zeros`: share of entries that are exactly 0. NaN and Inf propagate."""

    rms: float
    mean: float
    std: float
    zeros: float


def stats_of(tensor: torch.Tensor) -> Stats | None:
    """Figures of a real floating-point tensor with values, else None. Half precisions are summed in float32."""
    if not _has_values(tensor) or not tensor.is_floating_point():
        return None
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return None
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    rms = float(torch.linalg.vector_norm(tensor, dtype=wide)) / tensor.numel() ** 0.5
    mean = float(tensor.mean(dtype=wide))
    variance = rms * rms - mean * mean
    if variance < 1e-4 * mean * mean:  # the difference has lost its digits
        variance = float(tensor.to(wide).var(correction=0))
    zeros = 1 - int(torch.count_nonzero(tensor)) / tensor.numel()
    return Stats(rms, mean, variance**0.5 if variance == variance else variance, zeros)


def _has_values(tensor: torch.Tensor) -> bool:
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and not hasattr(tensor, "fake_mode")


def tensors_in(tree: Any, depth: int = 0) -> list[torch.Tensor]:
    """All tensors in nested containers, dataclasses and model-output objects, in order, each as often as it occurs."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if depth > MAX_DEPTH or tree is None or isinstance(tree, (str, int, float, type, torch.nn.Module)):
        return []
    if isinstance(tree, Mapping):
        items: Any = tree.values()
    elif isinstance(tree, (list, tuple, set)):
        items = tree
    else:
        items = vars(tree).values() if hasattr(tree, "__dict__") and not callable(tree) else ()
    return [tensor for item in items for tensor in tensors_in(item, depth + 1)]


# Where the user's code is ---------------------------------------------------------------------------------------------

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
LIBRARIES = (
    HERE,
    os.path.dirname(torch.__file__) + os.sep,
    *(f"{os.sep}{name}{os.sep}" for name in ("einops", "einx", "jaxtyping", "beartype", "typeguard", "opt_einsum")),
)
STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep


@functools.lru_cache(maxsize=None)
def is_user_file(path: str) -> bool:
    """Whether code in this file is somebody's model: not torch, the standard library, einops and the like, or ours."""
    if path.startswith("<"):
        return path.startswith(("<ipython", "<string"))
    if any(path.startswith(library) if library.startswith(HERE[:1]) and os.path.isabs(library) and os.path.isdir(library) else library in path for library in LIBRARIES):
        return False
    return not path.startswith(STANDARD_LIBRARY) or "site-packages" in path


def user_location() -> Location:
    """The innermost line of the stack that is the user's; `Location("")` if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        code: CodeType = frame.f_code
        if is_user_file(code.co_filename):
            return Location(code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return Location("")
