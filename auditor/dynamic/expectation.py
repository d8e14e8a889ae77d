"""Whether layers that zero at random keep their expectation: the mean of their output in training against eval."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auditor.dynamic.record import cloned
from auditor.dynamic.state import preserved, seed_all
from auditor.finding import Location

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, ModuleFacts

GROUPS = 32  # for the t statistic
LIMIT = 6.07  # of |t| at 31 degrees of freedom: false alarm 1e-6
LARGE = 100_000  # entries above which one pass per group must do
REPEATS = 8


@dataclass(frozen=True, slots=True)
class Expectation:
    """A layer that zeroes some of its input and passes on the rest: `ratio` of the mean in training to eval, the share
    `kept`, the factor `scale` of what is kept relative to eval, and the statistic `t` of ratio against 1."""

    facts: ModuleFacts
    ratio: float
    kept: float
    scale: float
    t: float

    @property
    def is_off(self) -> bool:
        return abs(self.t) > LIMIT and abs(self.ratio - 1) > 1e-3


def expectations(capture: Capture) -> Iterator[Expectation]:
    """One for each module of the user's own that holds no modules or parameters and multiplies its input with random
    zeros in training, called on ones."""
    random = {node.module for node in capture.nodes("train") if node.random}
    wanted = [facts for facts in capture.modules.values() if facts.path in random and _is_bare(facts)]
    if not wanted:
        return
    with preserved(capture.model), torch.no_grad():
        calls = _calls(capture, {facts.path for facts in wanted})
        for facts in wanted:
            if facts.path in calls:
                found = _measured(facts, *calls[facts.path])
                if found is not None:
                    yield found


def _is_bare(facts: ModuleFacts) -> bool:
    module = facts.module
    own = not facts.kind.startswith("torch.") and not isinstance(module, torch.jit.ScriptModule)
    return own and not any(True for _ in module.children()) and not any(True for _ in module.parameters())


def _calls(capture: Capture, paths: set[str]) -> dict[str, tuple[inspect.BoundArguments, str]]:
    """The arguments of the first call of each module in training, and the name of the tensor among them."""
    calls: dict[str, tuple[inspect.BoundArguments, str]] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            tensors = [name for name, value in bound.arguments.items() if _is_data(value)]
            if path not in calls and len(tensors) == 1:
                calls[path] = bound, tensors[0]

        return hook

    handles = [
        capture.modules[path].module.register_forward_pre_hook(keep(path), with_kwargs=True) for path in sorted(paths)
    ]
    try:
        capture.model.train()
        seed_all(capture.seed)
        args, kwargs = cloned((capture.inputs.args, capture.inputs.kwargs))
        capture.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_data(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0


def _measured(facts: ModuleFacts, bound: inspect.BoundArguments, name: str) -> Expectation | None:
    module = facts.module
    ones = torch.ones_like(bound.arguments[name])

    def output(training: bool, seed: int) -> Any:
        module.train(training)
        seed_all(seed)
        bound.arguments[name] = ones.clone()
        return module(*bound.args, **bound.kwargs)

    reference = output(False, 0)
    if not isinstance(reference, torch.Tensor) or reference.shape != ones.shape or not _is_constant(reference):
        return None
    means, kept, scales = [], [], []
    passes = 1 if ones.numel() > LARGE else REPEATS
    for group in range(GROUPS):
        outputs = [output(True, group * passes + number) / reference for number in range(passes)]
        together = torch.stack(outputs).double()
        survivors = together[together != 0]
        if survivors.numel() and not _is_constant(survivors):
            return None
        scales += [float(survivors[0])] if survivors.numel() else []
        means.append(float(together.mean()))
        kept.append(survivors.numel() / together.numel())
    share, ratio = statistics.fmean(kept), statistics.fmean(means)
    if not scales or share == 1 or max(scales) - min(scales) > 1e-5 * max(scales):
        return None
    error = statistics.stdev(means) / math.sqrt(GROUPS)
    return Expectation(facts, ratio, share, scales[0], (ratio - 1) / error if error else math.inf)


def _is_constant(tensor: torch.Tensor) -> bool:
    """Whether all entries are one number, and that is not 0."""
    first = float(tensor.flatten()[0])
    return first != 0 and bool((tensor - first).abs().max() <= 1e-5 * abs(first))


def product_line(capture: Capture, facts: ModuleFacts) -> Location:
    """The line of a layer's forward that multiplies the mask in, or the layer's own."""
    inside = [node for node in capture.nodes("train") if node.module == facts.path]
    drawn = {node.name for node in inside if node.random}
    for node in inside:
        if any(given.name in drawn for given in node.inputs):
            drawn.add(node.name)
            if node.operation == "mul" and any(given.name not in drawn for given in node.inputs):
                return node.location
    return facts.location
