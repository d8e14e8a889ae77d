"""The initialisation probe: a few normalised steps from the start, and what every weight layer receives in them.

Float32, train mode, dropout off, standard normal inputs, cross-entropy on arbitrary targets (or the output against a
fixed direction). A weight that gets no gradient in any step is dead; rows still equal after them stay equal for ever.
Verdict thresholds are the rules' business; here are the figures. Steps are of a fixed length relative to each
parameter, so that neither the gradient's scale nor the user's optimiser matters; exact zeros stay zero.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from auditor.dynamic.flow import WEIGHT_FUNCTIONS, what_follows
from auditor.dynamic.observe import LayerProbe, Probe, UnitProbe
from auditor.dynamic.probe_batch import Batch, fresh_batch, given_size
from auditor.dynamic.record import ModuleWatch, cloned, eager, has_values, moved, reason_of, tensors_in, user_location
from auditor.dynamic.state import preserved, seed_all

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

STEPS, MORE_STEPS = 4, 8
STEP_SIZE = 0.01
COLLAPSE_SUSPECT = 1e-3  # between-sample share at the head below which it is measured again after the steps
SPIKE_MINIMUM = 64  # elements below which a weight's mean says nothing
AT_ONCE = 1 << 18  # elements converted to double at a time
ROW_TOLERANCE = 1e-5  # of the longest row
WEIGHT_LAYERS = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase)
# Where functional dropouts take their rate.
DROPOUT_RATES = {
    **{
        name: ("p", 1)
        for kind in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout")
        for name in (kind, f"{kind}_")
    },
    **{f"dropout{n}d": ("p", 1) for n in (1, 2, 3)},
    "scaled_dot_product_attention": ("dropout_p", 4),
    "multi_head_attention_forward": ("dropout_p", 10),
}
# Nonlinearities watched, with the bounds beyond which they are flat.
UNITS = {"relu": (-math.inf, math.inf), "tanh": (-0.97, 0.97), "sigmoid": (0.015, 0.985)}


def run_probe(capture: Capture, seed: int = 0) -> Probe:
    """Run the probe on a captured model, which is left as it was.

    Costs 4 training steps, 8 if something looks dead or symmetric, and twice that if the model refuses inputs drawn
    anew (or gives NaN for them) and those given have to do.
    """
    outcome = Probe(reason="the model has no inputs")
    given = Batch(tuple(capture.inputs.args), dict(capture.inputs.kwargs), given_size(capture) or 0, False)
    for batch in (fresh_batch(capture, seed), given):
        if batch is None:
            continue
        attempt = _attempt(capture, batch, seed)
        if attempt.ran and not attempt.nonfinite:
            return attempt
        outcome = outcome if outcome.ran else attempt
    return outcome


def _attempt(capture: Capture, batch: Batch, seed: int) -> Probe:
    probe = Probe(batch=batch.size, regenerated=batch.regenerated)
    try:
        with preserved(capture.model), torch.enable_grad(), eager():
            _Session(capture, probe, batch, seed).run()
        probe.ran = True
    except Exception as error:  # whatever user code raises
        probe.reason = reason_of(error)
    return probe


class _Session:
    """One run of the probe. Changes the model: call it under `preserved`."""

    def __init__(self, capture: Capture, probe: Probe, batch: Batch, seed: int) -> None:
        self.capture, self.probe, self.seed, self.size = capture, probe, seed, batch.size
        self.model = capture.model
        self.args, self.kwargs = moved((batch.args, batch.kwargs), torch.device(capture.device), torch.float32)
        self.axis = getattr(capture.inputs, "batch_axis", None) or 0
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in self.model.parameters()):
            self.model.float()
        self.model.train()
        silence_dropout(self.model)
        self.layers = weight_layers(capture)
        self.by_module = _by_module(capture, self.layers)
        self.weights = _weights(capture)
        self.parameters = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad and p.numel()]
        self.calls = 0
        self.finished = False

    def run(self) -> None:
        probe = self.probe
        with torch.no_grad():
            finite = [name for name, p in self.model.named_parameters() if not _is_finite(p)]
        probe.nonfinite += [f"parameter {name}" for name in finite]
        loss = self.first_forward()
        for step in range(1, MORE_STEPS + 1):
            if not self.parameters or not self.step(loss, step):
                break
            if step == MORE_STEPS or (step >= STEPS and not self.suspicious()):
                break
            loss = self.loss_of(self.forward())
        self.finish()

    # Forward ----------------------------------------------------------------------------------------------------------

    def forward(self, mode: TorchFunctionMode | None = None) -> Any:
        seed_all(self.seed)
        args, kwargs = cloned((self.args, self.kwargs))
        with mode or NoDropout():
            return self.model(*args, **kwargs)

    def first_forward(self) -> torch.Tensor:
        """The forward that everything is read from."""
        with ModuleWatch(self.model) as watch, self.observed():
            output = self.forward(_Observer(self, watch))
        self.probe.layers = self.layers
        seen = [layer for layer in self.layers if layer.order is not None]
        self.probe.head = max(seen, key=lambda layer: layer.order or 0, default=None)
        if self.probe.head is not None:
            self.probe.head_rms, self.probe.initial_sens = self.probe.head.in_rms, self.probe.head.sens
        return self.loss_of(output, first=True)

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Weight layers report their inputs and outputs while this is active."""
        with contextlib.ExitStack() as undo:
            for path in self.by_module:
                module = self.capture.modules[path].module
                handle = module.register_forward_hook(self._layer_ran(path), with_kwargs=True)
                undo.callback(handle.remove)
            yield

    def _layer_ran(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            axis = None
            if isinstance(module, nn.RNNBase):
                axis = 0 if module.batch_first else 1
            given, result = tensors_in((args, kwargs)), tensors_in(output)
            if given and result:
                self.note(self.by_module[path], given[0], result[0], axis)

        return hook

    def note(self, layers: Sequence[LayerProbe], given: torch.Tensor, result: torch.Tensor, axis: int | None) -> None:
        """Write down one execution of a weight layer."""
        if given.numel() == 0:
            return  # an expert that got no token
        if self.finished:
            if self.probe.head in layers:
                self.probe.sens_after = sens(given, self.size, axis)
            return
        self.calls += 1
        if not has_values(given):  # inside vmap
            for layer in layers:
                layer.executed, layer.detached = True, False
            return
        in_rms, out_rms, spread = rms(given), rms(result), sens(given, self.size, axis)
        for layer in layers:
            layer.executed, layer.order = True, self.calls
            layer.detached = layer.detached and not torch.is_grad_enabled()
            layer.in_rms, layer.sens, layer.in_shape = in_rms, spread, tuple(given.shape)
            layer.out_rms = out_rms if layer.out_rms is None else max(layer.out_rms, out_rms)

    def weight_used(self, weight: Any, given: Any, result: Any, path: str) -> None:
        """A weight was handed to `F.linear`, `F.conv…` or attention by a module that is not its layer (`path`).

        So work tied heads, users' own layers, and layers whose weight another module borrows.
        """
        name = self.weights.get(id(weight))
        if name is None or any(layer.name == name for layer in self.by_module.get(path, ())):
            return  # the layer's own call reports itself
        layer = next((layer for layer in self.layers if layer.name == name), None)
        if layer is None:
            layer = _layer(self.capture, name)
            self.layers.append(layer)
        tensors = tensors_in(result)
        if isinstance(given, torch.Tensor):
            self.note([layer], given, tensors[0], None)
        elif not self.finished:  # inside attention: what arrived was not seen
            layer.executed, layer.detached = True, layer.detached and not torch.is_grad_enabled()

    # Loss -------------------------------------------------------------------------------------------------------------

    def loss_of(self, output: Any, first: bool = False) -> torch.Tensor:
        """Cross-entropy of the main output if that is logits, plus every other output along a fixed direction."""
        tensors = [t for t in _unique(tensors_in(output)) if t.is_floating_point() or t.is_complex()]
        learned = [t for t in tensors if t.requires_grad] or tensors
        if not learned:
            raise ValueError("the output holds no floating-point tensor")
        if self.parameters and not learned[0].requires_grad:
            raise ValueError("the output does not depend on any parameter in a differentiable way")
        main = _main_output(output, learned)
        entropy = _cross_entropy(main) if _is_logits(main) else None
        generator = torch.Generator().manual_seed(self.seed)
        parts = [_along_fixed_direction(t, generator) for t in learned if t is not main or entropy is None]
        if first:
            self.note_output(main, None if entropy is None else float(entropy.detach()), tensors)
        total: torch.Tensor = torch.stack([part.float() for part in (*parts, entropy) if part is not None]).sum()
        return total

    def note_output(self, main: torch.Tensor, loss: float | None, tensors: list[torch.Tensor]) -> None:
        probe = self.probe
        probe.loss, probe.classes = loss, main.shape[-1] if loss is not None else None
        probe.logit_std = float(main.detach().float().std(correction=0)) if not main.is_complex() else rms(main)
        if any(bool((t.isnan() | t.eq(math.inf)).any()) for t in tensors if not t.is_complex()):
            probe.nonfinite.append("output")
        if loss is not None and not math.isfinite(loss):
            probe.nonfinite.append("loss")

    # Steps ------------------------------------------------------------------------------------------------------------

    def step(self, loss: torch.Tensor, step: int) -> bool:
        """One gradient step of fixed relative length on every parameter. False if a gradient was NaN or infinite."""
        gradients = torch.autograd.grad(loss, [p for _, p in self.parameters], allow_unused=True)
        layers = {layer.name: layer for layer in self.layers}
        by_id = {id(self.capture.parameters[name].tensor): layer for name, layer in layers.items()}
        healthy = True
        with torch.no_grad():
            for (name, parameter), gradient in zip(self.parameters, gradients, strict=True):
                peak = None if gradient is None else _peak(gradient)
                layer = by_id.get(id(parameter))
                if layer is not None and gradient is not None:
                    layer.connected = True
                if layer is not None and peak and layer.live_step is None:
                    layer.live_step, layer.executed = step, True
                if step == 1:
                    self.probe.gradients[name] = None if gradient is None else rms(_dense(gradient))
                    if layer is not None:
                        layer.grad_rms = self.probe.gradients[name]
                if peak is not None and not math.isfinite(peak):
                    healthy = False
                    self.probe.nonfinite.append(f"gradient of {name}")
                elif peak and gradient is not None:
                    _normalised_step(parameter, _dense(gradient), peak)
        self.probe.steps = step
        for layer in self.layers:
            layer.steps = step
        return healthy

    def suspicious(self) -> bool:
        """Whether something looks dead or symmetric so far, and deserves more steps before it is called so."""
        return any(layer.dead or (layer.dup_before > 0.5 and self.still_repeated(layer)) for layer in self.layers)

    def still_repeated(self, layer: LayerProbe) -> bool:
        layer.dup_after = repeated_rows(_rows(self.capture, layer))
        return layer.symmetric

    def finish(self) -> None:
        probe = self.probe
        for layer in self.layers:
            stays = layer.dup_before <= 0.5 or layer.steps == 0
            layer.dup_after = layer.dup_before if stays else repeated_rows(_rows(self.capture, layer))
        if probe.head is None or probe.initial_sens is None or probe.nonfinite:
            return
        if probe.initial_sens >= COLLAPSE_SUSPECT or not probe.steps:
            probe.sens_after = probe.initial_sens
            return
        self.finished = True
        with torch.no_grad(), ModuleWatch(self.model) as watch, self.observed():
            self.forward(_Observer(self, watch))


def argument(name: str, position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An argument of a call, however it was passed; None if it was not."""
    return args[position] if position < len(args) else kwargs.get(name)


class NoDropout(TorchFunctionMode):
    """Functional dropout runs with rate 0."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        place = DROPOUT_RATES.get(getattr(func, "__name__", ""))
        if place is not None:
            name, position = place
            if position < len(args):
                args = (*args[:position], 0.0, *args[position + 1 :])
            else:
                kwargs[name] = 0.0
        return func(*args, **kwargs)


def silence_dropout(model: nn.Module) -> None:
    """Set every rate of dropout, drop path and layer drop held by a module to 0, by attribute: any fraction whose name
    contains "drop", and `p` of classes named after dropping. Call it under `preserved`."""
    for module in model.modules():
        name = type(module).__name__.lower()
        drops = "drop" in name or "stochastic" in name
        for attribute, value in vars(module).items():
            if (
                type(value) is float
                and 0 < value <= 1
                and ("drop" in attribute.lower() or (attribute == "p" and drops))
            ):
                vars(module)[attribute] = 0.0


class _Observer(NoDropout):
    """Also reports weights used outside weight layers, and how saturated or silent nonlinearities are."""

    def __init__(self, session: _Session, watch: ModuleWatch) -> None:
        super().__init__()
        self.session, self.watch = session, watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, "__name__", "").rstrip("_")
        if name in WEIGHT_FUNCTIONS:
            given, weight = argument("input", 0, args, kwargs), argument("weight", 1, args, kwargs)
            self.session.weight_used(weight, given, out, self.watch.path)
        elif name == "multi_head_attention_forward":
            self.session.weight_used(argument("out_proj_weight", 11, args, kwargs), None, out, self.watch.path)
        elif name in UNITS and not self.session.finished and out.numel() and has_values(out):
            self.session.probe.units.append(_unit(name, out.detach(), self.watch.path))
        return out


def _unit(activation: str, out: torch.Tensor, path: str) -> UnitProbe:
    low, high = UNITS[activation]
    beyond = (int((out < low).sum()) + int((out > high).sum())) / out.numel()
    zeros = 1 - int(torch.count_nonzero(out)) / out.numel()
    axis = 1 if out.dim() in (2, 4, 5) else out.dim() - 1
    others = [a for a in range(out.dim()) if a != axis]
    dead = float((torch.count_nonzero(out, dim=others) == 0).float().mean()) if zeros > 0 and others else 0.0
    return UnitProbe(activation, path, user_location(), 0.0 if activation == "relu" else beyond, zeros, dead)


# Losses and steps -----------------------------------------------------------------------------------------------------


def _unique(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _main_output(output: Any, learned: list[torch.Tensor]) -> torch.Tensor:
    """`logits` where the output has such a field, else the first learned tensor."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return next((tensor for tensor in learned if tensor is logits), learned[0])


def _is_logits(tensor: torch.Tensor) -> bool:
    table = tensor.dim() in (2, 3) and tensor.shape[-1] >= 2 and tensor.numel() > 0
    return table and tensor.is_floating_point() and not bool(tensor.detach().eq(-math.inf).any())


def _cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    flat = logits.flatten(0, -2)
    targets = torch.arange(flat.shape[0], device=flat.device) % flat.shape[1]
    return F.cross_entropy(flat, targets)


def _along_fixed_direction(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    direction = torch.randn(values.shape, generator=generator).to(values.device, values.dtype)
    projected: torch.Tensor = (values.masked_fill(values == -math.inf, 0.0) * direction).sum()
    return projected / max(float(direction.norm()), 1e-12)


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def _peak(gradient: torch.Tensor) -> float:
    """Largest magnitude: exactly 0 only if every entry is, which the sum of squares of tiny entries is not."""
    return float(torch.linalg.vector_norm(_dense(gradient), math.inf))


def _normalised_step(parameter: torch.Tensor, gradient: torch.Tensor, peak: float) -> None:
    """p ← p − 0.01 · max(1, ‖p‖) · g / ‖g‖."""
    if not 1e-12 < peak < 1e12:
        gradient = gradient / peak
    length = float(torch.linalg.vector_norm(gradient))
    scale = STEP_SIZE * max(1.0, float(torch.linalg.vector_norm(parameter)))
    parameter.sub_(gradient, alpha=scale / length)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return math.isfinite(float(torch.linalg.vector_norm(tensor, math.inf)))


# Figures --------------------------------------------------------------------------------------------------------------


def rms(tensor: torch.Tensor) -> float:
    """sqrt(mean t²)."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=wide)) / math.sqrt(max(tensor.numel(), 1))


def sens(tensor: torch.Tensor, batch: int, axis: int | None = None) -> float | None:
    """mean_i ‖t_i − mean t‖² / mean_i ‖t_i‖² over samples i, in double; 0: the same for every sample.

    Samples lie along `axis`, or the first of: axis 0, axis 1, axis 0 folded with something else. None if nowhere.
    """
    samples = _by_sample(tensor.detach(), batch, axis)
    if samples is None or samples.numel() == 0:
        return None
    mean = samples.mean(dim=0, dtype=torch.float64)
    spread = energy = 0.0
    for part in torch.split(
        samples, max(1, AT_ONCE // max(1, samples[0].numel()))
    ):  # a double copy of all may be large
        wide = part.to(torch.float64, copy=True)
        energy += float(torch.linalg.vector_norm(wide)) ** 2
        spread += float(torch.linalg.vector_norm(wide.sub_(mean))) ** 2
    return spread / energy if energy > 0 else 0.0


def _by_sample(tensor: torch.Tensor, batch: int, axis: int | None) -> torch.Tensor | None:
    if batch < 2 or tensor.dim() < 2 or not tensor.is_floating_point():
        return None
    if axis is None:
        axis = next((a for a in (0, 1) if tensor.shape[a] == batch), None)
    if axis is not None and tensor.shape[axis] == batch:
        return tensor.movedim(axis, 0).reshape(batch, -1)
    return tensor.reshape(batch, -1) if tensor.shape[0] % batch == 0 else None


def rows_of(weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """A weight as (units, fan-in)."""
    weight = weight.detach().transpose(0, 1) if transposed and weight.dim() > 1 else weight.detach()
    return weight.reshape(weight.shape[0], -1)


def repeated_rows(rows: torch.Tensor) -> float:
    """1 − unique rows / rows, rows being equal within 1e-5 of the longest; by a random projection to 2 dimensions."""
    rows = rows.float()
    longest = float(torch.linalg.vector_norm(rows, dim=1).max())
    if not math.isfinite(longest):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(rows.shape[1], 2, generator=generator).to(rows.device)
    cells = (rows @ plane / (ROW_TOLERANCE * longest or 1.0)).round().long()
    unique: int = torch.unique(cells[:, 0] * 2**32 + cells[:, 1]).numel()
    return 1.0 - unique / len(rows)


def mean_spike(rows: torch.Tensor) -> float:
    """|mean W| √(no·ni) / (std W (√no + √ni)): the mean's singular value over the edge of a random matrix's bulk."""
    units, fan_in = rows.shape
    if rows.numel() < SPIKE_MINIMUM:
        return 0.0
    wide = rows.double()
    mean, std = abs(float(wide.mean())), float(wide.std())
    if std == 0:
        return math.inf if mean > 0 else 0.0
    return mean * math.sqrt(units * fan_in) / (std * (math.sqrt(units) + math.sqrt(fan_in)))


# Layers ---------------------------------------------------------------------------------------------------------------


def weight_layers(capture: Capture) -> list[LayerProbe]:
    """Every `weight…` of every linear, convolutional and recurrent layer, tied ones once."""
    found: dict[int, LayerProbe] = {}
    for name, facts in capture.parameters.items():
        module = capture.modules.get(facts.module)
        if module is None or id(facts.tensor) in found or not _is_weight(name, facts.tensor):
            continue
        if isinstance(module.module, WEIGHT_LAYERS):
            found[id(facts.tensor)] = _layer(capture, name)
    return list(found.values())


def _is_weight(name: str, tensor: torch.Tensor) -> bool:
    last = name.rpartition(".")[2]  # `weight_g` of weight_norm is a vector of gains, equal by design
    return last.startswith("weight") and last != "weight_g" and tensor.dim() >= 2 and tensor.numel() > 0


def _weights(capture: Capture) -> dict[int, str]:
    """Everything that may act as a weight, by identity; a layer's own name before an embedding's."""
    names = {id(layer.facts.tensor): layer.name for layer in weight_layers(capture)}
    for name, facts in capture.parameters.items():
        if _is_weight(name, facts.tensor):
            names.setdefault(id(facts.tensor), name)
    return names


def _by_module(capture: Capture, layers: list[LayerProbe]) -> dict[str, list[LayerProbe]]:
    """Layers by path of the modules that run them: a tied weight is run by several."""
    paths: dict[str, list[LayerProbe]] = {}
    for layer in layers:
        for name in (layer.name, *layer.tied):
            module = capture.modules.get(name.rpartition(".")[0])
            if module is not None and isinstance(module.module, WEIGHT_LAYERS):
                paths.setdefault(module.path, []).append(layer)
    return paths


def _layer(capture: Capture, name: str) -> LayerProbe:
    facts = capture.parameters[name]
    module = capture.modules[facts.module]
    rows = rows_of(facts.tensor, isinstance(module.module, _ConvTransposeNd))
    tied = tuple(other for other, held in capture.parameters.items() if held.tensor is facts.tensor and other != name)
    activation, normalised, shuffled = what_follows(capture, name, facts.module)
    return LayerProbe(
        name=name,
        path=facts.module,
        weight=name.rpartition(".")[2],
        kind=module.kind,
        facts=facts,
        location=module.location,
        shape=tuple(facts.tensor.shape),
        requires_grad=facts.tensor.requires_grad,
        zero=not bool(torch.count_nonzero(facts.tensor.detach())),
        dup_before=repeated_rows(rows),
        spike=mean_spike(rows),
        gain=float(rows.double().var(correction=0)) * rows.shape[1],
        exempt="feeds a pixel shuffle: sub-pixel copies are a known initialisation (ICNR)" if shuffled else "",
        tied=tied,
        activation="tanh" if isinstance(module.module, (nn.RNNBase, nn.RNNCellBase)) else activation,
        normalised_after=normalised,
    )


def _rows(capture: Capture, layer: LayerProbe) -> torch.Tensor:
    return rows_of(layer.facts.tensor, isinstance(capture.modules[layer.path].module, _ConvTransposeNd))
