"""Whether the layers that behave differently in train and eval mode are in the mode they should be in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def mode_dependent(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, layer) of the model's layers whose mode matters: dropouts with a rate above 0, norms with batch or
    running statistics, attention and recurrent layers with dropout."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.dropout import _DropoutNd

    for path, module in model.named_modules():
        rate = getattr(module, "dropout", 0.0)
        if isinstance(module, _DropoutNd):
            depends = module.p > 0
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            depends = isinstance(rate, float) and rate > 0
        else:
            depends = isinstance(module, _NormBase) and module.track_running_stats
        if depends:
            yield path, module


def left_in_train_mode(model: nn.Module) -> list[str]:
    """Paths of the layers that still behave as in training; all of them should be in eval mode at an evaluation."""
    return [path for path, module in mode_dependent(model) if module.training]


def entirely_in_eval_mode(model: nn.Module) -> bool:
    """Whether there are layers whose mode matters and none of them trains: a model that was loaded or evaluated, and
    never put back. A frozen part alone is no mistake."""
    layers = [module for _, module in mode_dependent(model)]
    return bool(layers) and not any(module.training for module in layers)


def shortened(paths: list[str], limit: int = 5) -> str:
    """The first few of them, and how many more there are."""
    rest = len(paths) - limit
    return ", ".join(path or "the model itself" for path in paths[:limit]) + (f" and {rest} more" if rest > 0 else "")
