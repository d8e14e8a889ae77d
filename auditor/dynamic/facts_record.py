"""What a report shows of a model beside its findings: facts of every layer, scales over depth, dropouts, BatchNorms,
and how far train and eval mode are apart. Plain JSON data; nothing here judges."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auditor.dynamic.dropouts import live_dropouts
from auditor.dynamic.probe import rms
from auditor.dynamic.rates import live_rates
from auditor.dynamic.record import ModuleWatch, Stats, cloned, eager, reason_of, stats_of, tensors_in
from auditor.dynamic.state import preserved, seed_all
from auditor.static.files import display
from auditor.static.layers import BATCH_NORMS

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, Mode, ModuleFacts, NodeFacts

PASSES, FEW_PASSES = 8, 2
LARGE = 100_000_000  # parameters above which few passes have to do
NORM_KINDS = {
    "BatchNorm": "batch",
    "SyncBatchNorm": "batch, synchronised",
    "InstanceNorm": "instance",
    "LayerNorm": "layer",
    "GroupNorm": "group",
    "RMSNorm": "RMS",
    "LocalResponseNorm": "local response",
}


def facts_record(capture: Capture) -> dict[str, Any]:
    """The facts of a captured model, which is left as it was.

    `layers`: every module in order of registration. `depth`: paths of those that compute (no part of theirs ran), in
    the order in which they first finished in train mode. `dropouts`, `batch_norms`, `gap`: see the functions of these
    names. `reasons`: per mode, why nothing was measured, where that is so.

    Scales are root mean squares of a module's first output tensor at its first call, with the inputs and the seed of
    the audit. Gradients are those of Σ output · N(0, 1) with respect to that tensor: at the model's output their scale
    is 1, so that the curve shows what the layers do to a gradient, whatever the loss is.
    Costs one training step, one forward in eval mode and up to 9 more forwards for the gap.
    """
    train, eval_ = _scales(capture, "train"), _scales(capture, "eval")
    return {
        "layers": [_layer(facts, train, eval_) for facts in capture.modules.values()],
        "depth": _depth(capture, train),
        "dropouts": dropouts(capture),
        "batch_norms": batch_norms(capture),
        "gap": gap(capture),
        "reasons": {mode: scales.reason for mode, scales in (("train", train), ("eval", eval_)) if scales.reason},
    }


# Scales ---------------------------------------------------------------------------------------------------------------


class _Scales(ModuleWatch):
    """Watches one forward: figures of what each module gives, and of the gradient that comes back to it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.outputs: dict[str, Stats] = {}
        self.dtypes: dict[str, str] = {}
        self.gradients: dict[str, float] = {}
        self.reason = ""

    def leave_module(self, module: nn.Module, *event: Any) -> None:
        super().leave_module(module, *event)
        path = self.path_of(module)
        if path is None or path in self.dtypes:
            return
        tensor = next(iter(tensors_in(event[-1])), None)
        if tensor is None:
            return
        self.dtypes[path] = str(tensor.dtype).removeprefix("torch.")
        stats = stats_of(tensor)
        if stats is not None:
            self.outputs[path] = stats
        if tensor.requires_grad and tensor.is_floating_point():
            tensor.register_hook(lambda gradient: self._gradient(path, gradient))  # type: ignore[no-untyped-call]

    def _gradient(self, path: str, gradient: torch.Tensor) -> None:
        self.gradients[path] = rms(gradient)


def _scales(capture: Capture, mode: Mode) -> _Scales:
    """One forward in `mode`, and one backward in train mode."""
    watch = _Scales(capture.model)
    if capture.rungs[mode].name == "none":
        watch.reason = capture.rungs[mode].reason
        return watch
    try:
        with preserved(capture.model), torch.set_grad_enabled(mode == "train"), eager():
            with watch:
                output = _forward(capture, mode, capture.seed)
            if mode == "train":
                _backward(output, capture.seed)
    except Exception as error:  # whatever user code raises
        watch.reason = reason_of(error)
    return watch


def _forward(capture: Capture, mode: Mode, seed: int) -> Any:
    capture.model.train(mode == "train")
    args, kwargs = cloned((tuple(capture.inputs.args), dict(capture.inputs.kwargs)))
    seed_all(seed)
    return capture.model(*args, **kwargs)


def _backward(output: Any, seed: int) -> None:
    """Send N(0, 1) back through every output that learns."""
    learned = {id(t): t for t in tensors_in(output) if t.requires_grad and t.is_floating_point()}
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in learned.values()]
    if learned:
        torch.autograd.backward(list(learned.values()), drawn)


def _depth(capture: Capture, scales: _Scales) -> list[str]:
    parents = {path.rpartition(".")[0] for path in scales.dtypes if path}
    return [path for path in scales.dtypes if path in capture.modules and path not in parents]


# Layers ---------------------------------------------------------------------------------------------------------------


def _layer(facts: ModuleFacts, train: _Scales, eval_: _Scales) -> dict[str, Any]:
    module, path = facts.module, facts.path
    own = list(module.parameters(recurse=False))
    stats = train.outputs.get(path) or eval_.outputs.get(path)
    after = eval_.outputs.get(path)
    return {
        "path": path,
        "kind": facts.kind,
        "location": [display(facts.location.path), facts.location.row] if facts.location.path else None,
        "aliases": list(facts.aliases),
        "calls": facts.calls.get("train", facts.calls.get("eval", 0)),
        "in": _first(facts.in_shape),
        "out": _first(facts.out_shape),
        "parameters": sum(parameter.numel() for parameter in own),
        "trainable": any(parameter.requires_grad for parameter in own),
        "dtype": str(own[0].dtype).removeprefix("torch.") if own else train.dtypes.get(path, eval_.dtypes.get(path)),
        "scale": stats.rms if path in train.outputs and stats is not None else None,
        "scale_eval": after.rms if after is not None else None,
        "gradient": train.gradients.get(path),
        "zeros": stats.zeros if stats is not None else None,
        "rate": _rate(module, facts.kind),
        "norm": _norm(facts.kind),
    }


def _first(shapes: dict[str, Any]) -> list[int] | None:
    shape = shapes.get("train") or shapes.get("eval")
    return None if shape is None else list(shape)


def _rate(module: nn.Module, kind: str) -> float | None:
    """The rate of a layer that is named after dropping; `dropout` of attention and recurrent layers."""
    names = ("p", "drop_prob", "drop_rate") if "drop" in kind.rpartition(".")[2].lower() else ("dropout",)
    values = (getattr(module, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, (int, float))), None)


def _norm(kind: str) -> str | None:
    """Which norm it is; "own" for a class that torch does not have."""
    name = kind.rpartition(".")[2]
    if "norm" not in name.lower():
        return None
    known = name.removeprefix("Lazy").rstrip("d123") if kind.startswith("torch.nn.") else ""
    return NORM_KINDS.get(known, "own")


# Dropout --------------------------------------------------------------------------------------------------------------


def dropouts(capture: Capture) -> list[dict[str, Any]]:
    """Every dropout of the train run: its rate, what it acts on, and `along`: 1 − Π(1 − p) over it and all dropouts
    before it, on the way from the input that meets most of them (None for rates inside one call: attention, RNNs)."""
    kept = _kept(capture)
    found = []
    for rate in live_rates(capture):
        nodes = [node for node in kept if node.module == rate.module]
        along = 1 - min(kept[node] for node in nodes) if nodes else None
        place = [display(rate.location.path), rate.location.row] if rate.location.path else None
        found.append(
            {"path": rate.module, "rate": rate.value, "acts_on": rate.acts_on, "along": along, "location": place}
        )
    return found


def _kept(capture: Capture) -> dict[NodeFacts, float]:
    """For the result of each dropout: the share that the dropouts up to it let through, on the worst way."""
    rates = {dropout.node.name: dropout.rate for dropout in live_dropouts(capture)}
    shares: dict[str, float] = {}
    for node in capture.nodes("train"):
        share = min((shares.get(given.name, 1.0) for given in node.inputs), default=1.0)
        shares[node.name] = share * (1 - rates.get(node.name, 0.0))
    return {node: shares[node.name] for node in capture.nodes("train") if node.name in rates}


# Norms and modes ------------------------------------------------------------------------------------------------------


def batch_norms(capture: Capture) -> list[dict[str, Any]]:
    """For every BatchNorm that ran in train mode: over how many values a channel's statistics were taken (`batch`
    samples times `positions`), with its momentum and whether it keeps running statistics."""
    found = []
    for path, facts in capture.modules.items():
        shape = facts.in_shape.get("train")
        if facts.kind not in BATCH_NORMS or shape is None:
            continue
        module: Any = facts.module
        found.append(
            {
                "path": path,
                "channels": module.num_features,
                "batch": shape[0],
                "positions": math.prod(shape[2:]),
                "momentum": module.momentum,
                "running": bool(module.track_running_stats),
            }
        )
    return found


def gap(capture: Capture) -> dict[str, Any]:
    """How far the outputs of train and eval mode are apart, from `passes` forwards in train mode under different seeds.

    `noise`: rms of the outputs' standard deviation over the passes; `shift`: rms of (their mean − the output in eval
    mode). Both relative to the rms of the output in eval mode. Only `reason` where it could not be measured.
    """
    if any(capture.rungs[mode].name == "none" for mode in ("train", "eval")):
        return {"reason": "the model does not run in both modes"}
    size = sum(parameter.numel() for parameter in capture.model.parameters())
    passes = 1 if not capture.moved.get("train") else PASSES if size < LARGE else FEW_PASSES
    try:
        calm = _outputs(capture, "eval", capture.seed)
        drawn = [_outputs(capture, "train", capture.seed + number) for number in range(1, passes + 1)]
    except Exception as error:  # whatever user code raises
        return {"reason": reason_of(error)}
    if calm is None or any(outputs is None or outputs.shape != calm.shape for outputs in drawn):
        return {"reason": "the outputs of the two modes cannot be compared"}
    stacked = torch.stack([outputs for outputs in drawn if outputs is not None])
    scale = rms(calm)
    noise, shift = rms(stacked.std(0, correction=0)), rms(stacked.mean(0) - calm)
    if not 0 < scale < math.inf:
        return {"reason": f"the scale of the output in eval mode is {scale:g}"}
    return {"passes": passes, "noise": noise / scale, "shift": shift / scale, "scale": scale}


def _outputs(capture: Capture, mode: Mode, seed: int) -> torch.Tensor | None:
    """All floating-point outputs as one vector on the CPU, in double."""
    with preserved(capture.model), torch.no_grad(), eager():
        parts = list(_floats(_forward(capture, mode, seed)))
    return torch.cat(parts) if parts else None


def _floats(output: Any) -> Iterator[torch.Tensor]:
    for tensor in tensors_in(output):
        if tensor.is_floating_point():
            with contextlib.suppress(RuntimeError):  # a tensor without values
                yield tensor.detach().flatten().to("cpu", torch.float64)
