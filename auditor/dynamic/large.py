"""Audits a model that is too large to be run here: its weights by their initialisers, its graph by shapes alone.

The model is constructed with its weights deferred (`deferred.py`). Of each weight a sample stands in for the whole,
drawn from the closed form of its initialiser, or cut from the values where only replaying the initialiser gives them,
one weight at a time. A run on the meta device gives the graph with its shapes, and the strength of the signal along it
is computed (`analytic.py`). A rule that asks for what only a real run shows gets `Unseen`, and is reported as not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from auditor.dynamic.analytic import second_moments
from auditor.dynamic.build import BuildLog
from auditor.dynamic.capture import MODES, Capture, Mode, NodeFacts, Rung, described, run_once
from auditor.dynamic.deferred import Deferral, Fill, ShapesOnly
from auditor.dynamic.flow import WEIGHT_FUNCTIONS
from auditor.dynamic.observe import LayerProbe, Probe
from auditor.dynamic.probe import mean_spike, repeated_rows, rms, rows_of, weight_layers
from auditor.dynamic.state import RandomState

ROWS, COLUMNS = 64, 1024  # of a sample
REPLAYED = 1 << 28  # elements above which a weight without closed form is not replayed: 1 GB in float32


class Unseen(Exception):
    """A check asked for what only a run with values shows."""


def unseen(what: str) -> NoReturn:
    raise Unseen(f"{what} can only be seen in a run, and the model is too large for one")


@dataclass
class SampledLayer(LayerProbe):
    """A weight known by its initialiser; no step was made. `constant`: all of its values are equal."""

    constant: bool = False

    @property
    def dead(self) -> bool:
        unseen("whether a weight gets a gradient")

    @property
    def symmetric(self) -> bool:
        """Equal units stay equal when all weights are; of others only steps can tell."""
        if self.dup_before <= 0.5 or not self.executed or not self.requires_grad or self.exempt:
            return False
        return (self.constant and not self.zero) or unseen("whether equal units stay equal")


class SampledProbe(Probe):
    """What initialisers and formulas tell; what steps would have shown is not there."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("ran", "units", "gradients"):
            unseen("what a training step does")
        return super().__getattribute__(name)

    @property
    def failure(self) -> str:
        return self.reason


class _LargeCapture(Capture):
    """A capture without values."""

    @property
    def eval_rng(self) -> Any:  # type: ignore[override]
        unseen("whether outputs repeat")

    def facts(self, node: fx.Node) -> NodeFacts:
        if node not in self._facts:
            self._facts[node] = _ValuelessFacts(node, self)
        return self._facts[node]


class _ValuelessFacts(NodeFacts):
    @property
    def stats(self) -> Any:
        unseen("the size of a signal")


def capture_large(
    model: nn.Module,
    log: BuildLog,
    deferral: Deferral,
    inputs: Any,
    *,
    target: Any,
    dtype: str = "float32",
    seed: int = 0,
) -> Capture:
    """The capture of a deferred `model` (as `build_deferred` gives it); random state is left as it was.

    `inputs`: on the meta device, or any value where none were found. `rungs` say how the graph was obtained.
    """
    held = described(model, inputs, target=target, build_log=log, device="cpu", dtype=dtype, seed=seed)
    held.__class__ = _LargeCapture
    generators = RandomState.now()
    try:
        for mode in MODES:
            _record_shapes(held, mode)
        vars(held)["probe"] = _probe(held, deferral)
    finally:
        generators.restore()
    model.forward = lambda *args, **kwargs: unseen("what the model computes")
    return held


def _record_shapes(held: Capture, mode: Mode) -> None:
    with ShapesOnly():
        run_once(held, mode)
    rung = held.rungs[mode]
    shapes = "too large to be run: shapes were recorded, no values" if rung.name == "record" else rung.reason
    held.rungs[mode] = Rung("shapes" if rung.name == "record" else "none", shapes, rung.opaque)


# Weights --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """One parameter. `part`: values that stand in for it; `moment`: E[w²]; the rest as in LayerProbe, where they were
    computed from all of it. `reason`: why nothing is known."""

    part: nn.Parameter
    moment: float | None
    fill: Fill | None = None
    dup: float | None = None
    spike: float | None = None
    gain: float | None = None
    reason: str = ""


def _weights(held: Capture, deferral: Deferral) -> tuple[dict[str, _Weight], dict[str, tuple[int, ...]]]:
    """What is known of every floating-point parameter, and its shape, by name. `held.parameters` get the parts."""
    replays: dict[Any, _Weight] = {}
    found: dict[int, _Weight] = {}
    tensors = {name: facts.tensor for name, facts in held.parameters.items() if facts.tensor.is_floating_point()}
    for name, tensor in tensors.items():
        if id(tensor) not in found:
            module = held.modules[held.parameters[name].module].module
            found[id(tensor)] = _weight(tensor, isinstance(module, _ConvTransposeNd), deferral, replays, held.seed)
        held.parameters[name].tensor = found[id(tensor)].part
    return {name: found[id(tensor)] for name, tensor in tensors.items()}, {
        n: tuple(t.shape) for n, t in tensors.items()
    }


def _weight(
    tensor: nn.Parameter, transposed: bool, deferral: Deferral, replays: dict[Any, _Weight], seed: int
) -> _Weight:
    if not tensor.is_meta:
        return _Weight(tensor, rms(tensor) ** 2)
    shape = tuple(min(size, limit) for size, limit in zip(tensor.shape, (ROWS, COLUMNS), strict=False))
    shape += tuple(tensor.shape[2:])
    fill = deferral.fill_of(tensor)
    if fill is not None:
        part = nn.Parameter(fill.sample(shape, seed), requires_grad=tensor.requires_grad)
        return _Weight(part, fill.mean**2 + fill.std**2, fill)
    if tensor.numel() > REPLAYED:
        nothing = nn.Parameter(torch.empty(0), requires_grad=tensor.requires_grad)
        return _Weight(nothing, None, reason="its initialiser has no closed form, and it is too large to run it")
    # Equal programs differ by their draw: what one gave, its rows in another order, stands in for all of them.
    key = (deferral.signature(tensor), transposed, tensor.requires_grad)
    if key not in replays:
        rows = rows_of(values := deferral.values(tensor, seed).float(), transposed)
        gain = float(rows.double().var(correction=0)) * rows.shape[1]
        part = nn.Parameter(values[tuple(slice(size) for size in shape)].clone(), requires_grad=tensor.requires_grad)
        replays[key] = _Weight(part, rms(values) ** 2, None, repeated_rows(rows), mean_spike(rows), gain)
    known = replays[key]
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(min(deferral.slice_of(tensor))))
    return replace(known, part=nn.Parameter(known.part.detach()[order], requires_grad=tensor.requires_grad))


# The probe ------------------------------------------------------------------------------------------------------------


def _probe(held: Capture, deferral: Deferral) -> SampledProbe:
    """Layers as their initialisers make them, and the strength of the signal as computed along the graph."""
    weights, shapes = _weights(held, deferral)
    probe = SampledProbe(reason="the model is too large to be run: no test steps were made")
    layers = [_layer(layer, weights[layer.name], shapes[layer.name]) for layer in weight_layers(held)]
    probe.layers = list(layers)
    mode = next((mode for mode in MODES if mode in held.graphs), None)
    if mode is None:
        return probe
    moments = second_moments(held, mode, {n: w.moment for n, w in weights.items() if w.moment is not None})
    order = {node: number for number, node in enumerate(held.graphs[mode].nodes)}
    for layer in layers:
        _note_signal(held, mode, layer, moments, order)
    seen = [layer for layer in layers if layer.order is not None]
    probe.head = max(seen, key=lambda layer: layer.order or 0, default=None)
    if probe.head is not None:
        probe.head_rms = probe.head.in_rms
    outputs = held.outputs(mode)
    if outputs and outputs[0].shape and probe.head is not None and outputs[0].shape[-1] == probe.head.shape[0]:
        probe.classes = outputs[0].shape[-1]
        moment = moments.get(outputs[0].name)
        probe.logit_std = None if moment is None else math.sqrt(moment)
    return probe


def _layer(layer: LayerProbe, weight: _Weight, shape: tuple[int, ...]) -> SampledLayer:
    """Figures of the part replaced by those of the whole."""
    known = {field.name: getattr(layer, field.name) for field in fields(layer)}
    values = layer.facts.tensor.detach()
    sampled = SampledLayer(**{**known, "shape": shape}, constant=bool((values == values.flatten()[0]).all()))
    units = shape[0] if layer.shape[0] == values.shape[0] else shape[1]
    fan_in = math.prod(shape) // units
    fill = weight.fill
    if fill is not None:
        bulk = fill.std * (math.sqrt(units) + math.sqrt(fan_in))
        sampled.spike = abs(fill.mean) * math.sqrt(units * fan_in) / bulk if bulk else math.inf if fill.mean else 0.0
        sampled.gain = fill.std**2 * fan_in
    elif weight.dup is not None and weight.spike is not None and weight.gain is not None:
        sampled.dup_before, sampled.spike, sampled.gain = weight.dup, weight.spike, weight.gain
    sampled.dup_after = sampled.dup_before if sampled.constant else None
    return sampled


def _note_signal(
    held: Capture, mode: Mode, layer: SampledLayer, moments: Mapping[str, float], order: Mapping[fx.Node, int]
) -> None:
    """Where the layer ran, and how strong what went in and came out is."""
    for name in (layer.name, *layer.tied):
        for read in held.reads_of(mode, name):
            for call in read.users:
                if call.operation not in WEIGHT_FUNCTIONS:
                    layer.executed = True
                    continue
                given = moments.get(call.inputs[0].name)
                result = moments.get(call.name)
                layer.executed, layer.detached, layer.order = True, False, max(order[call.node], layer.order or 0)
                layer.in_rms = None if given is None else math.sqrt(given)
                layer.out_rms = None if result is None else max(math.sqrt(result), layer.out_rms or 0.0)
