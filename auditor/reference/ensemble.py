"""Dropout as an ensemble: every mask is a subnetwork, and one scaled pass stands for the average of all of them.

For n units under dropout there are 2ⁿ subnetworks, mask m having the weight ∏ p^(1 − mᵢ) (1 − p)^mᵢ. How good the
stand-in is depends on the network (Srivastava et al. 2014; Baldi and Sadowski, "Understanding Dropout", 2013;
Goodfellow et al., "Deep Learning", section 7.12):

* a linear network behind the dropout: the scaled pass is exactly the arithmetic mean of the outputs;
* one linear layer and a softmax: it is exactly the normalised geometric mean of the probabilities;
* anything deeper: neither; `enumerate_subnetworks` says how far off it is for a given head and input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from auditor.reference.monte_carlo import dropout_active, is_dropout

# Subnetworks evaluated in one pass: rows of one batch.
_ROWS = 4096
_CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """All subnetworks of a head, averaged. Tensors have the shape and dtype of the head's output.

    `subnetworks`: 2ⁿ. `arithmetic`: their mean output, or mean probabilities for a classifier. `variance`: its variance
    over subnetworks. `geometric`: their normalised geometric mean, for a classifier. `scaled`: the one pass in
    evaluation mode.
    """

    subnetworks: int
    arithmetic: Tensor
    variance: Tensor
    scaled: Tensor
    geometric: Tensor | None

    @property
    def arithmetic_gap(self) -> float:
        """The largest difference between the scaled pass and the arithmetic mean."""
        return float((self.scaled - self.arithmetic).abs().max())

    @property
    def geometric_gap(self) -> float:
        """The largest difference between the scaled pass and the geometric mean; ValueError if not a classifier."""
        if self.geometric is None:
            raise ValueError("a geometric mean is taken of a classifier's probabilities only")
        return float((self.scaled - self.geometric).abs().max())


def enumerate_subnetworks(head: nn.Module, x: Tensor, *, classifier: bool = False, most_units: int = 16) -> Ensemble:
    """Run every subnetwork of `head` on `x` (N, …), exactly, and average them.

    `classifier`: the outputs are logits over the last axis. All elements (channels, for `torch.nn.Dropout2d` and its
    like) that reach a dropout layer with p > 0 count as units, for each call of it; a layer that is called twice
    has two masks. ValueError if they are more than `most_units` (cost doubles with each) or none, TypeError for dropout
    that is not a mask of units (alpha dropout, attention, recurrent layers, p = 1). The head is run without gradients,
    in evaluation mode, which is restored.
    """
    with torch.no_grad(), dropout_active(head, lambda path, module: False):
        calls = _calls(head, x[:1])
        units = sum(call.units for call in calls)
        if not 0 < units <= most_units:
            raise ValueError(f"{units} units are under dropout; between 1 and {most_units} can be enumerated")
        masks, weights = _masks(calls, x)
        scaled = head(x)
        rows = [_average(head, calls, sample, masks, weights, classifier) for sample in x.unsqueeze(1)]
    arithmetic, variance, geometric = (torch.cat(part) for part in zip(*rows, strict=True))
    return Ensemble(
        subnetworks=len(masks),
        arithmetic=arithmetic,
        variance=variance,
        scaled=scaled.softmax(-1) if classifier else scaled,
        geometric=geometric if classifier else None,
    )


@dataclass(slots=True)
class _Call:
    """One call of a dropout layer: its rate, and how its mask is shaped for one sample."""

    rate: float
    shape: tuple[int, ...]
    units: int = field(init=False)

    def __post_init__(self) -> None:
        self.units = int(torch.Size(self.shape).numel())


def _dropouts(head: nn.Module) -> list[nn.Module]:
    """The dropout layers that are on. Raises TypeError for those whose subnetworks are not masks of units."""
    found = [(path, module) for path, module in head.named_modules() if is_dropout(path, module)]
    for path, module in found:
        if not isinstance(module, (nn.Dropout, *_CHANNELWISE)) or module.p >= 1.0:
            raise TypeError(f"`{path}`, {module}, does not drop units with a mask")
    return [module for _, module in found]


Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]


@contextmanager
def _hooked(head: nn.Module, hook: Hook) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in _dropouts(head)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _calls(head: nn.Module, sample: Tensor) -> list[_Call]:
    """The calls of dropout layers in one pass, in order."""
    calls: list[_Call] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        if isinstance(layer, _CHANNELWISE):
            shape = (shape[0], *[1] * (len(shape) - 1))
        calls.append(_Call(float(layer.p), shape))  # type: ignore[arg-type]

    with _hooked(head, note):
        head(sample)
    return calls


def _masks(calls: list[_Call], x: Tensor) -> tuple[Tensor, Tensor]:
    """Every mask (2ⁿ, n) of zeros and ones, and its probability (2ⁿ) in double precision."""
    rates = torch.tensor([call.rate for call in calls for _ in range(call.units)], dtype=torch.float64)
    numbers = torch.arange(2 ** len(rates))
    kept = numbers[:, None].bitwise_right_shift(torch.arange(len(rates))).bitwise_and(1).bool()
    probability = torch.where(kept, 1.0 - rates, rates).prod(1)
    return kept.to(x.device), probability


def _average(
    head: nn.Module, calls: list[_Call], sample: Tensor, masks: Tensor, weights: Tensor, classifier: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Arithmetic mean, variance and normalised geometric mean over all masks, for one sample (1, …)."""
    outputs = torch.cat([_run(head, calls, sample, masks[at : at + _ROWS]) for at in range(0, len(masks), _ROWS)])
    back: dict[str, Any] = {"dtype": outputs.dtype, "device": outputs.device}
    outputs = outputs.cpu().double()  # Apple's GPUs have no double precision
    weights = weights.reshape(-1, *[1] * (outputs.dim() - 1))
    values = outputs.softmax(-1) if classifier else outputs
    mean = (weights * values).sum(0, keepdim=True)
    variance = (weights * (values - mean).square()).sum(0, keepdim=True)
    geometric = (weights * outputs.log_softmax(-1)).sum(0, keepdim=True).softmax(-1) if classifier else mean
    return mean.to(**back), variance.to(**back), geometric.to(**back)


def _run(head: nn.Module, calls: list[_Call], sample: Tensor, masks: Tensor) -> Tensor:
    """The outputs of the subnetworks of `masks` (B, n), as one batch of B."""
    coming, start = iter(calls), 0

    def apply(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal start
        call = next(coming)
        mask = masks[:, start : start + call.units].reshape(-1, *call.shape)
        start += call.units
        return output * mask.to(output.dtype) / (1.0 - call.rate)

    with _hooked(head, apply):
        result: Tensor = head(sample.expand(len(masks), *sample.shape[1:]))
    return result
