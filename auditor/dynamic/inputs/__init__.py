"""What a model is called with: written by the user (`2x3x32x32`), taken from a hook, or inferred (`infer.py`).

Reading a specification needs no torch, so that the command line can refuse a bad one at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ALIASES = {
    "half": "float16",
    "double": "float64",
    "int": "int64",
    "long": "int64",
    "short": "int16",
    "complex": "complex64",
}
FLOATS = ("float", "float16", "bfloat16", "float32", "float64", "complex64", "complex128")
INTEGERS = ("tokens", "int64", "int32", "int16", "int8", "uint8")
KINDS = (*FLOATS, *INTEGERS, "bool")
VOCABULARY = 100
FORMS = "write sizes joined by `x`, like `2x3x32x32`, `float16:2x3`, `tokens:2x16:100` or `x=2x3,mask=bool:2x16`"

REMEDY = "give them with `--input`, as in `--input 4x3x32x32`, or define `example_inputs` on the model"

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
RANGE = re.compile(rf"({NUMBER})(?:-|\.\.)({NUMBER})")
SHAPE = re.compile(r"\d+(?:x\d+)*|scalar")
NAME = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)")


class InputError(Exception):
    """No inputs were found with which the model runs; the message names the last error, `remedy` what to write."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.remedy = REMEDY


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor. `kind` is a dtype, `float` (the dtype of the audit) or `tokens` (int64 from 0 up to `high`).

    Floats are drawn from N(0, 1), or uniformly from [low, high); integers from low … high-1; booleans are mixed.
    """

    kind: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        text = "x".join(map(str, self.shape)) or "scalar"
        if self.kind != "float":
            text = f"{self.kind}:{text}"
        if self.kind == "tokens":
            return (
                f"{text}:{_number(self.high)}" if not self.low else f"{text}:{_number(self.low)}-{_number(self.high)}"
            )
        if self.high is not None:
            text = f"{text}:{_number(self.low or 0)}-{_number(self.high)}"
        return text

    def make(self, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """The tensor, on CPU; `dtype` is the one of `float`."""
        import torch

        if self.kind in INTEGERS:
            target = torch.int64 if self.kind == "tokens" else getattr(torch, self.kind)
            low, high = int(self.low or 0), int(VOCABULARY if self.high is None else self.high)
            return torch.randint(low, high, self.shape, generator=generator).to(target)
        if self.kind == "bool":
            return _mixed(torch.rand(self.shape, generator=generator) < 0.5)
        target = dtype if self.kind == "float" else getattr(torch, self.kind)
        # Drawn in float32 whatever the target, so that a run in another dtype sees the same numbers.
        drawn = torch.float32 if not target.is_complex else torch.complex64
        if self.high is None:
            return torch.randn(self.shape, generator=generator, dtype=drawn).to(target)
        start = self.low or 0.0
        return (torch.rand(self.shape, generator=generator) * (self.high - start) + start).to(target)


@dataclass(frozen=True, slots=True)
class Value:
    """An argument that is no tensor: `True`, `None`, `'mean'`, `value:2`."""

    value: Any

    def __str__(self) -> str:
        plain = isinstance(self.value, (bool, str)) or self.value is None
        return repr(self.value) if plain else f"value:{self.value!r}"


@dataclass(frozen=True, slots=True)
class Group:
    """A dictionary (`{image=2x3x8x8,mask=bool:2x16}`) or, without names, a list (`[2x3,2x3]`) given as one argument."""

    items: tuple[tuple[str, Item], ...]
    named: bool

    def __str__(self) -> str:
        if self.named:
            return "{" + ",".join(f"{name}={item}" for name, item in self.items) + "}"
        return "[" + ",".join(str(item) for _, item in self.items) + "]"


Item = Leaf | Value | Group


@dataclass(frozen=True, slots=True)
class Spec:
    """All arguments of one call."""

    args: tuple[Item, ...] = ()
    kwargs: Mapping[str, Item] = field(default_factory=dict)

    def __str__(self) -> str:
        return ";".join((*map(str, self.args), *(f"{name}={item}" for name, item in self.kwargs.items())))

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for item in (*self.args, *self.kwargs.values()) for leaf in _leaves(item))

    def make(
        self,
        *,
        seed: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        source: str = "given",
        batch_axis: int | None = 0,
    ) -> Inputs:
        """Draw the tensors under `seed`; the same numbers on every device."""
        import torch

        generator = torch.Generator().manual_seed(seed)

        def build(item: Item) -> Any:
            if isinstance(item, Leaf):
                return item.make(generator, getattr(torch, dtype)).to(device)
            if isinstance(item, Value):
                return item.value
            if item.named:
                return {name: build(child) for name, child in item.items}
            return [build(child) for _, child in item.items]

        args = tuple(build(item) for item in self.args)
        kwargs = {name: build(item) for name, item in self.kwargs.items()}
        batch = common_size([leaf.shape for leaf in self.leaves], batch_axis)
        return Inputs(args, kwargs, str(self), source, batch, batch_axis if batch is not None else None, self)


@dataclass(frozen=True)
class Inputs:
    """What the model is called with: `model(*inputs.args, **inputs.kwargs)`.

    `description` can be pasted as a specification where one exists, `source` is "given", "hook" or "inferred",
    `batch` the number of samples and `batch_axis` the axis they lie on in every tensor (None: not known). `spec` is
    None for tensors that came from a hook.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    description: str
    source: str
    batch: int | None = None
    batch_axis: int | None = None
    spec: Spec | None = None

    @property
    def batch_axis_size(self) -> int | None:
        return self.batch

    def to(self, device: str, dtype: str) -> Inputs:
        """The same inputs on another device, floating-point tensors in another dtype."""
        import torch
        from torch.utils._pytree import tree_map

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return leaf.to(device, getattr(torch, dtype)) if leaf.is_floating_point() else leaf.to(device)

        return replace(self, args=tree_map(move, self.args), kwargs=tree_map(move, self.kwargs))


def rebatched(inputs: Inputs, size: int, *, seed: int = 0, dtype: str = "float32", device: str = "cpu") -> Inputs:
    """The same inputs with `size` samples, which somebody chose; as they are where the batch axis is not known."""
    spec, axis = inputs.spec, inputs.batch_axis
    if spec is None or axis is None or inputs.batch is None:
        return inputs

    def resized(item: Item) -> Item:
        if isinstance(item, Group):
            return replace(item, items=tuple((name, resized(part)) for name, part in item.items))
        if not isinstance(item, Leaf) or len(item.shape) <= axis or item.shape[axis] != inputs.batch:
            return item
        return replace(item, shape=(*item.shape[:axis], size, *item.shape[axis + 1 :]))

    changed = Spec(tuple(map(resized, spec.args)), {name: resized(item) for name, item in spec.kwargs.items()})
    return changed.make(seed=seed, dtype=dtype, device=device, source="given", batch_axis=axis)


def common_size(shapes: Sequence[tuple[int, ...]], axis: int | None) -> int | None:
    """The size along `axis` that all shapes with such an axis share, or None."""
    sizes = {shape[axis] for shape in shapes if len(shape) > axis} if axis is not None else set()
    return sizes.pop() if len(sizes) == 1 else None


def describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A specification-like text of arguments that already exist."""
    return ";".join((*map(_describe, args), *(f"{name}={_describe(value)}" for name, value in kwargs.items())))


def _describe(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        shape = "x".join(map(str, value.shape)) or "scalar"
        if value.dtype in (torch.int64, torch.int32) and value.numel():
            return f"{kind}:{shape}:{int(value.min())}-{int(value.max()) + 1}"
        return shape if kind == "float32" else f"{kind}:{shape}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}={_describe(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_describe, value)) + "]"
    return str(Value(value)) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def from_tensors(value: Any) -> Inputs:
    """What a hook returned as inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""
    import torch
    from torch.utils._pytree import tree_leaves

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(value, Inputs):
        return value
    if isinstance(value, Mapping):
        kwargs = {str(name): item for name, item in value.items()}
    elif isinstance(value, (tuple, list)):
        args = tuple(value)
        if len(args) == 2 and isinstance(args[1], Mapping) and isinstance(args[0], (tuple, list)):
            args, kwargs = tuple(args[0]), dict(args[1])
    elif isinstance(value, torch.Tensor):
        args = (value,)
    else:
        raise TypeError(f"example inputs must be a tensor, a tuple or a dict, not {type(value).__name__}")
    shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    batch = common_size(shapes, 0)
    return Inputs(args, kwargs, describe(args, kwargs), "hook", batch, 0 if batch is not None else None)


# Reading a specification ---------------------------------------------------------------------------------------------


def parse(text: str | Sequence[str]) -> Spec:
    """Read one or several specifications; ValueError, saying what is wrong and what to write, for a bad one.

    Arguments are separated by `;` or `,`; `name=` makes one a keyword argument.
    """
    texts = [text] if isinstance(text, str) else list(text)
    args: list[Item] = []
    kwargs: dict[str, Item] = {}
    for name, item in (pair for part in texts for pair in _pairs(part)):
        if name in kwargs:
            raise ValueError(f"input {name!r} is given twice")
        if name:
            kwargs[name] = item
        elif kwargs:
            raise ValueError(f"the unnamed input {str(item)!r} stands after a named one: put it first or name it")
        else:
            args.append(item)
    if not args and not kwargs:
        raise ValueError(f"an empty input: {FORMS}")
    return Spec(tuple(args), kwargs)


def _pairs(text: str) -> Iterator[tuple[str, Item]]:
    for part in _split(text):
        match = NAME.match(part)
        name = match.group(1) if match else ""
        yield name, _item(part[match.end() :].strip() if match else part)


def _split(text: str) -> list[str]:
    """Cut at `;` and `,` outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character in ";," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
        if depth < 0:
            raise ValueError(f"{character!r} closes nothing in {text!r}")
    if depth or quote:
        raise ValueError(f"a bracket or quote is not closed in {text!r}")
    parts = [part.strip() for part in (*parts, text[start:])]
    if parts[-1] == "" and len(parts) > 1:
        parts.pop()
    return parts


def _item(text: str) -> Item:
    if text[:1] == "{" or text[:1] == "[":
        named = text[0] == "{"
        if text[-1] != "}]"[not named]:
            raise ValueError(f"{text!r}: expected {'}]'[not named]!r} at its end")
        pairs = tuple(_pairs(text[1:-1]))
        if any(bool(name) != named for name, _ in pairs):
            raise ValueError(f"{text!r}: entries of {{}} need names, those of [] have none")
        return Group(pairs, named)
    if text in ("True", "False", "None") or text[:1] in ("'", '"'):
        return Value(_literal(text))
    if text.startswith("value:"):
        return Value(_literal(text.removeprefix("value:")))
    return _leaf(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{text!r} is not a Python literal") from None


def _leaf(text: str) -> Leaf:
    parts = [part.strip() for part in text.split(":")]
    kind = "float"
    if len(parts) > 1 and not SHAPE.fullmatch(parts[0]):
        kind = ALIASES.get(parts[0], parts[0])
        parts = parts[1:]
        if kind not in KINDS:
            import difflib

            close = difflib.get_close_matches(kind, (*KINDS, *ALIASES), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join((*KINDS, *ALIASES))}"
            raise ValueError(f"unknown kind {kind!r} in {text!r}: {hint}")
    if not SHAPE.fullmatch(parts[0].lower()):
        raise ValueError(f"{parts[0]!r} is not a shape: {FORMS}" if parts[0] else f"no shape in {text!r}: {FORMS}")
    shape = () if parts[0] == "scalar" else tuple(map(int, parts[0].lower().split("x")))
    if 0 in shape:
        raise ValueError(f"{text!r} has a size of 0: there would be nothing to run")
    if len(parts) > 2:
        raise ValueError(f"{text!r} has too many `:`; the order is kind:shape:range")
    if len(parts) == 2:
        return _ranged(kind, shape, parts[1], text)
    return Leaf(kind, shape, *((0.0, float(VOCABULARY)) if kind == "tokens" else (None, None)))


def _ranged(kind: str, shape: tuple[int, ...], bounds: str, text: str) -> Leaf:
    if kind == "bool":
        raise ValueError(f"{text!r}: booleans have no range")
    match = RANGE.fullmatch(bounds)
    if match:
        low, high = float(match.group(1)), float(match.group(2))
    elif kind in INTEGERS and re.fullmatch(r"\d+", bounds):
        low, high = 0.0, float(bounds)
    else:
        raise ValueError(
            f"{bounds!r} in {text!r} is not a range: write it as `0-1`, or `-1..1` (the end is not included)"
        )
    if low >= high:
        raise ValueError(f"the range {bounds!r} in {text!r} is empty: its end must be above its start")
    if kind in INTEGERS and (low % 1 or high % 1):
        raise ValueError(f"{text!r}: integers need whole bounds")
    return Leaf(kind, shape, low, high)


def _leaves(item: Item) -> Iterator[Leaf]:
    if isinstance(item, Leaf):
        yield item
    elif isinstance(item, Group):
        for _, child in item.items:
            yield from _leaves(child)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if value % 1 else str(int(value))


def _mixed(mask: torch.Tensor) -> torch.Tensor:
    """Make sure that every row has a True and a False, so that a mask of either meaning leaves something."""
    if mask.dim() and mask.shape[-1] > 1:
        mask[..., 0], mask[..., -1] = True, False
    return mask
