"""Checks the claims that something improves: each is measured on the model before and on the model after the fix."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from auditor.dynamic.build import build
from auditor.dynamic.capture import capture, reason_of
from auditor.dynamic.observe import Probe
from auditor.dynamic.probe import NoDropout, sens, silence_dropout
from auditor.dynamic.state import RandomState, seed_all
from auditor.dynamic.variance_shift import variance_shifts
from auditor.fix.certificate import ClaimResult
from auditor.fix.claims import Claim
from auditor.fix.compare import T_LIMIT, row_of
from auditor.fix.trial import Subject, Trial, flatten, floats, perturb, run, transplant

PASSES = 32
COLLAPSED = 1e-7
# Expectations are compared up to this share, whatever the t-test resolves: E[f(x)] is not f(E[x]).
BIAS = 0.02
MOST_PASSES, NEAR, TOO_NOISY = 1024, 0.05, 0.1
CONFIDENT = 100.0


@dataclass(frozen=True)
class Measure:
    """A figure, and whether it meets the claim by itself (None: only in comparison with the other side's figure)."""

    value: float | str
    meets: bool | None = None
    detail: str = ""
    names: frozenset[str] = frozenset()


class NotMeasurable(Exception):
    """The claim says nothing about this model, or its figure cannot be had here."""


class Bench:
    """One side. `initial()` is the model in its initial state; `varied(dtype)` has weights that both sides share."""

    def __init__(
        self,
        subject: Subject,
        varied: Callable[[str], nn.Module],
        moved: Mapping[str, str] | None = None,
        fixed: bool = False,
    ) -> None:
        self.subject = subject
        self.fixed = fixed
        self._varied = varied
        self.moved = moved or {}
        self._initial: Trial | None = None
        self._probe: Probe | None = None

    def initial(self) -> nn.Module:
        if self._initial is None:
            self._initial = Trial(lambda: self.subject.make())
        return self._initial.fresh()

    def varied(self, dtype: str = "") -> nn.Module:
        return self._varied(dtype)

    def arguments(self, row: str = "given", dtype: str = "") -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = self.subject.arguments(dtype)
        return row_of(arguments, row, self.subject.batch_axis) or arguments

    def probe(self) -> Probe:
        if self._probe is None:
            held = capture(self.initial(), self.subject.inputs, device=self.subject.device, seed=self.subject.seed)
            self._probe = held.probe
        if not self._probe.ran:
            raise NotMeasurable(f"the initialisation probe could not be run: {self._probe.reason}")
        return self._probe


def measure(claim: Claim, benches: tuple[Bench, Bench]) -> ClaimResult:
    """Whether `claim` fails before and is met after (or is met on both sides, if it is idempotent)."""
    old, new = (_attempt(claim, bench) for bench in benches)
    crash_counts = claim.kind in ("runs", "trains_at_batch_one")
    if isinstance(new, str):
        unmeasurable = isinstance(old, str) and not crash_counts
        return _result(claim, None if unmeasurable else False, old, new, f"after the fix: {new}")
    if isinstance(old, str):
        if not crash_counts and not claim.idempotent:
            return _result(claim, None, old, new, f"before the fix: {old}")
        old = Measure(old, False)
    if new.meets is None:
        lost = sorted(old.names - new.names)
        gained = not lost and _BETTER[claim.kind](old.value, new.value)
        return _result(claim, gained, old, new, "" if gained else f"lost: {lost[0]}" if lost else "nothing was gained")
    if not new.meets:
        return _result(claim, False, old, new, f"after the fix: {new.detail or new.value}")
    if old.meets and not claim.idempotent:
        return replace(_result(claim, False, old, new, "nothing was gained: it was so before"), already=True)
    return _result(claim, True, old, new, new.detail)


def benches(before: Subject, after: Subject, moved: Mapping[str, str]) -> tuple[Bench, Bench]:
    """Both sides; the varied weights of the second are those of the first, where names are the same."""

    def old(dtype: str) -> nn.Module:
        model = before.make(dtype)
        perturb(model)
        return model

    def new(dtype: str) -> nn.Module:
        source = old(dtype)
        if after.derive is not None:
            after.derive(source)
            return source
        model = after.make(dtype)
        perturb(model)
        transplant(source, model, moved)
        return model

    return Bench(before, old, moved), Bench(after, new, fixed=True)


def _attempt(claim: Claim, bench: Bench) -> Measure | str:
    try:
        return _MEASURES[claim.kind](bench, claim)
    except NotMeasurable as reason:
        return str(reason)
    except Exception as error:  # whatever user code raises
        return reason_of(error)


def _result(claim: Claim, holds: bool | None, old: Measure | str, new: Measure | str, detail: str) -> ClaimResult:
    before, after = (side.value if isinstance(side, Measure) else side for side in (old, new))
    return ClaimResult.of(claim, holds, before=before, after=after, detail=detail)


# Running --------------------------------------------------------------------------------------------------------------


def _runs(bench: Bench, claim: Claim) -> Measure:
    run(bench.initial(), bench.arguments(), mode=claim.option("mode"), gradients=claim.option("mode") == "train")
    return Measure("runs", True)


def _repeatable(bench: Bench, claim: Claim) -> Measure:
    return _repeats(bench, claim.option("mode"))


def _evaluation(bench: Bench, claim: Claim) -> Measure:
    mode = "eval" if bench.fixed else "train"
    model = bench.initial()
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    run(model, bench.arguments(), mode=mode)
    changed = [
        name for name, value in model.state_dict().items() if name in before and not _bit_equal(before[name], value)
    ]
    if changed:
        return Measure(f"changes {changed[0]}", False)
    return _repeats(bench, mode)


def _repeats(bench: Bench, mode: str) -> Measure:
    """The state of the generators is the exact test; two seeds show whether the numbers reach the output."""
    outputs = []
    model = bench.initial().train(mode == "train")
    for seed in (1, 2):
        args, kwargs = bench.arguments()
        seed_all(seed)
        state = RandomState.now()
        with torch.no_grad():
            model(*args, **kwargs)
        moved = state.changed()
        outputs.append(run(bench.initial(), bench.arguments(), mode=mode, seed=seed).outputs)
    if moved:
        return Measure(f"draws random numbers ({', '.join(moved)})", False)
    first, second = outputs
    differs = [name for name, value in first.items() if not _bit_equal(value, second.get(name))]
    return Measure(f"{differs[0]} differs under two seeds", False) if differs else Measure("repeats exactly", True)


def _bit_equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and (a == b or not isinstance(a, (bool, int, float, str)))


def _registered(bench: Bench, claim: Claim) -> Measure:
    names = frozenset(name for name, _ in bench.initial().named_parameters(remove_duplicate=False))
    return Measure(len(names), names=frozenset(bench.moved.get(name, name) for name in names))


def _saved_memory(bench: Bench, claim: Claim) -> Measure:
    """Bytes of distinct tensors that autograd keeps, apart from parameters and inputs."""
    model = bench.initial().train(claim.option("mode") == "train")
    args, kwargs = bench.arguments()
    kept: dict[int, tuple[torch.Tensor, int]] = {}
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # the tensor keeps the address taken
        return tensor

    seed_all(bench.subject.seed)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*args, **kwargs)
    del output
    return Measure(sum(size for _, size in kept.values()))


def _deterministic_construction(bench: Bench, claim: Claim) -> Measure:
    subject = bench.subject
    _, log = build(lambda: subject.build(subject.seed), subject.seed)
    if log.reason:
        raise NotMeasurable(log.reason)
    names = (*log.uninitialised, *log.uninitialised_buffers)
    return Measure(f"nothing writes {', '.join(names)}", False) if names else Measure("all is initialised", True)


# Initialisation -------------------------------------------------------------------------------------------------------


def _alive(bench: Bench, claim: Claim) -> Measure:
    names = [layer.name for layer in bench.probe().dead]
    return Measure(f"no gradient: {', '.join(names)}", False) if names else Measure("all weights are alive", True)


def _symmetry_broken(bench: Bench, claim: Claim) -> Measure:
    names = [layer.name for layer in bench.probe().symmetric]
    return Measure(f"equal units: {', '.join(names)}", False) if names else Measure("units differ", True)


def _head_rms(bench: Bench, claim: Claim) -> Measure:
    value = bench.probe().head_rms
    if value is None:
        raise NotMeasurable("no weight layer was run")
    return Measure(value, claim.option("low") <= value <= claim.option("high"))


def _initial_loss(bench: Bench, claim: Claim) -> Measure:
    probe = bench.probe()
    if probe.loss is None or not probe.classes or probe.classes < 2:
        raise NotMeasurable("the model is no classifier")
    ratio = probe.loss / math.log(probe.classes)
    return Measure(ratio, ratio <= claim.option("high"), f"{ratio:.3g} ln C")


def _trains(bench: Bench, claim: Claim) -> Measure:
    """Adam on one batch. Against the best that the biases alone can do: the loss of the targets' mean."""
    model = bench.initial()
    silence_dropout(model)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    share, final = float(claim.option("share")), math.inf
    for _ in range(int(claim.option("steps"))):
        args, kwargs = bench.arguments("normal")
        seed_all(bench.subject.seed)
        with torch.enable_grad(), NoDropout():
            output = _main(model(*args, **kwargs))
            loss, uninformed = _training_loss(output, bench.subject.batch_axis)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        final = float(loss)
    ratio = final / uninformed
    return Measure(ratio, ratio <= 1 - share, f"the loss ends at {ratio:.3g} of that of an uninformed model")


def _training_loss(output: torch.Tensor, axis: int) -> tuple[torch.Tensor, float]:
    """A loss on arbitrary targets, and its value for a model that knows only their mean."""
    batch = output.shape[axis] if output.dim() > axis else 1
    if batch < 2:
        raise NotMeasurable("one sample is too few to learn from")
    if output.dim() == 2 and 2 <= output.shape[1] <= 100_000:
        targets = torch.arange(batch, device=output.device) % output.shape[1]
        share = torch.bincount(targets).double() / batch
        entropy = float(-(share[share > 0] * share[share > 0].log()).sum())
        return F.cross_entropy(output, targets), entropy
    targets = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device, output.dtype)
    targets = targets - targets.mean(axis, keepdim=True)
    return F.mse_loss(output, targets), float(targets.square().mean())


def _main(output: Any) -> torch.Tensor:
    tensors = [leaf for _, leaf in flatten(output, "") if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    if not tensors:
        raise NotMeasurable("the model returns no floating-point tensor")
    return tensors[0]


def _distinct_layers(bench: Bench, claim: Claim) -> Measure:
    weights = [p for p in bench.initial().parameters() if p.dim() > 1]
    same = sum(a.shape == b.shape and torch.equal(a, b) for a, b in combinations(weights, 2))
    return Measure(same)


# Finiteness and batch size --------------------------------------------------------------------------------------------


def _finite(bench: Bench, claim: Claim) -> Measure:
    """Half-precision rows of zeros, of scale 1e-3 and 1e3; a row that comes out as zeros only there is lost."""
    dtype = str(claim.option("dtype"))
    wrong = []
    for row in ("zero", "small", "large"):
        half = run(bench.varied(dtype), bench.arguments(row, dtype), mode="train", gradients=True, random=False)
        full = run(bench.varied("float32"), bench.arguments(row, "float32"), mode="train", random=False)
        values = {**half.outputs, **{f"gradient of {name}": value for name, value in half.gradients.items()}}
        if any(not bool(value.isfinite().all()) for value in floats(values).values()):
            name = next(name for name, value in floats(values).items() if not bool(value.isfinite().all()))
            wrong.append(f"{row} rows: {name} is not finite")
        elif _lost_rows(floats(half.outputs), floats(full.outputs)):
            wrong.append(f"{row} rows come out as zero")
    return Measure("; ".join(wrong), False) if wrong else Measure("all is finite", True)


def _lost_rows(half: dict[str, torch.Tensor], full: dict[str, torch.Tensor]) -> bool:
    for name, reference in full.items():
        value = half.get(name)
        if value is not None and value.shape == reference.shape and value.dim():
            empty, meant = (x.reshape(-1, x.shape[-1]).abs().amax(-1) for x in (value, reference))
            if bool(((empty == 0) & (meant > 1e-3)).any()):
                return True
    return False


def _trains_at_batch_one(bench: Bench, claim: Claim) -> Measure:
    """One step on the first sample; then the same function in train and in eval mode, dropout off."""
    axis = bench.subject.batch_axis
    whole = bench.arguments("normal")
    size = max((x.shape[axis] for x in _tensors(whole) if x.dim() > axis), default=1)
    single = _mapped_tensors(whole, lambda x: x.narrow(axis, 0, 1) if x.dim() > axis and x.shape[axis] == size else x)
    outcome = run(bench.varied(), _copied(single), mode="train", gradients=True, random=False)
    values = {**outcome.outputs, **outcome.gradients}
    bad = [name for name, value in floats(values).items() if not bool(value.isfinite().all())]
    if bad:
        return Measure(f"{bad[0]} is not finite", False)
    full = _live_weights(run(bench.varied(), _copied(whole), mode="train", gradients=True, random=False).gradients)
    lost = full - _live_weights(outcome.gradients)
    if lost:
        return Measure(f"{min(lost)} receives no gradient", False)
    model = bench.varied()
    train, evaluated = (
        floats(run(model, _copied(single), mode=mode, random=False).outputs) for mode in ("train", "eval")
    )
    gap = max(
        (_relative_rms(value, evaluated[name]) for name, value in train.items() if name in evaluated), default=0.0
    )
    limit = float(claim.option("gap"))
    return Measure(gap, gap <= limit, f"train and eval outputs differ by {gap:.2g} (at most {limit:g})")


def _live_weights(gradients: dict[str, torch.Tensor | None]) -> set[str]:
    found = {
        name: g for name, g in gradients.items() if g is not None and g.dim() > 1 and not name.startswith("inputs")
    }
    return {name for name, gradient in found.items() if float(gradient.abs().max()) > 0}


def _relative_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    size = float(reference.double().square().mean().sqrt())
    distance = float((value.double() - reference.double()).square().mean().sqrt())
    return distance / size if size > 0 else (0.0 if distance == 0 else math.inf)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _mapped_tensors(tree: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, function, tree)


def _copied(tree: Any) -> Any:
    return _mapped_tensors(tree, lambda x: x.detach().clone())


# Randomness -----------------------------------------------------------------------------------------------------------


def _expectation(bench: Bench, claim: Claim) -> Measure:
    """The innermost modules that draw random numbers in training, each on the inputs it gets in this model."""
    model = bench.varied().train()
    calls = _random_calls(model, bench.arguments("normal"))
    if not calls:
        raise NotMeasurable("no module draws random numbers in training")
    worst, detail = 1.0, ""
    for path, (module, args, kwargs) in calls.items():
        ratio, t = _expectation_ratio(module, args, kwargs)
        if abs(t) > T_LIMIT and abs(ratio - 1) > max(BIAS, abs(worst - 1)):
            worst, detail = ratio, f"{path or 'the model'}: mean output in training is {ratio:.3g} of that in eval"
    return Measure(worst, not detail, detail)


def _random_calls(model: nn.Module, arguments: Any) -> dict[str, tuple[nn.Module, Any, Any]]:
    found: dict[str, tuple[nn.Module, Any, Any]] = {}
    states: list[RandomState] = []
    inner: list[bool] = [False]
    handles = []
    for path, module in model.named_modules():

        def enter(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            states.append(RandomState.now())
            inner.append(False)

        def leave(module: nn.Module, args: Any, kwargs: Any, _output: Any, path: str = path) -> None:
            inside, moved = inner.pop(), bool(states.pop().changed())
            if moved and not inside:
                found.setdefault(path, (module, _copied(args), _copied(kwargs)))
            inner[-1] = inner[-1] or moved

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    seed_all(0)
    with torch.no_grad():
        model(*arguments[0], **arguments[1])
    for handle in handles:
        handle.remove()
    return found


def _expectation_ratio(module: nn.Module, args: Any, kwargs: Any) -> tuple[float, float]:
    """mean over passes of <train, eval> / <eval, eval>, and its t statistic against 1.

    As many passes as it takes to tell: until the ratio is clearly off, or surely near 1.
    """
    reference = _main(run(module, _copied((args, kwargs)), mode="eval").outputs).double()
    energy = float(reference.square().sum())
    if energy == 0:
        raise NotMeasurable("the eval output of a random layer is zero")
    ratios: list[float] = []
    while True:
        for _ in range(PASSES):
            output = _main(run(module, _copied((args, kwargs)), mode="train", seed=len(ratios)).outputs).double()
            ratios.append(float((output * reference).sum()) / energy)
        mean, error = statistics.fmean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
        t = (mean - 1) / error if error > 0 else (0.0 if abs(mean - 1) < 1e-6 else math.inf)
        if (abs(t) > T_LIMIT and abs(mean - 1) > BIAS) or abs(mean - 1) + 3 * error < NEAR:
            return mean, t
        if len(ratios) >= MOST_PASSES:
            if error > TOO_NOISY:
                raise NotMeasurable(f"the outputs of a random layer are too noisy (standard error {error:.2g})")
            return mean, t


def _train_eval_gap(bench: Bench, claim: Claim) -> Measure:
    reference = floats(run(bench.varied(), bench.arguments("normal"), mode="eval").outputs)
    gaps = []
    for seed in range(PASSES):
        outputs = floats(run(bench.varied(), bench.arguments("normal"), mode="train", seed=seed).outputs)
        gaps.append(max((_relative_rms(outputs[name], value) for name, value in reference.items()), default=0.0))
    return Measure(statistics.fmean(gaps))


def _loss_floor(bench: Bench, claim: Claim) -> Measure:
    """Cross-entropy on the model's own predictions, its last weight layer scaled until it is confident."""
    model = bench.varied()
    arguments = bench.arguments("normal")
    head = _head_of(model, _copied(arguments))
    with torch.no_grad():
        for parameter in head.parameters(recurse=False):
            parameter.mul_(CONFIDENT)
    logits = _main(run(model, _copied(arguments), mode="eval").outputs)
    if logits.dim() < 2:
        raise NotMeasurable("the model is no classifier")
    axis = 1 if logits.dim() > 2 else -1
    labels = logits.argmax(axis)
    losses = []
    for seed in range(PASSES):
        output = _main(run(model, _copied(arguments), mode=claim.option("mode"), seed=seed).outputs).double()
        losses.append(float(F.cross_entropy(output, labels)))
    return Measure(statistics.fmean(losses))


def _head_of(model: nn.Module, arguments: Any) -> nn.Module:
    last: list[nn.Module] = []
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_hook(lambda m, *_: last.append(m)) for m in model.modules() if isinstance(m, layers)]
    run(model, arguments, mode="eval")
    for handle in handles:
        handle.remove()
    if not last:
        raise NotMeasurable("no linear or convolutional layer was run")
    return last[-1]


def _unit_variance(bench: Bench, claim: Claim) -> Measure:
    """Each dropout layer on self-normalised activations: shift of the mean (in sd) plus relative change of the sd."""
    layers = [module for module in bench.initial().modules() if isinstance(module, _DropoutNd)]
    if not layers:
        raise NotMeasurable("the model has no dropout layer")
    given = F.selu(torch.randn((512, 64), generator=torch.Generator().manual_seed(0)))
    shifts = []
    for layer in layers:
        seed_all(0)
        with torch.no_grad():
            out = layer.train()(given.clone()).double()
        wide = given.double()
        shifts.append(float((out.mean() - wide.mean()).abs() / wide.std() + (out.std() / wide.std() - 1).abs()))
    return Measure(statistics.fmean(shifts))


# Statistics of BatchNorm ----------------------------------------------------------------------------------------------


def _running(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: buffer.detach().clone()
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }


def _variance_kept(bench: Bench, claim: Claim) -> Measure:
    subject = bench.subject
    held = capture(bench.initial(), subject.inputs, device=subject.device, dtype=subject.dtype, seed=subject.seed)
    worst = min((ratio for _, _, ratio in variance_shifts(held)), default=1.0)
    return Measure(worst, worst >= 0.9, f"the smallest ratio of variances is {worst:.2g}")


def _statistics_untouched(bench: Bench, claim: Claim) -> Measure:
    model = bench.initial().train()
    before = _running(model)
    if not before:
        raise NotMeasurable("the model keeps no running statistics")
    run(model, bench.arguments("normal"), mode="train")
    changed = [name for name, buffer in _running(model).items() if not torch.equal(before[name], buffer)]
    return Measure(f"{len(changed)} changed, such as {changed[0]}", False) if changed else Measure("unchanged", True)


def _statistics_error(bench: Bench, claim: Claim) -> Measure:
    """Distance of running means (in sd) and variances (relative) from those over all of 50 batches."""
    model = bench.initial()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), torch.Tensor)
    }
    if not norms:
        raise NotMeasurable("the model keeps no running statistics")
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in norms}
    handles = [
        module.register_forward_pre_hook(lambda _module, args, name=name: sums[name].append(_per_channel(args[0])))
        for name, module in norms.items()
    ]
    generator = torch.Generator().manual_seed(0)
    for seed in range(50):
        args = _mapped_tensors(
            bench.arguments(),
            lambda x: torch.randn(x.shape, generator=generator).to(x.device, x.dtype) if x.is_floating_point() else x,
        )
        run(model, args, mode="train", seed=seed)
    for handle in handles:
        handle.remove()
    errors = []
    for name, module in norms.items():
        if sums[name]:
            mean, variance = torch.stack(sums[name]).mean(0)
            deviation = variance.sqrt().clamp_min(1e-12)
            errors.append(float(((module.running_mean.double().cpu() - mean) / deviation).square().mean().sqrt()))
            errors.append(
                float((module.running_var.double().cpu() / variance.clamp_min(1e-24) - 1).square().mean().sqrt())
            )
    if not errors:
        raise NotMeasurable("no layer with running statistics was run")
    return Measure(statistics.fmean(errors))


def _per_channel(x: torch.Tensor) -> torch.Tensor:
    """Mean and unbiased variance of each channel (axis 1), shape (2, C)."""
    flat = x.detach().double().cpu().movedim(1, 0).reshape(x.shape[1], -1)
    return torch.stack((flat.mean(1), flat.var(1)))


# Dependence -----------------------------------------------------------------------------------------------------------


def _samples_independent(bench: Bench, claim: Claim) -> Measure:
    """The gradient of one sample's output with respect to the other samples' inputs; exactly zero or not."""
    axis = bench.subject.batch_axis
    model = bench.varied().train(claim.option("mode") == "train")
    silence_dropout(model)
    args, kwargs = bench.arguments("normal")
    sources = [x.requires_grad_() for x in _tensors((args, kwargs)) if x.is_floating_point()]
    handles = [m.register_forward_hook(_as_source(sources)) for m in model.modules() if isinstance(m, nn.Embedding)]
    size = max((x.shape[axis] for x in _tensors((args, kwargs)) if x.dim() > axis), default=0)
    seed_all(bench.subject.seed)
    with torch.enable_grad(), NoDropout():
        output = _main(model(*args, **kwargs))
    for handle in handles:
        handle.remove()
    if size < 2 or output.dim() <= axis or output.shape[axis] != size or not output.requires_grad:
        raise NotMeasurable("the samples cannot be told apart in inputs and outputs")
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device, output.dtype)
    worst = 0.0
    for sample in (0, size - 1):
        total = (output * direction).select(axis, sample).sum()
        for gradient in torch.autograd.grad(total, sources, retain_graph=True, allow_unused=True):
            if gradient is not None and gradient.dim() > axis and gradient.shape[axis] == size:
                others = [i for i in range(size) if i != sample]
                worst = max(
                    worst, float(gradient.index_select(axis, torch.tensor(others, device=gradient.device)).abs().max())
                )
    return Measure(worst, worst == 0.0, f"largest gradient between samples {worst:.2g}")


def _as_source(sources: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_()
        sources.append(leaf)
        return leaf

    return hook


def _depends_on_input(bench: Bench, claim: Claim) -> Measure:
    outputs = floats(run(bench.varied(), bench.arguments("normal"), mode="eval").outputs)
    arguments = _tensors(bench.arguments("normal"))
    axis = bench.subject.batch_axis
    size = max((x.shape[axis] for x in arguments if x.dim() > axis), default=0)
    shares = [share for x in outputs.values() if (share := sens(x, size, axis)) is not None]
    if not shares:
        raise NotMeasurable("the outputs cannot be told apart by sample")
    worst = min(shares)
    return Measure(worst, worst > COLLAPSED, f"share of the outputs that differs between samples: {worst:.2g}")


# Tables ---------------------------------------------------------------------------------------------------------------

_MEASURES: dict[str, Callable[[Bench, Claim], Measure]] = {
    "runs": _runs,
    "repeatable": _repeatable,
    "registered": _registered,
    "saved_memory": _saved_memory,
    "deterministic_construction": _deterministic_construction,
    "alive": _alive,
    "symmetry_broken": _symmetry_broken,
    "head_rms": _head_rms,
    "initial_loss": _initial_loss,
    "trains": _trains,
    "distinct_layers": _distinct_layers,
    "finite": _finite,
    "trains_at_batch_one": _trains_at_batch_one,
    "expectation": _expectation,
    "train_eval_gap": _train_eval_gap,
    "loss_floor": _loss_floor,
    "unit_variance": _unit_variance,
    "evaluation": _evaluation,
    "statistics_untouched": _statistics_untouched,
    "variance_kept": _variance_kept,
    "statistics_error": _statistics_error,
    "samples_independent": _samples_independent,
    "depends_on_input": _depends_on_input,
}


def _less(share: float) -> Callable[[Any, Any], bool]:
    return lambda old, new: bool(new < (1 - share) * old)


_BETTER: dict[str, Callable[[Any, Any], bool]] = {
    "registered": lambda old, new: bool(new > old),
    "saved_memory": _less(0.0),
    "distinct_layers": _less(0.0),
    "train_eval_gap": _less(0.05),
    "loss_floor": lambda old, new: bool(new < old - 0.05),
    "unit_variance": _less(0.2),
    "statistics_error": _less(0.1),
}


def kinds() -> Iterator[str]:
    """The improve-claims that can be measured."""
    yield from _MEASURES
