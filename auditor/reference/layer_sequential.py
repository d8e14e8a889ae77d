"""Layer-sequential unit-variance initialisation, for networks whose topology no formula covers.

Mishkin and Matas, "All you need is a good init", 2016, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from auditor.reference.initialization import orthogonal
from auditor.reference.monte_carlo import Inputs, dropout_active, is_dropout, run_model

WEIGHT_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class _ReachedError(Exception):
    """The layer of interest has run; the rest of the pass is not needed."""


def lsuv(
    model: nn.Module,
    x: Inputs,
    *,
    layers: Sequence[str] | None = None,
    orthogonalise: bool = True,
    tolerance: float = 0.02,
    iterations: int = 10,
) -> dict[str, float]:
    """Make the outputs of every weight layer have variance 1 on the batch `x`, in the order in which they run.

    Each layer (`layers`: paths; by default every linear and convolutional one) gets an orthogonal weight and a bias of
    0 unless `orthogonalise` is false, then is divided by the standard deviation of its output over batch, channels and
    positions until that is within `tolerance` of 1. Returns the standard deviation reached, by path. `x`: the input, or
    a tuple of positional or a mapping of named ones; at least 16 samples of real data, or normal ones of their scale.

    Dropout is off meanwhile, every other module in the mode it is in; buffers (running statistics) are restored.
    Raises ValueError, with the weights as they were, for a layer whose output is constant or not finite, KeyError for a
    path that is not a weight layer. A layer that does not run is left alone and is not in the result.
    """
    chosen = {path: module for path, module in model.named_modules() if isinstance(module, WEIGHT_LAYERS)}
    if layers is not None:
        chosen = {path: chosen[path] for path in layers}
    before = {
        path: [parameter.detach().clone() for parameter in module.parameters()] for path, module in chosen.items()
    }
    try:
        with torch.no_grad(), _quiet(model):
            order = _order(model, x, chosen)
            if orthogonalise:
                for path in order:
                    _restart(chosen[path])
            return {path: _unit(model, x, path, chosen[path], tolerance, iterations) for path in order}
    except Exception:
        with torch.no_grad():
            for path, values in before.items():
                for parameter, value in zip(chosen[path].parameters(), values, strict=True):
                    parameter.copy_(value)
        raise


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Dropout off, all else in its mode, buffers put back."""
    modes = {path: module.training for path, module in model.named_modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with dropout_active(model, lambda path, module: modes[path] and not is_dropout(path, module)):
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)


def _order(model: nn.Module, x: Inputs, layers: Mapping[str, nn.Module]) -> list[str]:
    """Paths of the layers that run, by their first call."""
    order: dict[str, None] = {}

    def hook(path: str) -> Any:
        return lambda *_: order.setdefault(path)

    handles = [module.register_forward_hook(hook(path)) for path, module in layers.items()]
    try:
        run_model(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def _restart(layer: nn.Module) -> None:
    assert isinstance(layer.weight, Tensor)
    orthogonal(layer.weight)
    if isinstance(layer.bias, Tensor):
        layer.bias.zero_()


def _unit(model: nn.Module, x: Inputs, path: str, layer: nn.Module, tolerance: float, iterations: int) -> float:
    """Scale one layer; returns the standard deviation of its output at the end."""
    for _ in range(iterations):
        std = _output_std(model, x, layer)
        if not 0.0 < std < float("inf"):  # also for NaN
            raise ValueError(f"the output of `{path}` has standard deviation {std}: it cannot be scaled to 1")
        if abs(std - 1.0) <= tolerance:
            return std
        assert isinstance(layer.weight, Tensor)
        layer.weight.div_(std)
    return _output_std(model, x, layer)


def _output_std(model: nn.Module, x: Inputs, layer: nn.Module) -> float:
    """Of all outputs in the layer's first call, which ends the pass."""
    found: list[float] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(float(output.float().std()))
        raise _ReachedError

    handle = layer.register_forward_hook(hook)
    try:
        run_model(model, x)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0]
