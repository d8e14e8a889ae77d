"""How much more the input of a BatchNorm varies with the dropouts before it than without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from auditor.dynamic.dropouts import ACTIVE, POOLS, RESHAPES, WEIGHTED, LiveDropout, behind, live_dropouts
from auditor.dynamic.record import cloned
from auditor.dynamic.state import preserved, seed_all

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts

PASSES = 8
MOST_WEIGHTS = 2
_DROPS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}


def variance_shifts(capture: Capture) -> Iterator[tuple[LiveDropout, ModuleFacts, float]]:
    """Each dropout layer whose signal goes on to a BatchNorm in train mode, through activations, pooling and at most
    two weight layers; with that norm and the ratio of the variances of its input, without dropout to with it (median
    over channels, mean over passes)."""
    pairs = []
    for dropout in live_dropouts(capture):
        norm = _norm_behind(capture, dropout)
        layer = capture.modules[dropout.module].module
        if norm is not None and isinstance(layer, _DropoutNd):
            pairs.append((dropout, norm))
    if not pairs:
        return
    norms = {norm.path: norm.module for _, norm in pairs}
    with preserved(capture.model), torch.no_grad():
        noisy = [_variances(capture, norms, seed) for seed in range(PASSES)]
        for module in capture.model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
        calm = _variances(capture, norms, 0)
    for dropout, norm in pairs:
        if norm.path in calm:
            mean = torch.stack([passed[norm.path] for passed in noisy]).mean(0)
            ratios = (calm[norm.path] / mean)[mean > 0]
            if ratios.numel():
                yield dropout, norm, float(ratios.median())


def _norm_behind(capture: Capture, dropout: LiveDropout) -> ModuleFacts | None:
    node = dropout.node
    for _ in range(MOST_WEIGHTS + 1):
        user = behind(node, ACTIVE | POOLS | RESHAPES | _DROPS)
        if user is None or not user.inputs or user.inputs[0].op == "get_attr":
            return None
        if user.operation == "batch_norm":
            trains = user.argument("training", 5, False) is True
            return capture.modules.get(user.module) if trains else None
        if user.operation not in WEIGHTED:
            return None
        node = user
    return None


def _variances(capture: Capture, norms: dict[str, nn.Module], seed: int) -> dict[str, torch.Tensor]:
    """Variance per channel of what each norm is given in train mode."""
    found: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            given = args[0].double()
            found[path] = given.transpose(0, 1).flatten(1).var(1) if given.dim() > 1 else given.var(0)

        return hook

    with contextlib.ExitStack() as stack:
        for path, module in norms.items():
            stack.callback(module.register_forward_pre_hook(keep(path)).remove)
        capture.model.train()
        seed_all(seed)
        args, kwargs = cloned((tuple(capture.inputs.args), dict(capture.inputs.kwargs)))
        capture.model(*args, **kwargs)
    return found
