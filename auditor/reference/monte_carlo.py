"""Monte-Carlo dropout: predictions with their uncertainty from passes that keep dropout on.

Gal and Ghahramani, "Dropout as a Bayesian Approximation", 2016, sections 3 and 4. Only layers that drop may be switched
to training for that: `model.train()` would also let BatchNorm normalise with, and update, the statistics of the
evaluation batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from auditor.reference.dropout_layers import DropConnectLinear

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
Selection = Callable[[str, nn.Module], bool]
Classifier = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What `mc_dropout` returns. Tensors are at least float32, on the device of the outputs.

    `mean`: of the outputs, or of the probabilities of a classifier. `variance`: over passes, unbiased. `entropy`: of
    the mean probabilities, in nats, one value for each prediction: the whole uncertainty. `mutual_information`: between
    prediction and mask, `entropy` minus the mean entropy of the passes: the part that more data would remove. Both are
    None unless a classifier was declared. `samples`: passes.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None
    samples: int


def is_dropout(path: str, module: nn.Module) -> bool:
    """Whether being in training changes nothing about this module but that it drops, at a rate above 0.

    torch's dropout layers; any other layer without parameters, buffers and children that has "drop" in the name of its
    class (DropPath, DropBlock, StochasticDepth is one more); attention and recurrent layers with a rate of their own.
    """
    if isinstance(module, DropConnectLinear):
        return bool(module.p > 0.0)
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0.0 and module.num_layers > 1
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0.0)
    name = str(getattr(module, "original_name", type(module).__name__)).lower()  # a ScriptModule's own class
    if "drop" not in name and "stochasticdepth" not in name:
        return False
    rate = getattr(module, "p", getattr(module, "drop_prob", None))
    return rate != 0.0 and not [*module.children(), *module.parameters(), *module.buffers()]


@contextmanager
def dropout_active(model: nn.Module, active: Selection = is_dropout) -> Iterator[list[str]]:
    """Within the context the modules that `active(path, module)` selects are in training mode, all others in
    evaluation; yields the paths of the former. The mode of every module is restored afterwards, also after an
    exception.

    `training` is set directly: `train()` of a user's class may do more (merge low-rank weights, refuse to leave
    evaluation). torch's fused inference path of transformer layers is off meanwhile: it skips dropout whatever its
    mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    chosen = [path for path, module in model.named_modules() if active(path, module)]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in modes:
            module.training = False
        for path in chosen:
            model.get_submodule(path).training = True
        yield chosen
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes:
            module.training = mode


def mc_dropout(
    model: nn.Module,
    x: Inputs,
    *,
    samples: int = 100,
    classifier: Classifier | None = None,
    class_axis: int = -1,
    active: Selection = is_dropout,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int | None = None,
    output: Callable[[Any], Tensor] = lambda result: result,
) -> Prediction:
    """Mean and uncertainty of a model's predictions over `samples` passes with dropout on and all else in evaluation.

    `x`: the input, or a tuple of positional or a mapping of named ones. `classifier`: outputs are logits, "softmax"
    over `class_axis` or "sigmoid" for each element; then all figures are about probabilities. `output` takes the tensor
    out of what the model returns. `memory_limit`: bytes that one pass may use; the batch is cut into pieces that stay
    below it (each at least one sample; every tensor whose first axis is as long as the first one's is cut).
    `progress(done, passes)` is called after each pass. With a `seed` the result is repeatable and torch's generators
    (CPU, CUDA) are left as found. No gradients. Averages are kept in double precision and need memory for three
    outputs, not for `samples` of them.

    Raises ValueError for fewer than 2 samples or a model with no active dropout. Regression: Gal and Ghahramani add the
    noise of the observations, 1/τ, to `variance`. Mutual information: Houlsby et al., "Bayesian Active Learning", 2011.
    """
    if samples < 2:
        raise ValueError(f"a variance needs at least 2 samples, not {samples}")
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(dropout_active(model, active))
        if memory_limit is None:
            pieces = [x]
        else:
            pieces = _pieces(x, max(1, memory_limit // max(1, bytes_per_sample(model, x))))
        if not any(module.training for module in model.modules()):
            raise ValueError("no dropout layer with a rate above 0: every pass would be the same")
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(_cuda_devices(model, x)))
            torch.manual_seed(seed)
        collected = [_Collected(classifier, class_axis) for _ in pieces]
        for index, piece in enumerate(pieces):
            for sample in range(samples):
                collected[index].add(output(run_model(model, piece)))
                if progress is not None:
                    progress(index * samples + sample + 1, len(pieces) * samples)
    return _joined([one.prediction() for one in collected])


class _Collected:
    """Running averages over passes (Welford's update for the variance)."""

    def __init__(self, classifier: Classifier | None, axis: int) -> None:
        self.classifier, self.axis = classifier, axis
        self.count = 0
        self.mean = self.squares = self.entropies = torch.zeros(())
        self.dtype = torch.float32

    def add(self, outputs: Tensor) -> None:
        self.count += 1
        # float64 does not exist on Apple's GPUs
        wide = outputs.to(torch.float32 if outputs.device.type == "mps" else torch.float64)
        if self.classifier == "softmax":
            wide = torch.softmax(wide, self.axis)
        elif self.classifier == "sigmoid":
            wide = wide.sigmoid()
        if self.count == 1:
            self.dtype = torch.promote_types(outputs.dtype, torch.float32)
            self.mean, self.squares, self.entropies = torch.zeros_like(wide), torch.zeros_like(wide), torch.zeros(())
        change = wide - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (wide - self.mean)
        if self.classifier is not None:
            self.entropies = self.entropies.to(wide) + self._entropy(wide)

    def _entropy(self, probabilities: Tensor) -> Tensor:
        if self.classifier == "softmax":
            return _entr(probabilities).sum(self.axis)
        return _entr(probabilities) + _entr(1.0 - probabilities)

    def prediction(self) -> Prediction:
        mean, variance = self.mean.to(self.dtype), (self.squares / (self.count - 1)).to(self.dtype)
        if self.classifier is None:
            return Prediction(mean, variance, None, None, self.count)
        entropy = self._entropy(self.mean)
        # never negative but for rounding
        information = (entropy - self.entropies / self.count).clamp_min(0.0)
        return Prediction(mean, variance, entropy.to(self.dtype), information.to(self.dtype), self.count)


def _entr(p: Tensor) -> Tensor:
    """−p ln p, 0 for p = 0."""
    result: Tensor = torch.special.entr(p)
    return result


def _joined(parts: list[Prediction]) -> Prediction:
    if len(parts) == 1:
        return parts[0]

    def join(values: list[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    return Prediction(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.variance for part in parts]),
        join([part.entropy for part in parts]),
        join([part.mutual_information for part in parts]),
        parts[0].samples,
    )


def run_model(model: nn.Module, x: Inputs) -> Any:
    """`model` on `x`: the input itself, a tuple of positional or a mapping of named ones."""
    if isinstance(x, Tensor):
        return model(x)
    return model(**x) if isinstance(x, Mapping) else model(*x)


def _tensors(x: Inputs) -> list[Tensor]:
    values = [x] if isinstance(x, Tensor) else x.values() if isinstance(x, Mapping) else x
    return [value for value in values if isinstance(value, Tensor) and value.dim() > 0]


def _rows(x: Inputs) -> int:
    tensors = _tensors(x)
    if not tensors:
        raise ValueError("a batch can be cut into pieces only if there is a tensor among the inputs")
    return len(tensors[0])


def _cut(x: Inputs, start: int, stop: int) -> Inputs:
    """Rows `start` to `stop` of the batch."""
    rows = _rows(x)

    def part(value: Any) -> Any:
        return value[start:stop] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value

    if isinstance(x, Tensor):
        return x[start:stop]
    if isinstance(x, Mapping):
        return {name: part(value) for name, value in x.items()}
    return tuple(part(value) for value in x)


def _pieces(x: Inputs, rows: int) -> list[Inputs]:
    return [_cut(x, start, start + rows) for start in range(0, _rows(x), rows)]


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storage of all that operators return and that is not a view of something given."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self.given:
                    self.storages[storage._cdata] = storage.nbytes()
                    self.alive.append(value)
        return result


def bytes_per_sample(model: nn.Module, x: Inputs) -> int:
    """Bytes of all intermediate results of one pass over one sample: an upper bound for the memory it takes beyond the
    parameters, found by running it (without gradients; in the mode the model is in)."""
    sample = _cut(x, 0, 1)
    with torch.no_grad(), _Bytes([*model.parameters(), *model.buffers(), *_tensors(sample)]) as counted:
        run_model(model, sample)
    return sum(counted.storages.values())


def _cuda_devices(model: nn.Module, x: Inputs) -> list[int]:
    """Indices of the GPUs in use: their generators, and the CPU's, are those that dropout draws from."""
    tensors = [*model.parameters(), *model.buffers(), *_tensors(x)]
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
