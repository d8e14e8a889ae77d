"""Textbook definitions in plain torch operations.

Everything here stands on torch alone, and imports it only when a name that needs it is first used: rules that read
source use the formulas of `propagation`, `dropout` and `normalization` without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "batch_statistics": (
        "batch_norm_evaluation",
        "batch_norm_training",
        "effective_values",
        "running_noise",
        "start_share",
    ),
    "conversion": (
        "CONVERSIONS",
        "Conversion",
        "FrozenBatchNorm",
        "NamedNorm",
        "by_context",
        "carry_over",
        "convert",
        "to_built_in",
        "to_frozen_batch_norm",
        "to_group_norm",
        "to_layer_norm",
        "to_sync_batch_norm",
    ),
    "dropout": ("advised_range", "effective_rate", "noise_to_signal"),
    "dropout_layers": (
        "ClassicalDropout",
        "DropConnectLinear",
        "StochasticDepth",
        "alpha_dropout",
        "attention_dropout",
        "classical_dropout",
        "depth_rates",
        "drop_connect",
        "drop_connect_moments",
        "inverted_dropout",
        "spatial_dropout",
        "stochastic_depth",
        "weight_behind_inverted",
    ),
    "ensemble": ("Ensemble", "enumerate_subnetworks"),
    "initialization": (
        "constant",
        "fan_in",
        "fans",
        "gain",
        "he_normal",
        "he_uniform",
        "lecun_normal",
        "moment_gain",
        "normal",
        "orthogonal",
        "recurrent_orthogonal",
        "residual_projection",
        "small_normal",
        "transformer_normal",
        "transformer_std",
        "xavier_normal",
        "xavier_uniform",
    ),
    "layer_sequential": ("lsuv",),
    "monte_carlo": ("Prediction", "bytes_per_sample", "dropout_active", "is_dropout", "mc_dropout"),
    "normalization": (
        "batch_norm",
        "group_count",
        "group_norm",
        "layer_norm",
        "rms_norm",
        "rms_norm_outside",
    ),
    "propagation": (
        "Layer",
        "Signal",
        "attended_moment",
        "dropped_moment",
        "normalised_moment",
        "padding_loss",
        "paired_moment",
        "pooled_relu_moment",
        "propagate",
        "propagate_correlation",
        "residual_moment",
        "second_moment",
        "slope_moment",
        "tolerance",
    ),
    "scheme": ("SCHEMES", "Initialised", "LayerFacts", "LayerUse", "initialize", "module_facts"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
