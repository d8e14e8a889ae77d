"""Checks the claims that something stays equal: both models with the same weights, inputs and random numbers."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from auditor.dynamic.build import construct
from auditor.dynamic.capture import reason_of
from auditor.fix.certificate import ClaimResult
from auditor.fix.claims import ROWS, Claim
from auditor.fix.trial import Run, Subject, Trial, flatten, perturb, run, transplant

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# In float64 two ways to compute one function agree to about 1e-14; a wrong formula is off by 1e-6 or more.
DOUBLE = 1e-10
OFFSET = 20.0
REPEATS = 256
LARGE, REPEATS_OF_LARGE = 10_000_000, 64  # parameters beyond which fewer runs must do
# |t| beyond this has a probability below 1e-6 at 31 degrees of freedom or more.
T_LIMIT = 6.07
HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Difference:
    """The largest difference found, relative to the largest value before, against what is tolerated."""

    error: float = 0.0
    tolerance: float = DOUBLE
    where: str = ""

    @property
    def excess(self) -> float:
        return math.inf if math.isnan(self.error) else self.error / self.tolerance


@dataclass
class Stage:
    """Both models in one precision. `exact`: everything is computed in float64, nothing in a smaller type."""

    before: Subject
    after: Subject
    dtype: str
    device: str
    moved: Mapping[str, str]
    exact: bool = True
    old: Trial = field(init=False)
    new: Trial = field(init=False)

    def __post_init__(self) -> None:
        def prepare_before() -> nn.Module:
            model = self.before.make(self.dtype, self.device)
            perturb(model)
            return model

        self.old = Trial(prepare_before)

        def prepare_after() -> nn.Module:
            if self.after.derive is not None:
                model = self.old.fresh()
                self.after.derive(model)
                return model
            model = self.after.make(self.dtype, self.device)
            transplant(self.old.model, model, self.moved)
            return model

        try:
            self.new = Trial(prepare_after)
        except Exception as error:  # whatever user code raises
            raise _AfterFails(reason_of(error)) from error


@dataclass
class Pair:
    """One kind of row run on both models. `failure`: what the model after the fix raised."""

    row: str
    before: Run
    after: Run | None
    failure: str = ""


class Comparison:
    """All equal-claims of one fix; runs that several claims need are made once."""

    def __init__(self, before: Subject, after: Subject, claims: Sequence[Claim], moved: Mapping[str, str]) -> None:
        self.before, self.after, self.moved = before, after, moved
        self.with_gradients = {_key(claim) for claim in claims if claim.kind == "gradients"}
        self.stages: dict[str, Stage | str] = {}
        self.pairs: dict[tuple[Any, ...], tuple[list[Pair], list[str]]] = {}

    def check(self, claim: Claim) -> ClaimResult:
        check: Callable[[Comparison, Claim], ClaimResult] = _CHECKS[claim.kind]
        try:
            return check(self, claim)
        except _BeforeFails as failure:
            return _result(claim, None, detail=f"the model before the fix does not run: {failure}")
        except _AfterFails as failure:
            return _result(claim, False, detail=f"the model after the fix does not run: {failure}")

    # Runs ------------------------------------------------------------------------------------------------------------

    def stage(self, dtype: str) -> Stage:
        """Both models in `dtype`; float64 on the CPU where the device has none. Raises _BeforeFails, _AfterFails."""
        if dtype not in self.stages:
            device = "cpu" if dtype == "float64" and self.before.device.startswith("mps") else self.before.device
            try:
                self.stages[dtype] = Stage(self.before, self.after, dtype, device, self.moved)
            except _AfterFails:
                raise
            except Exception as error:  # whatever user code raises
                self.stages[dtype] = reason_of(error)
        stage = self.stages[dtype]
        if isinstance(stage, str):
            raise _BeforeFails(stage)
        return stage

    def runs(
        self, dtype: str, claim: Claim, rows: Sequence[str], compiled: bool = False
    ) -> tuple[list[Pair], list[str]]:
        """Both models on each kind of row, and the rows on which the model before the fix does not run."""
        gradients = _key(claim) in self.with_gradients
        layers = claim.kind == "layer_outputs"
        key = (dtype, _key(claim), tuple(rows), gradients, layers, compiled)
        if key not in self.pairs:
            self.pairs[key] = self._runs(self.stage(dtype), claim, rows, gradients, layers, compiled)
        return self.pairs[key]

    def _runs(
        self,
        stage: Stage,
        claim: Claim,
        rows: Sequence[str],
        gradients: bool,
        layers: bool,
        compiled: bool = False,
    ) -> tuple[list[Pair], list[str]]:
        mode, seed, random = claim.option("mode", "train"), claim.option("seed", 0), claim.option("random", True)
        pairs: list[Pair] = []
        skipped: list[str] = []
        first_reason = ""
        for row in rows:
            arguments = row_of(self.before.arguments(stage.dtype, stage.device), row, self.before.batch_axis)
            if arguments is None:
                continue
            options: dict[str, Any] = {
                "mode": mode, "seed": seed, "gradients": gradients, "layers": layers, "random": random,
                "compiled": compiled,
            }  # fmt: skip
            try:
                model = stage.old.fresh()
                with contextlib.nullcontext() if compiled else _Precision(stage):
                    old = run(model, _copies(arguments), **options)
            except Exception as error:  # whatever user code raises
                first_reason = first_reason or reason_of(error)
                skipped.append(row)
                continue
            try:
                model = stage.new.fresh()
                with contextlib.nullcontext() if compiled else _Precision(stage):
                    pairs.append(Pair(row, old, run(model, _copies(arguments), **options)))
            except Exception as error:  # whatever user code raises
                pairs.append(Pair(row, old, None, reason_of(error)))
        if not pairs:
            raise _BeforeFails(first_reason)
        return pairs, skipped


class _BeforeFails(Exception):
    """The model before the fix does not run, so that there is nothing to compare with."""


class _AfterFails(Exception):
    """The model cannot be built any more."""


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices when code computes in less than float64 whatever it is given (`.float()` in an upcasting norm)."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stage = stage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.stage.exact and self.stage.dtype == "float64":
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64:
                    self.stage.exact = False
        return result


def _key(claim: Claim) -> tuple[Any, ...]:
    return claim.option("mode", "train"), claim.option("seed", 0), claim.option("random", True)


def _copies(arguments: Arguments) -> Arguments:
    copied: Arguments = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, arguments)
    return copied


def row_of(arguments: Arguments, row: str, batch_axis: int = 0) -> Arguments | None:
    """The inputs as another kind of row: N(0, 1), scaled by 1e-3 or 1e3, around a mean of 20, or one sample zero.

    None where the inputs have no floating-point tensor to draw (for `normal`, integers are rolled by one instead).
    """
    if row == "given":
        return arguments
    leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    if not any(leaf.is_floating_point() for leaf in leaves):
        if row != "normal" or not leaves:
            return None
        return _mapped(arguments, lambda x: x.roll(1, -1) if x.dim() else x)
    generator = torch.Generator().manual_seed(ROWS.index(row))

    def draw(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        values = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        values = values * {"small": 1e-3, "large": 1e3}.get(row, 1.0) + (OFFSET if row == "offset" else 0.0)
        if row == "zero" and x.dim() > batch_axis and x.numel():
            values.select(batch_axis, 0).zero_()
        return values.to(x.device, x.dtype)

    return _mapped(arguments, draw)


def _mapped(arguments: Arguments, function: Callable[[torch.Tensor], torch.Tensor]) -> Arguments:
    result: Arguments = tree_map(lambda x: function(x) if isinstance(x, torch.Tensor) else x, arguments)
    return result


# Differences ---------------------------------------------------------------------------------------------------------


def tolerance_of(dtype: str, layers: int, row: str) -> float:
    """Relative difference that rounding explains in a block of `layers` layers; mean/std of the input amplifies it."""
    eps = torch.finfo(getattr(torch, dtype)).eps
    return eps * (8 + 4 * math.sqrt(max(layers, 1))) * (1 + (OFFSET if row == "offset" else 0.0))


def difference(
    before: Mapping[str, Any], after: Mapping[str, Any], *, floor: float, where_finite: bool = False
) -> tuple[float, str]:
    """The largest difference between tensors or values of the same names, and its place; inf for another structure.

    A tensor's difference is relative to its largest value, or to `floor` times the largest of all if that is more: a
    gradient that is zero in theory is rounding error in practice.
    """
    missing = [name for name in before if name not in after] or [name for name in after if name not in before]
    if missing:
        return math.inf, f"{missing[0]} is {'gone' if missing[0] in before else 'new'}"
    largest = max((_largest(value) for value in before.values()), default=0.0)
    worst, place = 0.0, ""
    for name, old in before.items():
        error = _error(old, after[name], max(_largest(old), floor * largest), where_finite)
        if not error <= worst:
            worst, place = error, name
    return worst, place


def _largest(value: Any) -> float:
    if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
        return 0.0
    finite = value.abs()[value.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def _error(old: Any, new: Any, scale: float, where_finite: bool) -> float:
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return 0.0 if type(old) is type(new) and (old is new or _same_value(old, new)) else math.inf
    if old.shape != new.shape or old.is_floating_point() != new.is_floating_point():
        return math.inf
    old, new = _comparable(old), _comparable(new)
    if not old.is_floating_point():
        return 0.0 if torch.equal(old, new) else math.inf
    same = (old == new) | (old.isnan() & new.isnan())
    if where_finite:
        same |= ~old.isfinite()
    rest = ~same
    if not bool(rest.any()):
        return 0.0
    if not bool((old[rest].isfinite() & new[rest].isfinite()).all()):
        return math.inf
    worst = float((old[rest] - new[rest]).abs().max())
    return worst / scale if scale > 0 else math.inf


def _same_value(old: Any, new: Any) -> bool:
    return bool(math.isclose(old, new, rel_tol=1e-6)) if isinstance(old, float) else bool(old == new)


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()


def _result(
    claim: Claim, holds: bool | None, worst: Difference | None = None, detail: str = "", **figures: Any
) -> ClaimResult:
    if worst is not None:
        figures = {
            "before": 0.0,
            "after": worst.error if math.isfinite(worst.error) else "unequal",
            "tolerance": worst.tolerance,
            **figures,
        }
    return ClaimResult.of(claim, holds, detail=detail, **figures)


# The claims ----------------------------------------------------------------------------------------------------------


def _values(claim: Claim, run_: Run) -> Mapping[str, Any]:
    if claim.kind == "gradients":
        return run_.gradients
    if claim.kind == "layer_outputs":
        return run_.layers
    return run_.buffers if claim.kind == "running_statistics" else run_.outputs


def _stays_equal(comparison: Comparison, claim: Claim) -> ClaimResult:
    """Outputs, gradients, layer outputs or statistics: float64 first, then the dtype and device asked for."""
    asked = comparison.before.dtype
    rows = claim.option("rows", ("given", "normal"))
    worst: Difference | None = None
    details = []
    first: list[Pair] = []
    for dtype in dict.fromkeys(("float64", asked)):
        try:
            pairs, skipped = comparison.runs(dtype, claim, rows)
        except _BeforeFails as failure:
            if dtype == asked:
                raise
            details.append(f"float64: not run ({failure})")
            continue
        found = _worst(comparison, claim, dtype, pairs, first)
        if found is None and claim.kind == "running_statistics" and not any(p.before.buffers for p in pairs):
            return _result(claim, True, detail="the model keeps none")
        if found is None:
            return _result(claim, None, detail="before the fix, nothing finite comes out that could be compared")
        details.append(f"{dtype}: {_figure(found.error)}" + (f" at {found.where}" if found.error else ""))
        details += [f"not run on {', '.join(skipped)} rows"] if skipped else []
        worst = found if worst is None or found.excess > worst.excess else worst
        if not worst.excess <= 1:
            break
        first = pairs
    if (
        comparison.before.compiled
        and worst is not None
        and worst.excess <= 1
        and claim.kind in ("outputs", "gradients")
    ):
        try:
            pairs, _ = comparison.runs(asked, claim, ("given", "normal"), compiled=True)
        except _BeforeFails as failure:
            return _result(claim, None, worst, f"under torch.compile the model before does not run: {failure}")
        found = _worst(comparison, claim, asked, pairs, first)
        if found is not None:
            details.append(f"compiled {asked}: {_figure(found.error)}")
            worst = found if found.excess > worst.excess else worst
    assert worst is not None
    return _result(claim, worst.excess <= 1, worst, "; ".join(details))


def _figure(error: float) -> str:
    return "unequal" if math.isinf(error) else f"{error:.2g}"


def _worst(
    comparison: Comparison, claim: Claim, dtype: str, pairs: Sequence[Pair], double: Sequence[Pair]
) -> Difference | None:
    """The worst difference over the rows; None if there was nothing to compare."""
    stage = comparison.stage(dtype)
    worst: Difference | None = None
    layers = sum(1 for module in stage.old.model.modules() if next(module.parameters(recurse=False), None) is not None)
    for pair in pairs:
        if pair.after is None:
            return Difference(math.inf, DOUBLE, f"{pair.row} rows: {pair.failure}")
        old, new = _values(claim, pair.before), _values(claim, pair.after)
        if claim.kind in ("layer_outputs", "gradients"):
            # Layers and parameters that only one side has are for other claims to judge.
            old, new = _renamed(old, comparison.moved), dict(new)
            old, new = {k: v for k, v in old.items() if k in new}, {k: v for k, v in new.items() if k in old}
        if claim.kind == "running_statistics":
            old = _renamed(old, comparison.moved)
        exact = dtype == "float64" and stage.exact
        tolerance = DOUBLE if exact else tolerance_of("float32" if dtype == "float64" else dtype, layers, pair.row)
        where_finite = bool(claim.option("where_finite", False))
        if dtype in HALF:
            found = _half_difference(old, new)
        else:
            error, place = difference(old, new, floor=1e-3 if exact else 1.0, where_finite=where_finite)
            if dtype != "float64":
                tolerance = max(tolerance, 8 * _rounding(claim, pair, double))
                error, place = (math.inf, place) if not _same_dtypes(old, new) else (error, place)
            found = Difference(error, tolerance, f"{pair.row} rows, {place}" if place else f"{pair.row} rows")
        if any(_has_finite(value) for value in old.values()):
            worst = found if worst is None or not found.excess <= worst.excess else worst
    return worst


def _renamed(values: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, Any]:
    return {moved.get(name, name): value for name, value in values.items()}


def _has_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().any()) if not value.is_sparse else True
    return isinstance(value, (bool, int, float, str))


def _same_dtypes(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(getattr(old[name], "dtype", None) == getattr(new.get(name), "dtype", None) for name in old)


def _rounding(claim: Claim, pair: Pair, double: Sequence[Pair]) -> float:
    """By how much the model before the fix itself is off in this dtype, against its run in float64.

    Zero where the two do not compute the same thing, as with random numbers that depend on the dtype.
    """
    exact = next((other for other in double if other.row == pair.row), None)
    if exact is None:
        return 0.0
    error, _ = difference(_values(claim, exact.before), _values(claim, pair.before), floor=1.0)
    return error if error < 1e-3 else 0.0


def _half_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference:
    """In half precision values differ by rounding that hides every formula; dtype and finiteness must not."""
    if set(old) != set(new) or not _same_dtypes(old, new):
        return Difference(math.inf, DOUBLE, "dtype or structure of the outputs")
    for name, value in old.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            other = new[name]
            if value.shape != other.shape or bool((value.isfinite() & ~other.isfinite()).any()):
                return Difference(math.inf, DOUBLE, f"{name}, no longer finite")
    return Difference()


def _parameters(comparison: Comparison, claim: Claim) -> ClaimResult:
    models = _initial(comparison)
    old, new = (dict(model.named_parameters(remove_duplicate=False)) for model in models)
    renamed = {comparison.moved.get(name, name): tensor for name, tensor in old.items()}
    wrong = _different_names(renamed, new, bool(claim.option("added")))
    for name, tensor in renamed.items():
        other = new.get(name)
        if other is None:
            continue
        if (tensor.shape, tensor.dtype, tensor.requires_grad) != (other.shape, other.dtype, other.requires_grad):
            wrong.append(f"{name} changes from {_described(tensor)} to {_described(other)}")
        elif claim.option("values") and not torch.equal(tensor.nan_to_num(), other.nan_to_num()):
            wrong.append(f"{name} starts with other values")
    if _ties(renamed) != _ties({name: tensor for name, tensor in new.items() if name in renamed}):
        wrong.append("other parameters are tied than before")
    if comparison.after.derive is not None and claim.option("values"):
        wrong += _changed_values(comparison.stage(comparison.before.dtype))
    return _result(claim, not wrong, detail=_listed(wrong), before=len(old), after=len(new))


def _ties(parameters: Mapping[str, torch.Tensor]) -> set[frozenset[str]]:
    """The names of each tensor that has several."""
    groups: dict[int, set[str]] = {}
    for name, tensor in parameters.items():
        groups.setdefault(id(tensor), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def _changed_values(stage: Stage) -> list[str]:
    """Parameters that do not keep values that are not the default ones: a lost scale of 1 would not be noticed."""
    new = dict(stage.new.model.named_parameters(remove_duplicate=False))
    named = stage.old.model.named_parameters(remove_duplicate=False)
    return [
        f"{name} does not keep its values"
        for name, old in named
        if name in new and old.shape == new[name].shape and not torch.equal(old.nan_to_num(), new[name].nan_to_num())
    ]


# What a layer has to say of itself in another kind of layer too.
_SETTINGS = ("eps", "p", "num_heads", "batch_first", "training")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _layer_settings(comparison: Comparison, claim: Claim) -> ClaimResult:
    sides = (comparison.before, comparison.after)
    old, new = (
        dict(construct(functools.partial(side.build, side.seed), side.seed).named_modules(remove_duplicate=False))
        for side in sides
    )
    wrong = []
    for path, layer in old.items():
        other = new.get(path)
        if other is None:
            continue
        own = not type(layer).__module__.startswith("torch.")
        for name in _SETTINGS[1:] if own else _SETTINGS:  # what a user's own layer calls eps may be another number
            values = getattr(layer, name, None), getattr(other, name, None)
            if None not in values and values[0] != values[1]:
                wrong.append(f"{path}.{name} changes from {values[0]} to {values[1]}")
        if any(len(getattr(layer, name)) != len(getattr(other, name)) for name in _HOOKS):
            wrong.append(f"{path} loses hooks")
    shared = [{id(layer): path for path, layer in side.items() if path in old and path in new} for side in (old, new)]
    if {*shared[0].values()} != {*shared[1].values()}:
        wrong.append("a layer used at several paths is several layers now, or the other way round")
    return _result(claim, not wrong, detail=_listed(wrong))


def _described(tensor: torch.Tensor) -> str:
    frozen = "" if tensor.requires_grad else ", frozen"
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{frozen}"


def _state_dict_keys(comparison: Comparison, claim: Claim) -> ClaimResult:
    old, new = (model.state_dict() for model in _initial(comparison))
    renamed = {comparison.moved.get(name, name): value for name, value in old.items()}
    wrong = _different_names(renamed, new, bool(claim.option("added")))
    for name, value in renamed.items():
        shapes = getattr(value, "shape", None), getattr(new.get(name), "shape", None)
        if name in new and shapes[0] != shapes[1]:
            wrong.append(f"{name} has another shape")
    return _result(claim, not wrong, detail=_listed(wrong), before=len(old), after=len(new))


def _initial(comparison: Comparison) -> tuple[nn.Module, nn.Module]:
    try:
        before = comparison.before.make()
    except Exception as error:  # whatever user code raises
        raise _BeforeFails(reason_of(error)) from error
    try:
        return before, comparison.after.make()
    except Exception as error:  # whatever user code raises
        raise _AfterFails(reason_of(error)) from error


def _different_names(old: Mapping[str, Any], new: Mapping[str, Any], added: bool) -> list[str]:
    wrong = [f"{name} is gone" for name in old if name not in new]
    return wrong if added else wrong + [f"{name} is new" for name in new if name not in old]


def _listed(wrong: Sequence[str]) -> str:
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _shapes(comparison: Comparison, claim: Claim) -> ClaimResult:
    pair = comparison.runs(comparison.before.dtype, claim, ("given",))[0][0]
    if pair.after is None:
        return _result(claim, False, detail=pair.failure)
    old, new = ({name: _kind(value) for name, value in side.outputs.items()} for side in (pair.before, pair.after))
    wrong = [
        f"{name} changes from {old[name]} to {new.get(name, 'nothing')}" for name in old if old[name] != new.get(name)
    ]
    wrong += [f"{name} is new" for name in new if name not in old]
    return _result(claim, not wrong, detail=_listed(wrong))


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _ranking(comparison: Comparison, claim: Claim) -> ClaimResult:
    compared = 0
    for pair in comparison.runs("float64", claim, ("given", "normal"))[0]:
        if pair.after is None:
            return _result(claim, False, detail=pair.failure)
        for name, old in pair.before.outputs.items():
            if not isinstance(old, torch.Tensor) or not old.is_floating_point() or not old.dim() or old.shape[-1] < 2:
                continue
            new = pair.after.outputs.get(name)
            if not isinstance(new, torch.Tensor) or new.shape != old.shape:
                return _result(claim, False, detail=f"{name} has another shape")
            ordered = old.gather(-1, new.argsort(-1))
            drop = float(-ordered.diff(dim=-1).min())
            if not drop <= DOUBLE * max(_largest(old), 1e-300):
                return _result(claim, False, detail=f"{name} is ordered differently ({pair.row} rows)")
            compared += 1
    return _result(claim, True if compared else None, detail="" if compared else "no output has an order to compare")


def _distribution(comparison: Comparison, claim: Claim) -> ClaimResult:
    """Two-sample tests on projections, size and share of zeros of the outputs over many seeds on each side."""
    stage = comparison.stage(comparison.before.dtype)
    arguments = comparison.before.arguments()
    large = sum(parameter.numel() for parameter in stage.old.model.parameters()) > LARGE
    repeats = REPEATS_OF_LARGE if large else REPEATS
    samples = []
    for trial, first_seed in ((stage.old, 1), (stage.new, 1 + repeats)):
        try:
            model = trial.fresh()
            rows = [
                _statistics(run(model, _copies(arguments), mode=claim.option("mode"), seed=seed))
                for seed in range(first_seed, first_seed + repeats)
            ]
        except Exception as error:  # whatever user code raises
            if trial is stage.old:
                raise _BeforeFails(reason_of(error)) from error
            return _result(claim, False, detail=reason_of(error))
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            return _result(claim, None, detail="the outputs have nothing to compare from run to run")
        samples.append(torch.tensor(rows, dtype=torch.float64))
    old, new = samples
    if old.shape != new.shape:
        return _result(claim, False, detail="the outputs have another structure")
    worst = max(_mean_statistic(old, new), _variance_statistic(old, new))
    return _result(
        claim, worst <= T_LIMIT, before=0.0, after=worst, tolerance=T_LIMIT, detail=f"largest |t| {worst:.3g}"
    )


def _mean_statistic(old: torch.Tensor, new: torch.Tensor) -> float:
    """The largest |t| of Welch's test between the columns of two samples."""
    spread = (old.var(0) / len(old) + new.var(0) / len(new)).sqrt()
    rounding = 1e-6 * old.abs().amax(0).clamp_min(1e-30)
    return float(((old.mean(0) - new.mean(0)).abs() / spread.clamp_min(rounding)).max())


def _variance_statistic(old: torch.Tensor, new: torch.Tensor) -> float:
    """The largest difference of log variances in standard errors; that of one is sqrt((kurtosis - 1) / n)."""
    floor = (1e-6 * old.abs().amax(0).clamp_min(1e-30)) ** 2
    errors = []
    for sample in (old, new):
        centred = sample - sample.mean(0)
        kurtosis = centred.pow(4).mean(0) / (centred.square().mean(0) + floor).square()
        errors.append((kurtosis - 1).clamp_min(1.0) / len(sample))
    logs = ((old.var(0) + floor) / (new.var(0) + floor)).log().abs()
    return float((logs / (errors[0] + errors[1]).sqrt()).max())


def _statistics(run_: Run) -> list[float]:
    """Scalars whose distribution tells that of the outputs."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _, value in flatten(run_.outputs, "output"):
        if isinstance(value, torch.Tensor) and value.is_complex():
            value = torch.view_as_real(value)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            value = value.cpu().double()
            directions = torch.randn((4, value.numel()), generator=generator, dtype=torch.float64)
            found += (directions @ value.flatten() / value.numel() ** 0.5).tolist()
            found += [float(value.mean()), float(value.square().mean().sqrt()), float((value == 0).double().mean())]
    return found


_CHECKS: dict[str, Callable[[Comparison, Claim], ClaimResult]] = {
    "parameters": _parameters,
    "layer_settings": _layer_settings,
    "outputs": _stays_equal,
    "gradients": _stays_equal,
    "layer_outputs": _stays_equal,
    "running_statistics": _stays_equal,
    "state_dict_keys": _state_dict_keys,
    "shapes": _shapes,
    "ranking": _ranking,
    "distribution": _distribution,
}


def kinds() -> Iterator[str]:
    """The equal-claims that can be checked."""
    yield from _CHECKS
