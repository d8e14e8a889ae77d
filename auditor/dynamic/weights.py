"""Reads files of trained weights and loads them into a model: what fits, and what does not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Where checkpoints keep the state of the model, and what wrappers put before its names.
PLACES = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "ema",
    "generator",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "_forward_module.")
SHOWN = 3


class WeightsError(Exception):
    """A file that holds no weights that could be loaded; `remedy` says what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Fit:
    """How a file fits a model. Names are the model's, `unexpected` ones the file's; `mismatched` with both shapes."""

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def complaints(self, file: str) -> Iterator[tuple[str, str]]:
        """What does not fit, each with what helps."""
        if not self.loaded:
            names = f"the file has {_listed(self.unexpected)}, the model {_listed(self.missing)}"
            yield f"nothing in {file} belongs to it: {names}", "name the model they are of, as in `file.py::Net`"
            return
        if self.missing:
            message = f"{file} lacks {_listed(self.missing)}: these keep their initial values"
            yield message, "is it of an older version of the model, or of another configuration?"
        if self.mismatched:
            first = [f"`{name}` ({_shape(there)}, not {_shape(here)})" for name, here, there in self.mismatched[:SHOWN]]
            more = len(self.mismatched) - len(first)
            message = f"{file} has other shapes for {', '.join(first)}" + (f" and {more} more" if more else "")
            yield message, "build the model as it was built for these weights: see `kwargs` of [tool.auditor.targets]"
        if self.unexpected:
            message = f"{file} has {_listed(self.unexpected)}, which the model has not: they are dropped"
            yield message, "is it of another version of the model, or of another configuration?"


def read(file: str) -> dict[str, torch.Tensor]:
    """The tensors in a file, by name; nothing in it is executed. Raises WeightsError.

    Read are `.safetensors`, what `torch.save` wrote (a state dict, also inside a checkpoint), and the index of either
    in several parts (`*.index.json`).
    """
    path = Path(file)
    if not path.is_file():
        raise WeightsError(f"there is no file {file}", "name it as seen from the current folder")
    if path.name.endswith(".index.json"):
        return _parts(path)
    held = _safetensors(path) if path.suffix == ".safetensors" else _saved(path)
    tensors = _state(held)
    if not tensors:
        raise WeightsError(f"{file} holds no named tensors", "save the model's `state_dict()`")
    return tensors


def _parts(index: Path) -> dict[str, torch.Tensor]:
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no index of weights ({error!r})") from error
    found: dict[str, torch.Tensor] = {}
    for part in parts:
        found |= read(str(index.parent / os.path.basename(str(part))))
    return found


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(f"{path} needs the package safetensors", "install it: `pip install safetensors`") from error
    try:
        return load_file(path)
    except Exception as error:  # its own exceptions, and those of the file system
        raise WeightsError(f"{path} cannot be read: {_line(error)}") from error


def _saved(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what pickle, zipfile and the file system raise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            remedy = "save the state dict alone: `torch.save(model.state_dict(), …)`"
            raise WeightsError(f"{path} holds more than tensors, and code in it is not run", remedy) from error
        raise WeightsError(f"{path} cannot be read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _state(held: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, or of the one inside a checkpoint."""
    if not isinstance(held, Mapping):
        return {}
    tensors = {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)}
    inside = next((held[place] for place in PLACES if isinstance(held.get(place), Mapping)), None)
    return _state(inside) if inside is not None and len(tensors) < len(inside) else tensors


def load_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Fit:
    """Load what fits by name and shape into `model`, in place. What wrappers put before all names is taken off."""
    own = model.state_dict()
    tensors = _unwrapped(tensors, own)
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    mismatched = tuple(
        (name, tuple(own[name].shape), tuple(value.shape))
        for name, value in tensors.items()
        if name in own and own[name].shape != value.shape
    )
    model.load_state_dict(fitting, strict=False)
    # A tied weight may be saved under one of its names; counters of batches came late.
    same = {own[name].data_ptr() for name in fitting if own[name].numel()}
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    return Fit(
        loaded=tuple(fitting),
        missing=tuple(name for name in missing if own[name].data_ptr() not in same),
        unexpected=tuple(name for name in tensors if name not in own),
        mismatched=mismatched,
    )


def _unwrapped(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The names without a wrapper's prefix, if more of them are then the model's."""
    best = tensors
    for prefix in PREFIXES * 2:  # wrappers come in any order
        if all(name.startswith(prefix) for name in best):
            bare = {name.removeprefix(prefix): value for name, value in best.items()}
            if sum(name in own for name in bare) > sum(name in own for name in best) or not any(n in own for n in best):
                best = bare
    return best


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN]) or "nothing"
    rest = len(names) - SHOWN
    return shown + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
