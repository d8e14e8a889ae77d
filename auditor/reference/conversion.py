"""From one normalisation to another that takes its place, and what each of these rewrites keeps.

| to | same function | when |
|---|---|---|
| `to_sync_batch_norm` | on one device yes; on several, statistics are those of all of them | small batch per device |
| `to_frozen_batch_norm` | in evaluation yes; in training it is that of evaluation | fine-tuning with small batches |
| `to_group_norm` | no: statistics of groups of channels within each sample | convolutions trained with small batches |
| `to_layer_norm` | no: statistics of all channels at one position of one sample | features and sequences |

`by_context` chooses among these. `to_built_in` puts `torch.nn.RMSNorm` or `torch.nn.LayerNorm` in the place of a layer
that computes the same by hand: the same function, with the same parameters.

All keep, as the same objects: γ and β (so that an optimiser, tied weights and `requires_grad` go on as before), hooks;
and ε, dtype, device, mode and the attributes a user has set on the layer. They refuse, with a ValueError that says why,
what they cannot keep: subclasses with a `forward` of their own, parametrized and lazy layers. The given layer is not
changed. `convert` replaces every such layer of a model, an instance that is used twice by one instance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from auditor.reference.normalization import group_count

Layer = TypeVar("Layer", bound=nn.Module)

_AFFINE = ("weight", "bias")
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A row of the table: the function, and in words what it keeps and what it changes."""

    convert: Callable[..., nn.Module]
    keeps: tuple[str, ...]
    changes: tuple[str, ...]


class FrozenBatchNorm(nn.Module):
    """BatchNorm that always normalises with its stored statistics, and never updates them.

    (x − running_mean) / √(running_var + ε) · γ + β in both modes, x (N, C, …). Names in the state dict are those of
    `torch.nn.BatchNorm2d`. γ and β are trained if they require gradients.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


def to_group_norm(bn: nn.Module, groups: int | None = None, positions: int = 1) -> nn.GroupNorm:
    """`torch.nn.GroupNorm` with the γ, β and ε of a BatchNorm layer; another function.

    `groups`: None for `normalization.group_count`, for which `positions` is the smallest map it sees (height × width).
    Statistics are gone: training and evaluation are one function, samples are independent, batches of one work.
    """
    norm = _checked(bn)
    channels = norm.num_features
    replacement = nn.GroupNorm(groups or group_count(channels, positions), channels, norm.eps, affine=norm.affine)
    return carry_over(norm, replacement, _AFFINE)


def to_layer_norm(bn: nn.Module) -> nn.LayerNorm:
    """`torch.nn.LayerNorm` over the last axis with the γ, β and ε of a BatchNorm1d on (N, C); another function.

    For features last only; on (N, C, L) or (N, C, H, W) the channels are not last: use `to_group_norm(bn, groups=1)`,
    which normalises each sample over channels and positions. ValueError for BatchNorm2d and 3d for that reason.
    """
    norm = _checked(bn)
    if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
        raise ValueError("LayerNorm normalises the last axis, here a position; GroupNorm with one group fits maps")
    return carry_over(norm, nn.LayerNorm(norm.num_features, norm.eps, elementwise_affine=norm.affine), _AFFINE)


def to_frozen_batch_norm(bn: nn.Module) -> FrozenBatchNorm:
    """`FrozenBatchNorm` with all of a BatchNorm layer: exactly its outputs in evaluation, now in training too.

    ValueError for a layer without statistics of its own or with those of a new one (mean 0, variance 1): frozen, it
    would never normalise.
    """
    norm = _checked(bn)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be frozen")
    if not _is_trained(norm):
        raise ValueError("its running statistics are those of a new layer; only a trained BatchNorm can be frozen")
    replacement = carry_over(norm, FrozenBatchNorm(norm.num_features, norm.eps, norm.affine), _AFFINE)
    replacement._buffers.update({name: _copy(value) for name, value in norm._buffers.items()})
    return replacement


def to_sync_batch_norm(bn: nn.Module, process_group: Any = None) -> nn.SyncBatchNorm:
    """`torch.nn.SyncBatchNorm` with all of a BatchNorm layer, `torch.nn.SyncBatchNorm.convert_sync_batchnorm` plus what
    it loses (hooks, a layer's own attributes); without a process group the same function, on any device.
    """
    norm = _checked(bn)
    replacement = nn.SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, process_group
    )
    replacement = carry_over(norm, replacement, _AFFINE)
    replacement._buffers.update({name: _copy(value) for name, value in norm._buffers.items()})
    return replacement


def by_context(bn: nn.Module, shape: Sequence[int], distributed: bool = False) -> nn.Module:
    """What takes the place of a BatchNorm that gets too few samples, of shape `shape`, (N, C, …), to train with.

    `distributed`: other processes train along, and statistics can be those of all of them: SyncBatchNorm. Else a layer
    that has been trained is frozen, features (N, C) get LayerNorm and maps GroupNorm.
    """
    norm = _checked(bn)
    if distributed:
        return to_sync_batch_norm(norm)
    if _is_trained(norm):
        return to_frozen_batch_norm(norm)
    if len(shape) == 2:
        return to_layer_norm(norm)
    return to_group_norm(norm, positions=math.prod(shape[2:]))


def _is_trained(bn: _BatchNorm) -> bool:
    """Whether it has running statistics other than those of a new layer."""
    mean, variance = bn.running_mean, bn.running_var
    if mean is None or variance is None:
        return False
    return bool(torch.count_nonzero(mean) or torch.count_nonzero(variance - 1))


class NamedNorm(nn.Module):
    """RMSNorm or LayerNorm over the last axis by torch's own function, with parameters of any name.

    `function`: "rms_norm" or "layer_norm"; `scale`, `shift`: names of its parameters ("" for none), which stay in the
    state dict as they are; `offset`: the scale is 1 + w, as in Gemma.
    """

    def __init__(self, function: str, width: int, eps: float, scale: str, shift: str, offset: bool) -> None:
        super().__init__()
        self.function, self.width, self.eps, self.offset = function, width, eps, offset
        self.scale_name, self.shift_name = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self._parameters[self.scale_name] if self.scale_name else None
        weight = 1.0 + weight if self.offset and weight is not None else weight
        if self.function == "rms_norm":
            return F.rms_norm(x, (self.width,), weight, self.eps)
        bias = self._parameters[self.shift_name] if self.shift_name else None
        return F.layer_norm(x, (self.width,), weight, bias, self.eps)

    def extra_repr(self) -> str:
        scale = f"1 + {self.scale_name}" if self.offset else self.scale_name
        names = ", ".join(filter(None, (scale, self.shift_name)))
        return f"{self.function}, {self.width}, eps={self.eps}" + (f", {names}" if names else "")


def to_built_in(
    norm: nn.Module, function: str, width: int, eps: float, weight: str = "", bias: str = "", offset: bool = False
) -> nn.Module:
    """`torch.nn.RMSNorm` or `torch.nn.LayerNorm` in the place of a layer that writes out that `function`.

    `width` of the last axis. Parameters, called `weight` and `bias`, stay the same objects under the same names; where
    torch's layer has no such names, or `offset` says that the scale is 1 + w, it is a `NamedNorm`. ValueError for a
    layer with buffers or layers of its own.
    """
    if norm._buffers or norm._modules:
        raise ValueError(f"{type(norm).__name__} has buffers or layers of its own")
    kept = tuple(name for name in (weight, bias) if name)
    if offset or kept not in ((), ("weight",), ("weight", "bias")):
        return carry_over(norm, NamedNorm(function, width, eps, weight, bias, offset), kept)
    if function == "rms_norm":
        return carry_over(norm, nn.RMSNorm(width, eps, elementwise_affine=bool(kept)), kept)
    return carry_over(norm, nn.LayerNorm(width, eps, elementwise_affine=bool(kept), bias=bool(bias)), kept)


CONVERSIONS: dict[str, Conversion] = {
    "group": Conversion(
        to_group_norm,
        keeps=("γ, β", "ε", "dtype, device", "mode", "hooks"),
        changes=("outputs in training and evaluation", "no running statistics", "samples no longer mix"),
    ),
    "layer": Conversion(
        to_layer_norm,
        keeps=("γ, β", "ε", "dtype, device", "mode", "hooks"),
        changes=("outputs in training and evaluation", "no running statistics", "samples no longer mix"),
    ),
    "frozen": Conversion(
        to_frozen_batch_norm,
        keeps=("γ, β", "ε", "dtype, device", "mode", "hooks", "running statistics", "outputs in evaluation"),
        changes=("outputs in training are those of evaluation", "samples no longer mix"),
    ),
    "sync": Conversion(
        to_sync_batch_norm,
        keeps=("γ, β", "ε", "dtype, device", "mode", "hooks", "running statistics", "outputs on one device"),
        changes=("statistics in training are those of all devices",),
    ),
}


def convert(
    model: nn.Module,
    conversion: Callable[[nn.Module], nn.Module],
    select: Callable[[str, nn.Module], bool] = lambda path, module: True,
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Replace in `model`, in place, every BatchNorm that `select(path, module)` picks by `conversion(it)`.

    An instance at several paths becomes one new instance at all of them, if any is picked. Returns the model (the
    replacement itself if the model is such a layer) and the new layers by path. Nothing is replaced if one is refused.
    """
    found = [(path, m) for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, _BatchNorm)]
    picked = {id(module): module for path, module in found if select(path, module)}
    replaced = {key: conversion(module) for key, module in picked.items()}
    placed = {path: replaced[id(module)] for path, module in found if id(module) in replaced}
    for path, replacement in placed.items():
        if not path:
            return replacement, placed
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = replacement
    return model, placed


def _checked(bn: nn.Module) -> _BatchNorm:
    """`bn`, if nothing about it would get lost."""
    kind = type(bn).__name__
    if isinstance(bn, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f"this {kind} does not know its size yet: run the model once")
    if not isinstance(bn, _PLAIN):
        raise ValueError(f"{kind} is not a BatchNorm layer")
    if is_parametrized(bn) or "weight" not in bn._parameters:
        raise ValueError("its weight is computed by a parametrization")
    if type(bn).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or bn._modules:
        raise ValueError(f"{kind} does more than BatchNorm does")
    _refuse_state_hooks(bn)
    return bn


def _refuse_state_hooks(module: nn.Module) -> None:
    if any(getattr(module, name) for name in _STATE_HOOKS):
        raise ValueError("hooks on its state dict belong to this very instance")


def carry_over(old: nn.Module, new: Layer, parameters: tuple[str, ...] = ()) -> Layer:
    """Give `new` the mode, hooks and the user's own attributes of `old`, and these `parameters` as the same objects.

    ValueError for hooks on the state dict of `old`: they are bound to that very instance.
    """
    _refuse_state_hooks(old)
    for name in parameters:
        new._parameters[name] = old._parameters[name]
    for name in _HOOKS:  # the same dictionaries: a handle that removes a hook removes it here too
        setattr(new, name, getattr(old, name))
    known = vars(nn.Module()).keys() | vars(new).keys() | {*getattr(type(old), "__constants__", ()), "process_group"}
    for name, value in vars(old).items():
        if name not in known:
            setattr(new, name, value)
    new.training = old.training
    return new


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.clone()
