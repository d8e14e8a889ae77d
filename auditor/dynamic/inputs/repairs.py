"""Mends a guess at a model's inputs from the text of the error that it raised."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch import nn

from auditor.dynamic.inputs import Group, Leaf, Value
from auditor.dynamic.inputs.guesses import Facts, Guess, choices, dictionary, numbers_of, read_keys, width_of

Repair = Callable[[Guess, "re.Match[str]", Facts], Iterable[Guess]]


def repairs(guess: Guess, error: BaseException, facts: Facts) -> Iterator[Guess]:
    """Guesses that the text of `error` suggests, most specific first."""
    message = " ".join(str(error).split())
    for pattern, repair in REPAIRS:
        match = re.search(pattern, message)
        if match:
            yield from repair(guess, match, facts)
    yield from _missing(guess, message, facts)


def _ints(match: re.Match[str]) -> list[int]:
    return [int(group) for group in match.groups() if group is not None]


def _replace_axis(guess: Guess, axis: int, old: int, new: int) -> Iterator[Guess]:
    """All tensors with size `old` on an axis get `new` there; first all at once, then one at a time."""
    hit = [
        n for n, leaf in guess.leaves.items() if -len(leaf.shape) <= axis < len(leaf.shape) and leaf.shape[axis] == old
    ]
    hit = [name for name in hit if guess.leaves[name].kind == "float" or axis != -1]
    if new <= 0 or new > 1 << 20:
        return
    every = guess
    for name in hit:
        every = every.reshaped(name, _with(guess.leaves[name].shape, axis, new))
    if hit:
        yield every
    if len(hit) > 1:
        for name in hit:
            yield guess.reshaped(name, _with(guess.leaves[name].shape, axis, new))


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    changed = list(shape)
    changed[axis] = size
    return tuple(changed)


def _channels(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """Expected and given channel count."""
    wanted, got = _ints(match)
    yield from _replace_axis(guess, 1, got, wanted)
    yield from _replace_axis(guess, -1, got, wanted)
    for name, leaf in guess.leaves.items():  # channels last, or folded into another axis
        if leaf.kind == "float" and len(leaf.shape) >= 3 and got not in leaf.shape[1:]:
            yield guess.reshaped(name, _with(leaf.shape, 1, wanted))


def _last(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    wanted, got = _ints(match)
    yield from _replace_axis(guess, -1, got, wanted)
    yield from _replace_axis(guess, 1, got, wanted)


def _product(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """`mat1 and mat2 shapes cannot be multiplied (AxB and CxD)`: B came out where C is needed."""
    _, got, wanted, _ = _ints(match)
    yield from _replace_axis(guess, -1, got, wanted)
    for name, leaf in guess.leaves.items():  # ours is one of several that were concatenated
        if (
            len(guess.leaves) > 1
            and leaf.kind == "float"
            and leaf.shape
            and 0 < leaf.shape[-1] - got + wanted != wanted
        ):
            yield guess.reshaped(name, (*leaf.shape[:-1], leaf.shape[-1] - got + wanted))
    yield from _resized(guess, got, wanted, facts)


def _resized(guess: Guess, got: int, wanted: int, facts: Facts) -> Iterator[Guess]:
    """Change sizes so that a flattened axis of `got` elements has `wanted`."""
    for name, leaf in guess.leaves.items():
        shape, per_sample = leaf.shape, math.prod(leaf.shape[1:])
        if leaf.kind == "float" and per_sample == got:  # the input itself is flattened
            yield from _exact(guess, name, wanted, facts)
        if len(shape) == 2 and leaf.kind in ("tokens", "int64") and got % shape[1] == 0:
            width = got // shape[1]
            if wanted % width == 0:
                yield guess.reshaped(name, (shape[0], wanted // width))
        if leaf.kind == "float" and len(shape) == 3:
            for axis in (1, 2):
                yield from _scaled(guess, name, axis, wanted / got)
        if len(shape) in (4, 5):
            yield from _scaled_image(guess, name, (wanted / got) ** 0.5, facts)


def _exact(guess: Guess, name: str, wanted: int, facts: Facts) -> Iterator[Guess]:
    """Shapes of `wanted` elements per sample of the same rank, then flat."""
    shape = guess.leaves[name].shape
    if len(shape) == 4:
        for channels in dict.fromkeys((shape[1], 1, 3)):
            side = math.isqrt(wanted // channels)
            if side * side * channels == wanted:
                yield guess.reshaped(name, (shape[0], channels, side, side))
    if len(shape) == 3:
        for axis in (1, 2):
            other = shape[3 - axis]
            if wanted % other == 0:
                yield guess.reshaped(name, _with(shape, axis, wanted // other))
    yield guess.reshaped(name, (shape[0], wanted))


def _scaled(guess: Guess, name: str, axis: int, ratio: float) -> Iterator[Guess]:
    shape = guess.leaves[name].shape
    size = round(shape[axis] * ratio)
    for candidate in (size, size + 1, size - 1, size + 2, size + 4):
        if 0 < candidate <= 1 << 16 and candidate != shape[axis]:
            yield guess.reshaped(name, _with(shape, axis, candidate))


def _scaled_image(guess: Guess, name: str, ratio: float, facts: Facts) -> Iterator[Guess]:
    shape = guess.leaves[name].shape
    size = round(shape[-1] * ratio)
    near = sorted((s for s in facts.sizes if s != shape[-1]), key=lambda s: abs(s - size))[:2]
    for candidate in dict.fromkeys((size, *near, size + 4, size - 4)):
        if 4 <= candidate <= 1024 and candidate != shape[-1]:
            yield guess.reshaped(name, (*shape[:-2], candidate, candidate))


def _unequal(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """Two sizes that should be equal and are not: ours, or ones that grow with ours."""
    a, b = _ints(match)[:2]
    for name, leaf in guess.leaves.items():
        shape = leaf.shape
        for ours, other in ((a, b), (b, a)):
            if len(shape) == 4 and ours != other and min(ours, other) > 1:
                patches = [(ours, other), (ours - 1, other - 1)]
                for have, want in patches:
                    size = shape[-1] * math.sqrt(want / have)
                    if size == int(size) and 8 <= size <= 1024:
                        yield guess.reshaped(name, (*shape[:2], int(size), int(size)))
            if leaf.kind == "float" and len(shape) in (3, 5) and min(ours, other) > 1:
                for have, want in ((ours, other), (ours - 1, other - 1)):
                    for axis in (1, 2):
                        size = shape[axis] * want / have
                        if size == int(size) and 1 <= size <= 4096 and size != shape[axis]:
                            yield guess.reshaped(name, _with(shape, axis, int(size)))
            for axis in _free_axes(leaf):
                if shape[axis] == ours:
                    yield guess.reshaped(name, _with(shape, axis, other))
                elif abs(ours - shape[axis]) <= 2 and other - (ours - shape[axis]) > 0:  # a class token was added
                    yield guess.reshaped(name, _with(shape, axis, other - (ours - shape[axis])))


def _same_rank(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """Tensors of two ranks were concatenated: bring all to one of them."""
    for rank in sorted(_ints(match)):
        fewer = guess
        for name, leaf in guess.leaves.items():
            if leaf.kind == "float" and len(leaf.shape) == 3 and rank == 2:
                fewer = fewer.reshaped(name, (leaf.shape[0], leaf.shape[2]))
        if fewer is not guess:
            yield fewer
    for name, leaf in guess.leaves.items():
        if len(leaf.shape) == 1:
            yield guess.with_(name, Leaf("float", (*leaf.shape, 1), 0.0, 1.0))


def _rank(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """A number of dimensions is wanted; the last group of the match is it."""
    yield from ranked(guess, _ints(match)[-1], facts)


def ranked(guess: Guess, rank: int, facts: Facts) -> Iterator[Guess]:
    """Float tensors brought to `rank` dimensions, channels as far as known."""
    convolutions = {2: nn.Conv1d, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    cls = convolutions.get(rank, nn.Conv2d)
    channels = next((m.in_channels for m in facts.model.modules() if isinstance(m, cls)), 3)
    if rank == 4 and not isinstance(facts.first, cls):
        normalised = next(iter(numbers_of(facts.first, ("num_channels", "num_features"))), 3) if facts.first else 3
        channels = normalised  # 3 where patches are cut before the first weights, as in a vision transformer
    length = facts.lengths[0]
    for name, leaf in guess.leaves.items():
        shape = leaf.shape
        if len(shape) == rank or not shape:
            continue
        if leaf.kind in ("tokens", "int64"):
            if rank <= 2:
                yield guess.reshaped(name, (facts.batch, length)[:rank])
            elif rank == 3:
                yield guess.reshaped(name, (*shape[:1], 4, *shape[1:])[:3])
            continue
        options: list[tuple[int, ...]] = []
        if rank == 1:
            options = [(facts.batch,)]
        elif rank == 2:
            options = [(shape[0], shape[-1]), (facts.batch, length)]
        elif rank == 3:
            options = [(facts.batch, length, shape[-1]), (facts.batch, channels, 64)]
        elif rank == 4:
            options = [(facts.batch, channels, s, s) for s in facts.sizes[:3]]
            options.append((facts.batch, 4, length, shape[-1]))
        elif rank == 5:
            size = min(facts.sizes[0], 64)
            flat = next((m.in_channels for m in facts.model.modules() if isinstance(m, nn.Conv2d)), 3)
            frames_first = not any(isinstance(m, nn.Conv3d) for m in facts.model.modules())
            options = [(facts.batch, channels, 8, size, size), (facts.batch, 8, flat, size, size)]
            options = options[::-1] if frames_first else options
        for option in options:
            yield guess.reshaped(name, option)


def _one_more(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    yield from ranked(guess, _ints(match)[-1] + 1, facts)


def _larger(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """Something became too small: double the sizes."""
    grown = guess
    for name, leaf in guess.leaves.items():
        shape = leaf.shape
        if leaf.kind == "float" and len(shape) >= 4 and shape[-1] < 512:
            grown = grown.reshaped(name, (*shape[:-2], shape[-2] * 2, shape[-1] * 2))
        elif leaf.kind == "float" and len(shape) == 3 and shape[-1] < 1 << 17:
            grown = grown.reshaped(name, (*shape[:-1], shape[-1] * 4))
        elif leaf.kind in ("tokens", "int64") and len(shape) == 2 and shape[1] < 1024:
            grown = grown.reshaped(name, (shape[0], shape[1] * 2))
    if grown is not guess:
        yield grown


def _to_integers(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    for name, leaf in guess.leaves.items():
        if leaf.kind == "float":
            shape = leaf.shape if len(leaf.shape) <= 2 and leaf.shape[-1:] != (1,) else (facts.batch, facts.lengths[0])
            yield guess.with_(name, Leaf("tokens", shape, 0.0, float(facts.vocabulary)))
            if len(leaf.shape) == 2:
                yield guess.with_(name, Leaf("tokens", (facts.batch, facts.lengths[0]), 0.0, float(facts.vocabulary)))


def _to_floats(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    for name, leaf in guess.leaves.items():
        if leaf.kind in ("tokens", "int64", "bool"):
            yield guess.with_(name, Leaf("float", leaf.shape))
            width = width_of(facts.reached.get(name, facts.first))
            if leaf.kind == "tokens":
                yield guess.with_(name, Leaf("float", (*leaf.shape, width)))
                yield guess.with_(name, Leaf("float", (facts.batch, width)))


def _to_boolean(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    for name, leaf in guess.leaves.items():
        if "mask" in name and leaf.kind != "bool":
            yield guess.with_(name, Leaf("bool", leaf.shape))


def _smaller_range(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """An index was out of range: shorter sequences for learned positions, or a smaller vocabulary."""
    for length, high in ((8, 10.0), (2, 2.0)):
        shorter = fewer = guess
        for name, leaf in guess.leaves.items():
            if leaf.kind not in ("tokens", "int64"):
                continue
            if len(leaf.shape) >= 2 and leaf.shape[1] > length:
                shorter = shorter.reshaped(name, (leaf.shape[0], length, *leaf.shape[2:]))
            if (leaf.high or 0) > high > (leaf.low or 0):
                fewer = fewer.with_(name, replace(leaf, high=high))
        yield from (changed for changed in (shorter, fewer) if changed is not guess)


def _invalid_view(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """`shape '[4, 784]' is invalid for input of size N`: N elements where the shape holds another number."""
    wanted = [int(n) for n in re.findall(r"-?\d+", match.group(1))]
    total = int(match.group(2))
    known = math.prod(abs(n) for n in wanted if n != -1)
    per_sample = known // facts.batch if wanted[0] == facts.batch else known
    if per_sample <= 0 or total % facts.batch:
        return
    for name, leaf in guess.leaves.items():
        if leaf.kind == "float" and math.prod(leaf.shape) == total:
            yield from _exact(guess, name, per_sample, facts)
    yield from _resized(guess, total // facts.batch, per_sample, facts)


def _divisible(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """An axis of one length is to be cut into pieces of another."""
    length, piece = _ints(match)[:2]
    if piece > 0:
        for name, leaf in guess.leaves.items():
            rounded = math.ceil(length / piece) * piece
            shape = tuple(rounded if i and size == length else size for i, size in enumerate(leaf.shape))
            if shape != leaf.shape:
                yield guess.reshaped(name, shape)


def _subscripted(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """A tensor was used like a dictionary or pair."""
    for name, leaf in guess.leaves.items():
        keys = read_keys(facts, name)
        if keys:
            yield guess.with_(name, dictionary(facts, keys))
        yield guess.with_(name, Group((("", leaf), ("", leaf)), named=False))


def _missing(guess: Guess, message: str, facts: Facts) -> Iterator[Guess]:
    """Optional arguments that the error names, or that were None where a tensor was needed."""
    optional = [p for p in facts.parameters if p.default is not p.empty and p.name not in guess.items]
    named = [p for p in optional if re.search(rf"\b{re.escape(p.name)}\b", message)]
    none = [p for p in optional if p.default is None] if "NoneType" in message else []
    for parameter in named or none[:4]:
        for item in choices(facts, parameter)[:2]:
            if item != Value(None):
                yield guess.with_(parameter.name, item)
    for name, item in guess.items.items():
        if item == Value(None) and "NoneType" in message:
            parameter = next(p for p in facts.parameters if p.name == name)
            for choice in choices(facts, parameter):
                if choice != item:
                    yield guess.with_(name, choice)


def by_numbers(guess: Guess, message: str) -> Iterator[Guess]:
    """Last resort: a number of the message that we chose is replaced by another number of the message."""
    numbers = list(dict.fromkeys(int(n) for n in re.findall(r"(?<![\w.])\d{1,5}(?![\w.])", message)))
    for old, new in itertools.islice(itertools.permutations(numbers[:4], 2), 8):
        for name, leaf in guess.leaves.items():
            shape = tuple(
                new if axis in _free_axes(leaf) and size == old else size for axis, size in enumerate(leaf.shape)
            )
            if new and shape != leaf.shape:
                yield guess.reshaped(name, shape)


def _free_axes(leaf: Leaf) -> range:
    """Axes whose size may be tried out: not the samples, nor channels and sides of pictures."""
    return range(1, len(leaf.shape) if len(leaf.shape) < 4 else 0)


def _last_reversed(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    got, wanted = _ints(match)
    yield from _replace_axis(guess, -1, got, wanted)


def _normalised(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    got, wanted = _ints(match)
    yield from _replace_axis(guess, 1, got, wanted)


def _permuted(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    yield from ranked(guess, 4, facts)
    yield from ranked(guess, 3, facts)


def _image_size(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    size = _ints(match)[-1]
    for name, leaf in guess.leaves.items():
        if len(leaf.shape) >= 4:
            yield guess.reshaped(name, (*leaf.shape[:-2], size, size))


REPAIRS: tuple[tuple[str, Repair], ...] = (
    (r"to have (\d+) channels, but got (\d+) channels", _channels),
    (r"running_mean should contain (\d+) elements not (\d+)", _normalised),
    (r"number of channels in input, but got weight of shape \[(\d+)\] and input of shape \[\d+, (\d+)", _channels),
    (r"shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)", _product),
    (r"input_size\. Expected (\d+), got (\d+)", _last),
    (r"has inconsistent input_size: got (\d+),? expected (\d+)", _last_reversed),
    (r"expecting embedding dimension of (\d+), but got (\d+)", _last),
    (r"expected input with shape \[\*, (?:\d+, )*(\d+)\], but got input of size ?\[(?:\d+, )*(\d+)\]", _last),
    (r"[Ii]nput image (?:size|height|width) \((?:\d+).*?\).*?model.*?\((\d+)", _image_size),
    (r"[Ii]nput (?:size|height|width) \((?:\d+)\) doesn't match model \((\d+)\)", _image_size),
    (r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", _unequal),
    (r"Expected size (\d+) but got size (\d+)", _unequal),
    (r"shape '(\[.*?\])' is invalid for input of size (\d+)", _invalid_view),
    (r"can't divide axis of length (\d+) in chunks of (\d+)", _divisible),
    (r"\(?(\d+)\)? (?:must|should) be (?:divisible by|a multiple of)\D*(\d+)", _divisible),
    (r"expected (\d+) dims\. Received \d+-dim tensor", _rank),
    (r"not enough values to unpack \(expected (\d+)", _rank),
    (r"too many values to unpack \(expected (\d+)", _rank),
    (r"[Ee]xpected (\d)D \(unbatched\) or (\d)D \(batched\) input", _rank),
    (r"[Ee]xpected 2D or (\d)D input", _rank),
    (r"[Ee]xpected (\d)D input", _rank),
    (r"[Ee]xpected input to be 2D or (\d)D", _rank),
    (r"[Ii]nput must have (\d) dimensions", _rank),
    (r"only batches of spatial targets supported \((\d)D tensors\)", _rank),
    (r"Tensors must have same number of dimensions: got (\d+) and (\d+)", _same_rank),
    (r"Dimension out of range .* but got (\d)", _one_more),
    (r"too many indices for tensor of dimension (\d)", _one_more),
    (r"number of dims don't match in permute|number of dimensions in the tensor input does not match", _permuted),
    (r"Kernel size can't be greater|Output size is too small|Padding size should be less", _larger),
    (r"more than 1 value per channel|non-empty|smaller than kernel|too small|cannot be empty", _larger),
    (r"index out of range|out of bounds|is out of range|Target \d+ is out", _smaller_range),
    (r"Expected tensor for argument #1 'indices'|must be .*(?:Long|Int)|expected scalar type Long", _to_integers),
    (r"tensors used as indices|one_hot is only applicable to index|dtype int64|Index tensor must", _to_integers),
    (r"[Gg]ot:? Long|found Long|\(long int\)|LongTensor|not implemented for 'Long'|long int", _to_floats),
    (r"torch\.int64|should be the same", _to_floats),
    (r"mask.*(?:Bool|bool)|BoolTensor|expected.*bool", _to_boolean),
    (r"must be tuples of ints|new\(\): invalid data type|only integer tensors|indices must be", _subscripted),
    (r"has no attribute '(?:keys|items|get)'|too many indices|Tensor.*string", _subscripted),
)
