"""Finds out by running it whether a layer computes a norm that torch has built in."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from auditor.dynamic.capture import class_location
from auditor.dynamic.intent import source_at
from auditor.dynamic.state import preserved
from auditor.finding import Location
from auditor.reference.normalization import layer_norm, rms_norm

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

# Float64 shows a wrong ε or a wrong variance at 1e-6 and above; layers that cast to float32 get float32's rounding.
EXACT, CAST = 1e-10, 5e-6
COMMON_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-24)  # the last: the square of what `F.normalize` adds
SCALES = (1e-3, 1.0, 1e3)


@dataclass(frozen=True, slots=True)
class MeasuredNorm:
    """`function` of `torch.nn.functional` that gives the same outputs with `epsilon`; `error`: relative difference.

    `weight`, `bias`: names of the parameters that scale and shift ("" for none); `offset_weight`: the scale is 1 + w.
    """

    function: str
    epsilon: float
    offset_weight: bool
    error: float
    weight: str = ""
    bias: str = ""


def measured_norm(module: torch.nn.Module, width: int, rank: int = 2) -> MeasuredNorm | None:
    """The norm over the last axis (of size `width`) that `module` computes, with ε as torch has it; None if it is none.

    `rank`: the number of axes of its input, so that a norm over axis 1 of maps is not taken for one over the last axis.

    The module is left as it is. Compared in float64, with random parameters, on rows of scale 1e-3, 1 and 1e3: small
    rows show the size and place of ε. The gradient with respect to the input must agree too.
    """
    vectors = [parameter for parameter in module.parameters() if parameter.shape == (width,)]
    if len(vectors) != len(list(module.parameters())) or len(vectors) > 2 or width < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    try:
        with preserved(module):
            clone = copy.deepcopy(module).to("cpu", torch.float64).eval()
    except Exception:  # what cannot be copied is no plain norm
        return None
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.copy_(torch.rand(width, generator=generator, dtype=torch.float64) + 0.5)
    shape = (4, *[3] * (rank - 2), width)
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) * scale + 0.3 * scale for scale in SCALES]
    casts = _Casts()  # type: ignore[no-untyped-call]
    try:
        with casts:
            results = [_with_gradient(clone, row) for row in rows]
            at_zero = clone(torch.zeros(shape, dtype=torch.float64))
    except Exception:  # it wants other inputs than one tensor, or another rank
        return None
    if not bool((at_zero == at_zero[:1]).all()):  # NaN: ε is missing
        return None
    weights = dict(clone.named_parameters())
    for candidate, reference in _candidates(module, weights):
        errors = [_distance(got, _with_gradient(reference, row)) for got, row in zip(results, rows, strict=True)]
        if all(error <= (CAST if casts.found else EXACT) for error in errors):
            function, epsilon, offset, weight, bias = candidate
            return MeasuredNorm(function, epsilon, offset, max(errors), weight, bias)
    return None


class _Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices when something is computed in less than float64."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        floats = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        self.found = self.found or any(leaf.dtype != torch.float64 for leaf in floats)
        return result


Candidate = tuple[str, float, bool, str, str]
Function = Callable[[torch.Tensor], torch.Tensor]


def _candidates(
    module: torch.nn.Module, weights: dict[str, torch.nn.Parameter]
) -> Iterator[tuple[Candidate, Function]]:
    own = [value for value in vars(module).values() if isinstance(value, float) and 0 < value < 0.1]
    own += [value**2 for value in own]  # of a floor: x / max(rms, ε)
    names = list(weights)
    for epsilon in dict.fromkeys((*own, *COMMON_EPSILONS)):
        if len(names) <= 1:
            name = names[0] if names else ""
            scale = weights[name] if names else None
            yield ("rms_norm", epsilon, False, name, ""), lambda x, w=scale, e=epsilon: rms_norm(x, w, e)  # type: ignore[misc]
            yield ("layer_norm", epsilon, False, name, ""), lambda x, w=scale, e=epsilon: layer_norm(x, w, None, e)  # type: ignore[misc]
            if scale is not None:
                yield ("rms_norm", epsilon, True, name, ""), lambda x, w=scale, e=epsilon: rms_norm(x, 1 + w, e)  # type: ignore[misc]
        else:
            for first, second in (names, names[::-1]):
                w, b = weights[first], weights[second]
                found = ("layer_norm", epsilon, False, first, second)
                yield found, lambda x, w=w, b=b, e=epsilon: layer_norm(x, w, b, e)  # type: ignore[misc]


def _with_gradient(function: Function, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row = row.clone().requires_grad_()
    with torch.enable_grad():
        out = function(row)
        # A fixed cotangent that is not constant along the axis: a norm's output hardly reacts to a constant one.
        cotangent = torch.linspace(-1, 2, row.shape[-1], dtype=out.dtype).expand_as(out)
        (gradient,) = torch.autograd.grad(out, row, cotangent)
    return out.detach().double(), gradient.double()


def _distance(got: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> float:
    errors = []
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            return float("inf")
        errors.append(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)))
    return max(errors)


def trained_in_eval(capture: Capture) -> Iterator[tuple[str, int, Location]]:
    """BatchNorms with running statistics that a forward in eval mode puts back in train mode: path of the first, how
    many there are, and the line of the user's forward that switched them, or of the layer where there is none."""
    found = []
    for node in capture.nodes("eval"):
        layer = capture.modules.get(node.module)
        if _updates(node) and layer is not None and hasattr(layer.module, "running_mean"):  # not one built on the way
            found.append(node.module)
    if not found:
        return
    with preserved(capture.model):
        capture.model.eval()
        found = [path for path in found if not capture.modules[path].module.training]  # else `eval()` is to blame
    if found:
        first = capture.modules[found[0]]
        yield first.path, len(set(found)), _switched_at(capture) or first.location


def _switched_at(capture: Capture) -> Location | None:
    """The line of the user's model that calls `self.train()`, `self.norm.train()` or the like in what it runs."""
    for facts in capture.modules.values():
        location = class_location(type(facts.module))
        source = source_at(location) if location.path else None
        owner = source.module_class(type(facts.module).__name__) if source is not None else None
        if source is None or owner is None:
            continue
        for call in source.calls_named("train"):
            method = source.method_of(call)
            if method is not None and method[0] is owner and method[1].name != "train":
                return Location(location.path, call.lineno)
    return None


def updated_though_frozen(capture: Capture) -> dict[str, list[str]]:
    """The BatchNorms with a frozen scale and shift whose running statistics the run in train mode updated, by the path
    of the largest frozen part around them; none where the whole model is frozen."""
    found: dict[str, list[str]] = {}
    if not any(parameter.requires_grad for parameter in capture.model.parameters()):
        return found
    for path in dict.fromkeys(node.module for node in capture.nodes("train") if _updates(node)):
        if path in capture.modules and _is_frozen(capture.modules[path].module):
            part = path
            while part and _is_frozen(capture.modules[part.rpartition(".")[0]].module):
                part = part.rpartition(".")[0]
            if not _thaws(capture.modules[part].location):
                found.setdefault(part, []).append(path)
    return found


def _updates(node: NodeFacts) -> bool:
    momentum = node.argument("momentum", 6, 0.1)
    statistics = node.operation == "batch_norm" and node.argument("running_mean", 1) is not None
    return statistics and node.argument("training", 5, False) is True and momentum != 0


def _is_frozen(module: torch.nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _thaws(location: Location) -> bool:
    """Whether the file in which a part is built lets parameters learn again, so that it is frozen for a while only."""
    source = source_at(location)
    return source is not None and bool(re.search(r"requires_grad(?:_\(\)|_\(True|\s*=\s*True)", source.text))
