"""Constructs a model without memory for its weights, and makes the values of one weight at a time.

While a `Deferral` is active, large new tensors go to the meta device, and every operation is logged with the storages
that it reads and writes. What a weight would hold follows from the slice of the log that wrote its storage: `fill_of`
reads it off in closed form where one operation filled all of it, `values` runs the slice. Random numbers are drawn
under a seed of their own per operation, so a copy gets the values of its original, and two draws differ; they are not
those that a whole construction would have drawn.

`torch.device("meta")` is not used for this: libraries that see it skip their initialisers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")
MINIMUM = 4096  # elements from which a new tensor is deferred: constructors read small ones
# Factories whose sizes are not their first argument, and which are small or read.
KEPT = frozenset({"arange", "linspace", "logspace", "tril_indices", "triu_indices", "scalar_tensor"})
COPIES = frozenset({"clone", "_to_copy", "contiguous", "detach_copy"})
UNFILLED = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_"}
)
INITIALISERS = ("_no_grad_trunc_normal_", "orthogonal_", "sparse_", "dirac_")
SMALL_PART = 0.05  # of a weight: a padding row set to zero says nothing about the rest


class Step(NamedTuple):
    """One logged operation. `reads`, `writes`: addresses of storages."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    reads: frozenset[int]
    writes: frozenset[int]


class Fill(NamedTuple):
    """What a whole tensor was filled with. `kind`: "normal" (also truncated), "uniform", "constant" or "empty" (nothing
    was written). `origin`: number of the operation that drew it, the same for copies."""

    kind: str
    mean: float
    std: float
    origin: int

    def scaled(self, factor: float = 1.0, shift: float = 0.0) -> Fill:
        return self._replace(mean=self.mean * factor + shift, std=self.std * abs(factor))

    def sample(self, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
        """A float32 tensor of this distribution; NaN for what was never written."""
        generator = torch.Generator().manual_seed(seed + self.origin)
        if self.kind == "normal":
            return torch.randn(*shape, generator=generator) * self.std + self.mean
        if self.kind == "uniform":
            return (torch.rand(*shape, generator=generator) * 2 - 1) * (self.std * math.sqrt(3)) + self.mean
        return torch.full(tuple(shape), math.nan if self.kind == "empty" else self.mean)


class Deferral(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Active, it defers and logs. Afterwards it answers for the tensors made meanwhile. Holds no large values."""

    def __init__(self, minimum: int = MINIMUM) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.minimum = minimum
        self.log: list[Step] = []
        self._by_storage: dict[int, list[int]] = {}

    # Logging ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Deferral:
        self._originals = {name: getattr(torch.nn.init, name) for name in INITIALISERS}
        for name, original in self._originals.items():
            setattr(torch.nn.init, name, functools.partial(self._initialise, name, original))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for name, original in self._originals.items():
            setattr(torch.nn.init, name, original)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = _tensors((args, kwargs))
        call_args, call_kwargs = args, kwargs
        if not given:
            if _makes_large(function, args, self.minimum):
                call_kwargs = {**kwargs, "device": META}
        elif any(tensor.is_meta for tensor in given):
            if kwargs.get("device") is not None:
                call_kwargs = {**kwargs, "device": META}
            if name != "copy_":
                call_args, call_kwargs = to_meta((call_args, call_kwargs))
        result = function(*call_args, **call_kwargs)
        self._note(name, function, args, kwargs, result, _written(function, args, kwargs))
        return result

    def _initialise(
        self, name: str, original: Callable[..., torch.Tensor], tensor: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One of torch's initialisers that look at values and so leave meta tensors alone: one operation in the log."""
        if not tensor.is_meta:
            return original(tensor, *args, **kwargs)
        self._note(name, original, (tensor, *args), kwargs, tensor, [tensor])
        return tensor

    def _note(
        self,
        name: str,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        written: list[torch.Tensor],
    ) -> None:
        reads = frozenset(map(address, _tensors((args, kwargs))))
        results = frozenset(map(address, _tensors(result)))
        writes = frozenset(map(address, written)) or results - reads
        # Detached: `parameter.data = …` would otherwise change what the log refers to.
        kept = functools.partial(tree_map_only, torch.Tensor, lambda tensor: tensor.detach())
        step = Step(name, function, kept(args), kept(dict(kwargs)), kept(result), reads, writes)
        for storage in reads | results:
            self._by_storage.setdefault(storage, []).append(len(self.log))
        self.log.append(step)

    # Answers ----------------------------------------------------------------------------------------------------------

    def slice_of(self, tensor: torch.Tensor) -> list[int]:
        """Numbers of the operations that made what `tensor` holds, in order."""
        needed: set[int] = set()
        queue = [(address(tensor), len(self.log))]
        for storage, before in queue:
            for number in self._by_storage.get(storage, ()):
                if number < before and number not in needed and storage in self.log[number].writes:
                    needed.add(number)
                    queue += [(read, number) for read in self.log[number].reads]
        return sorted(needed)

    def fill_of(self, tensor: torch.Tensor) -> Fill | None:
        """What filled all of it, where one operation did (and numbers may have scaled it since), else None."""
        fills: dict[int, Fill | None] = {}
        for number in self.slice_of(tensor):
            step = self.log[number]
            if step.name in UNFILLED and step.name != "resize_":
                fills.update(dict.fromkeys(step.writes, Fill("empty", 0.0, 0.0, number)))
                continue
            for storage in step.writes:
                if not _is_small_part(step):
                    fills[storage] = _filled(step, number, storage, fills)
        return fills.get(address(tensor))

    @torch.no_grad()
    def values(self, tensor: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """A real tensor with what `tensor` holds. Needs memory for it and for what it is made from.

        Draws from torch's global generator, which is left changed.
        """
        made: dict[int, torch.Tensor] = {}

        def real(part: torch.Tensor) -> torch.Tensor:
            base = made.get(address(part))
            return part if base is None else base.as_strided(part.size(), part.stride(), part.storage_offset())

        for number in self.slice_of(tensor):
            step = self.log[number]
            torch.manual_seed(seed + number)
            args, kwargs = tree_map_only(torch.Tensor, real, (step.args, dict(step.kwargs)))
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("cpu")
            result = step.function(*args, **kwargs)
            for before, after in zip(_tensors(step.result), _tensors(result), strict=True):
                made.setdefault(address(before), after)
        return real(tensor)

    def signature(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """Equal for tensors that equal programs made: their values differ by the draw alone."""
        return tuple(
            (step.name, tuple(_plain(part) for part in tree_leaves((step.args, dict(step.kwargs)))))
            for step in (self.log[number] for number in self.slice_of(tensor))
        )


class ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Active, whatever meets a meta tensor or is large is computed on the meta device: shapes without values.

    A model of real, deferred or mixed tensors then runs with no memory for what it computes; real tensors stay as they
    are. What looks at a value raises, as it does on the meta device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        if given and not any(tensor.is_meta for tensor in given):
            return function(*args, **kwargs)
        if not given:
            large = _makes_large(function, args, MINIMUM)
            return function(*args, **({**kwargs, "device": META} if large else kwargs))
        if function.overloadpacket.__name__ == "copy_" and not args[0].is_meta:
            return args[0]
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": META}
        args, kwargs = to_meta((args, kwargs))
        return function(*args, **kwargs)


class CountedShapes(ShapesOnly):  # type: ignore[no-untyped-call]
    """Also counts: `bytes` is the size of all that was computed on the meta device, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        given = {address(tensor) for tensor in _tensors((args, kwargs))}
        made = [tensor for tensor in _tensors(result) if tensor.is_meta and address(tensor) not in given]
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in made)
        return result


def _makes_large(function: Any, args: tuple[Any, ...], minimum: int) -> bool:
    """Whether a factory makes a tensor of at least `minimum` elements."""
    takes_device = any(argument.name == "device" for argument in function._schema.arguments)
    sizes = next((argument for argument in args if isinstance(argument, (list, tuple))), ())
    known = all(isinstance(size, int) for size in sizes)
    return takes_device and function.overloadpacket.__name__ not in KEPT and known and math.prod(sizes) >= minimum


# Closed forms ---------------------------------------------------------------------------------------------------------


def _filled(step: Step, number: int, storage: int, fills: Mapping[int, Fill | None]) -> Fill | None:
    """What a storage holds after `step`, which writes it; None if no closed form is known."""
    name, args = step.name, step.args
    numbers = _numbers(step)
    if name in ("zero_", "zeros", "zeros_like", "new_zeros"):
        return Fill("constant", 0.0, 0.0, number)
    if name in ("ones", "ones_like", "new_ones"):
        return Fill("constant", 1.0, 0.0, number)
    if name in ("fill_", "full", "full_like", "new_full") and numbers:
        return Fill("constant", numbers[0], 0.0, number)
    if name in ("normal_", "randn", "randn_like"):
        mean, std = (*numbers, *(0.0, 1.0)[len(numbers) :])[:2] if name == "normal_" else (0.0, 1.0)
        return Fill("normal", mean, std, number)
    if name in ("uniform_", "rand", "rand_like"):
        low, high = (*numbers, *(0.0, 1.0)[len(numbers) :])[:2] if name == "uniform_" else (0.0, 1.0)
        return Fill("uniform", (low + high) / 2, (high - low) / math.sqrt(12), number)
    if name == "_no_grad_trunc_normal_":
        mean, std, low, high = (*numbers, *(0.0, 1.0, -2.0, 2.0)[len(numbers) :])[:4]
        return Fill("normal", *_truncated_moments(mean, std, low, high), number)
    source = next((part for part in args[name == "copy_" :] if isinstance(part, torch.Tensor)), None)
    before = fills.get(address(source)) if source is not None else None
    if before is None or source is None or (0 in source.stride() and before.std):
        return None  # an expanded source repeats its values
    if name == "copy_" or name in COPIES:
        return before
    operation = name.rstrip("_")
    if len(_tensors(args)) != 1 or not numbers:
        return None
    if operation == "mul":
        return before.scaled(numbers[0])
    if operation == "div" and numbers[0]:
        return before.scaled(1 / numbers[0])
    if operation in ("add", "sub") and len(numbers) == 1:
        return before.scaled(shift=numbers[0] if operation == "add" else -numbers[0])
    return None


def _truncated_moments(mean: float, std: float, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of N(mean, std²) cut off at `low` and `high`."""
    alpha, beta = (low - mean) / std, (high - mean) / std

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def probability(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    mass = probability(beta) - probability(alpha)
    shift = (density(alpha) - density(beta)) / mass
    variance = 1 + (alpha * density(alpha) - beta * density(beta)) / mass - shift * shift
    return mean + std * shift, std * math.sqrt(max(variance, 0.0))


def _is_small_part(step: Step) -> bool:
    """Whether it writes only a small part of a tensor that exists."""
    if not step.args or not isinstance(step.args[0], torch.Tensor) or address(step.args[0]) not in step.writes:
        return False
    written = step.args[0]
    return written.numel() * written.element_size() < SMALL_PART * written.untyped_storage().nbytes()


def _numbers(step: Step) -> list[float]:
    """The plain numbers among the arguments, without those that are sizes."""
    leaves: Iterator[Any] = (part for part in step.args if not isinstance(part, (list, tuple, torch.Tensor)))
    given = [*leaves, *(step.kwargs[key] for key in ("mean", "std", "a", "b", "value") if key in step.kwargs)]
    return [float(part) for part in given if isinstance(part, (int, float)) and not isinstance(part, bool)]


def _plain(part: Any) -> Any:
    return tuple(part.shape) if isinstance(part, torch.Tensor) else str(part)


# Tensors --------------------------------------------------------------------------------------------------------------


def address(tensor: torch.Tensor) -> int:
    """What tells one storage from another while both live, also on the meta device."""
    storage: int = tensor.untyped_storage()._cdata
    return storage


def to_meta(tree: Any) -> Any:
    """The same containers with every tensor on the meta device; numbers in tensors of no dimension stay."""
    return tree_map_only(torch.Tensor, lambda t: t if t.is_meta or not t.dim() else t.to(META), tree)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided]


def _written(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Arguments that the operation writes to."""
    written = []
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += _tensors(kwargs.get(argument.name, args[position] if position < len(args) else None))
    return written
