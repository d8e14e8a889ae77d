"""First guesses of what a model can be called with.

They come from the module that each argument of `forward` reaches first, and from the argument's name and annotation.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from auditor.dynamic.inputs import VOCABULARY, Group, Item, Leaf, Value

BATCH = 4
LENGTH = 16  # tokens, frames or samples of a sequence
IMAGE_SIZES = (32, 64, 224, 28, 128, 96, 256, 299)
SHORT = (1, 4, 8, 16)

IMAGE_ATTRIBUTES = ("image_size", "img_size", "input_size", "image_resolution", "input_resolution", "sample_size")
LENGTH_ATTRIBUTES = (
    "max_seq_len",
    "block_size",
    "max_len",
    "seq_len",
    "seq_length",
    "sequence_length",
    "context_length",
    "max_length",
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "input_len",
    "num_patches",
)
# Modules that say themselves what they can be fed.
KNOWN = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)
CONFIG_ATTRIBUTES = ("config", "cfg", "hparams", "args", "params", "opt")


@dataclass(frozen=True)
class Guess:
    """One way to call the model: an item for each argument by name. `axis` is where the samples lie."""

    items: Mapping[str, Item]
    axis: int | None = 0

    @property
    def leaves(self) -> dict[str, Leaf]:
        return {name: item for name, item in self.items.items() if isinstance(item, Leaf)}

    def with_(self, name: str, item: Item) -> Guess:
        return replace(self, items={**self.items, name: item})

    def reshaped(self, name: str, shape: Sequence[int]) -> Guess:
        return self.with_(name, replace(self.leaves[name], shape=tuple(shape)))

    def batched(self, before: int, size: int) -> Guess:
        """The same with `size` samples where there were `before`."""
        axis, items = self.axis or 0, dict(self.items)
        for name, leaf in self.leaves.items():
            if len(leaf.shape) > axis and leaf.shape[axis] == before:
                items[name] = replace(leaf, shape=(*leaf.shape[:axis], size, *leaf.shape[axis + 1 :]))
        return replace(self, items=items)

    @property
    def elements(self) -> int:
        """The number of elements of the largest tensor."""
        return max((math.prod(leaf.shape) for leaf in self.leaves.values()), default=0)

    @property
    def key(self) -> str:
        return ";".join(f"{name}={item}" for name, item in self.items.items())


@dataclass
class Facts:
    """What is known of a model before it has run."""

    model: nn.Module
    batch: int
    parameters: list[inspect.Parameter]
    first: nn.Module | None
    reached: dict[str, nn.Module] = field(default_factory=dict)
    vocabulary: int = VOCABULARY
    sizes: tuple[int, ...] = IMAGE_SIZES
    lengths: tuple[int, ...] = (LENGTH,)
    sequential: bool = False

    def kwargs_only(self, name: str) -> bool:
        by_name = {parameter.name: parameter for parameter in self.parameters}
        return name not in by_name or by_name[name].kind is inspect.Parameter.KEYWORD_ONLY


# Facts ----------------------------------------------------------------------------------------------------------------


def facts_of(model: nn.Module, batch: int) -> Facts:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        signature = inspect.signature(model.forward)
        parameters = [p for p in signature.parameters.values() if p.kind not in variadic]
    except (TypeError, ValueError):
        parameters = []
    facts = Facts(model, batch, parameters, first_weighted(model))
    for parameter in parameters:
        reached = _reached(model, parameter.name)
        if reached is not None:
            facts.reached[parameter.name] = reached
    vocabularies = [m.num_embeddings for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    facts.vocabulary = min([VOCABULARY, *vocabularies])
    facts.sizes = _sizes(model)
    facts.lengths = _lengths(model)
    kinds = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)
    words = re.compile(r"attention|attn|transformer|encoder_?layer|lstm|gru|rnn|mamba|ssm|mixer|head|block", re.I)
    facts.sequential = any(isinstance(m, kinds) or words.search(type(m).__name__) for m in model.modules())
    return facts


def first_weighted(model: nn.Module) -> nn.Module | None:
    """The first module in registration order that has weights of its own and holds no other such module."""
    composite = None
    for module in model.modules():
        if isinstance(module, KNOWN):  # also when parametrised, with no weights of its own
            return module
        if not module._parameters or all(parameter is None for parameter in module._parameters.values()):
            continue
        inner = any(child is not module and child._parameters for child in module.modules())
        if not inner:
            return module
        composite = composite or module
    return composite


def numbers_of(model: nn.Module, names: Sequence[str], deep: bool = True) -> Iterator[int]:
    """Values of attributes so called, on the model, its configuration and (`deep`) its submodules."""
    owners: list[Any] = [model, *(getattr(model, name, None) for name in CONFIG_ATTRIBUTES)]
    owners += list(model.modules()) if deep else []
    for owner in owners:
        for name in names:
            value = owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
            value = value[-1] if isinstance(value, (tuple, list)) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _sizes(model: nn.Module) -> tuple[int, ...]:
    known = [n for n in dict.fromkeys(numbers_of(model, IMAGE_ATTRIBUTES)) if 8 <= n <= 1024]
    return tuple(dict.fromkeys([*known[:2], *IMAGE_SIZES]))


def _lengths(model: nn.Module) -> tuple[int, ...]:
    known = list(itertools.islice(dict.fromkeys(numbers_of(model, LENGTH_ATTRIBUTES)), 2))
    exact = [n for n in known if n <= 4096]
    return tuple(dict.fromkeys([min([LENGTH, *known]), *exact, 64, 8, 2]))


def _reached(module: nn.Module, argument: str, depth: int = 4) -> nn.Module | None:
    """The weighted module that an argument of `module.forward` is handed to first, as its source says."""
    tree = _forward(module)
    if tree is None or depth == 0:
        return None
    names = _loop_variables(module, tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0)):
        position = next((i for i, value in enumerate(call.args) if _mentions(value, argument)), None)
        if position is None:
            continue
        if isinstance(call.func, ast.Name) and call.func.id in names:
            child = names[call.func.id]
            if child is None:
                return None
        else:
            child = _attribute(module, call.func)
        if isinstance(child, nn.Parameter) or not isinstance(child, nn.Module):
            continue
        inner = _inner(child, position, depth)
        if inner is not None:
            return inner
    return None


def _loop_variables(module: nn.Module, tree: ast.FunctionDef) -> dict[str, Any]:
    """What the variables of loops over `self.layers` hold in the first turn; None for those of other loops."""
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.For):
            continue
        over, target = node.iter, node.target
        if isinstance(over, ast.Call) and ast.unparse(over.func) == "enumerate" and isinstance(target, ast.Tuple):
            over, target = over.args[0], target.elts[1]
        held = _attribute(module, ast.Subscript(over, ast.Constant(0)))
        if isinstance(target, ast.Name):
            names[target.id] = held
        elif isinstance(target, ast.Tuple):
            parts = list(held) if isinstance(held, (nn.ModuleList, nn.Sequential, list, tuple)) else []
            for position, element in enumerate(target.elts):
                if isinstance(element, ast.Name):
                    names[element.id] = parts[position] if position < len(parts) else None
    return names


def _inner(child: nn.Module, position: int, depth: int) -> nn.Module | None:
    """The weighted module inside `child` that its positional argument reaches."""
    if type(child).__module__.startswith("torch.nn"):
        return first_weighted(child)
    parameters = _forward(child)
    names = [a.arg for a in parameters.args.args[1:]] if parameters is not None else []
    reached = _reached(child, names[position], depth - 1) if position < len(names) else None
    return reached or first_weighted(child)


def _forward(module: nn.Module) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tree.body[0] if tree.body and isinstance(tree.body[0], ast.FunctionDef) else None


def _mentions(node: ast.expr, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _attribute(module: nn.Module, node: ast.expr) -> Any:
    """What `self.a.b[…]` holds; of a list, its first entry."""
    if isinstance(node, ast.Name) and node.id == "self":
        return module
    if isinstance(node, ast.Attribute):
        return getattr(_attribute(module, node.value), node.attr, None)
    if isinstance(node, ast.Subscript):
        holder = _attribute(module, node.value)
        if isinstance(holder, (nn.ModuleList, nn.Sequential, list)) and len(holder):
            return holder[0]
        if isinstance(holder, (nn.ModuleDict, dict)) and len(holder):
            return next(iter(holder.values()))
    return None


# First guesses --------------------------------------------------------------------------------------------------------

Maker = Callable[[Facts, str], list[Item]]


def first_guesses(facts: Facts) -> Iterator[Guess]:
    """All arguments at their first choice, then one after the other at its alternatives."""
    offers = {p.name: choices(facts, p) for p in needed(facts)}
    if not offers and not facts.parameters:
        offers = {"*0": _main(facts, facts.first)}  # forward(*args)
    if any(not options for options in offers.values()):
        return
    first: dict[str, Item] = {name: options[0] for name, options in offers.items()}
    guesses = [Guess(first)]
    guesses += [Guess({**first, name: option}) for name, options in offers.items() for option in options[1:]]
    if len(offers) > 1:
        for row in itertools.islice(itertools.zip_longest(*offers.values()), 1, 8):
            items = {name: option or first[name] for name, option in zip(offers, row, strict=True)}
            guesses.append(Guess(items))
    yield from (_oriented(guess, facts) for guess in guesses)


def needed(facts: Facts) -> list[inspect.Parameter]:
    """Arguments without default; when all have one, the one the model names as main input, or the first."""
    required = [p for p in facts.parameters if p.default is p.empty]
    if required or not facts.parameters:
        return required
    main = getattr(facts.model, "main_input_name", None)
    chosen = [p for p in facts.parameters if p.name == main] or facts.parameters[:1]
    config = getattr(facts.model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        chosen += [p for p in facts.parameters if p.name == "decoder_input_ids"]
    return chosen


def _sequence_first(model: nn.Module) -> bool:
    """Whether all recurrent and attention modules of torch that it holds take the sequence before the batch."""
    kinds = (nn.RNNBase, nn.MultiheadAttention)
    orders = {module.batch_first for module in model.modules() if isinstance(module, kinds)}
    return orders == {False}


def _oriented(guess: Guess, facts: Facts) -> Guess:
    """The guess with sequences laid out as the model's modules take them."""
    if "edge_index" in guess.items:
        return replace(guess, axis=None)
    if not _sequence_first(facts.model):
        return guess
    for name, leaf in guess.leaves.items():
        sequence = (leaf.kind == "tokens" and len(leaf.shape) == 2) or (leaf.kind == "float" and len(leaf.shape) == 3)
        if sequence and not isinstance(facts.reached.get(name), nn.modules.conv._ConvNd):
            if leaf.shape[0] == facts.batch:
                guess = guess.reshaped(name, (leaf.shape[1], leaf.shape[0], *leaf.shape[2:]))
            guess = replace(guess, axis=1)
    return guess


def choices(facts: Facts, parameter: inspect.Parameter) -> list[Item]:
    """Items to try for an argument, best first: by name, then annotation, then the module it reaches."""
    for pattern, make in BY_NAME:
        if re.search(pattern, parameter.name, re.I):
            found = make(facts, parameter.name)
            if found:
                return found
    by_type = {bool: Value(False), int: Value(2), float: Value(0.5), str: Value("")}
    annotation = parameter.annotation
    for cls, value in by_type.items():
        if annotation is cls or annotation == cls.__name__:
            return [value]
    if "List[" in str(annotation) or "list[" in str(annotation):
        main = _main(facts, facts.reached.get(parameter.name, facts.first))
        return [Group((("", item), ("", item)), named=False) for item in main]
    if "dict" in str(annotation).lower() or parameter.name in ("batch", "data", "inputs", "sample", "batch_dict"):
        keys = read_keys(facts, parameter.name)
        if keys:
            return [dictionary(facts, keys)]
    return _main(facts, facts.reached.get(parameter.name, facts.first))


def read_keys(facts: Facts, argument: str) -> list[str]:
    """Constant keys that `forward` reads from an argument: `batch["image"]`."""
    tree = _forward(facts.model)
    keys = [
        node.slice.value
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == argument
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    ]
    return list(dict.fromkeys(keys))


def dictionary(facts: Facts, keys: Sequence[str]) -> Group:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    items = [(key, choices(facts, inspect.Parameter(re.sub(r"\W", "_", key), kind))) for key in keys]
    return Group(tuple((key, options[0]) for key, options in items if options), named=True)


def _main(facts: Facts, module: nn.Module | None) -> list[Item]:
    """What the weighted module `module` can be fed, most likely first."""
    batch, length = facts.batch, facts.lengths[0]
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        high = float(_vocabulary(facts, module))
        shapes: list[tuple[int, ...]] = [(batch, n) for n in facts.lengths] + [(batch,)]
        return [Leaf("tokens", shape, 0.0, high) for shape in shapes]
    return [Leaf("float", shape) for shape in _shapes_for(facts, module, batch, length)]


def _rearranged(facts: Facts, module: nn.Module) -> list[tuple[int, ...]]:
    """Shapes that an einops layer before `module` takes apart: `b c (h p1) (w p2) -> b (h w) (p1 p2 c)`."""
    before = itertools.takewhile(lambda other: other is not module, facts.model.modules())
    layer = next((other for other in before if type(other).__name__ == "Rearrange"), None)
    pattern, pieces = getattr(layer, "pattern", None), getattr(layer, "axes_lengths", None)
    if not isinstance(pattern, str) or not isinstance(pieces, Mapping):
        return []
    axes = re.findall(r"\(.*?\)|\S+", pattern.partition("->")[0])
    if not any(axis.startswith("(") for axis in axes):
        return []
    channels = width_of(module) // math.prod(pieces.values())
    shapes = []
    for sides, depth in itertools.product((facts.sizes[:4] if len(axes) > 3 else (256, 64, 1024)), (4, 8, 2)):
        shape = [facts.batch]
        for position, axis in enumerate(axes[1:], 1):
            piece = math.prod(pieces.get(name, 1) for name in axis.strip("()").split())
            if not axis.startswith("("):
                shape.append(channels if axis == "c" and channels in range(1, 5) else 3)
            elif len(axes) == 5 and position == 2:
                shape.append(piece * depth)
            else:
                shape.append(max(1, sides // piece) * piece)
        shapes.append(tuple(shape))
    return list(dict.fromkeys(shapes))


def _shapes_for(facts: Facts, module: nn.Module | None, batch: int, length: int) -> list[tuple[int, ...]]:
    if module is not None:
        rearranged = _rearranged(facts, module)
        if rearranged:
            return rearranged
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if isinstance(module, nn.modules.conv._ConvNd):
        dimensions = len(module.kernel_size)
        channels = module.in_channels or 3  # a lazy convolution takes any number
        sizes: Sequence[int] = (1024, 16000, 256, 64) if dimensions == 1 else facts.sizes
        if dimensions == 1 and channels > 2:
            sizes = (facts.lengths[0], 64, *facts.lengths[1:], 256, 1024)
        if isinstance(module, transposed):
            sizes = SHORT
        if dimensions == 3:
            return [(batch, channels, t, s, s) for s, t in ((32, 8), (16, 16), (64, 16), (112, 16))]
        shapes = [(batch, channels, *(size,) * dimensions) for size in sizes]
        return [*shapes[:3], (batch, length, channels), *shapes[3:]]
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        width = module.input_size if isinstance(module, nn.RNNBase) else module.embed_dim
        return [(batch, length, width), (batch, width)]
    if isinstance(module, nn.RNNCellBase):
        return [(batch, module.input_size), (batch, length, module.input_size)]
    if isinstance(module, (nn.BatchNorm1d, nn.InstanceNorm1d)):
        return [(batch, module.num_features, length), (batch, module.num_features)]
    if isinstance(module, nn.modules.batchnorm._NormBase):
        size = (16,) * (3 if "3d" in type(module).__name__ else 2)
        return [(batch, module.num_features, *size), (batch, module.num_features)]
    if isinstance(module, nn.GroupNorm):
        return [(batch, module.num_channels, 16, 16), (batch, module.num_channels, length)]
    width = width_of(module)
    flat, sequence = [(batch, width)], [(batch, n, width) for n in facts.lengths[:2]]
    image = [(batch, *shape) for shape in ((1, 28, 28), (3, 32, 32), (1, 8, 8)) if math.prod(shape) == width]
    if isinstance(module, (nn.Linear, nn.Bilinear)) and not facts.sequential:
        patches = [(batch, 3, size, size) for size in facts.sizes[:3]]
        return [*image, *flat, *sequence, *patches]
    if module is None:
        return [(batch, 16), (batch, length, 16), (batch, 3, 32, 32)]
    pictures = [(batch, 3, size, size) for size in facts.sizes[:3]]
    return [*sequence, *flat, *pictures]


def width_of(module: nn.Module | None) -> int:
    """Size of the last axis a module expects, from its attributes or its first weight."""
    for name in ("in_features", "in1_features", "embed_dim", "d_model", "normalized_shape"):
        value = getattr(module, name, None)
        value = value[-1] if isinstance(value, (tuple, list)) and value else value
        if isinstance(value, int) and value > 0:
            return value
    parameters = list(module._parameters.values()) if module is not None else []
    shapes = [tuple(p.shape) for p in parameters if p is not None and not is_lazy(p) and p.dim()]
    return shapes[0][-1] if shapes else 16


# By name


def _tokens(facts: Facts, name: str) -> list[Item]:
    module = facts.reached.get(name)
    if not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in facts.model.modules()):
        return _main(facts, module) if module is not None else []
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)):
        return _main(facts, module)
    high = float(_vocabulary(facts, module))
    shapes: list[tuple[int, ...]] = [*((facts.batch, n) for n in facts.lengths), (facts.batch,)]
    return [Leaf("tokens", shape, 0.0, high) for shape in shapes]


def _vocabulary(facts: Facts, module: nn.Module | None) -> int:
    """Number of tokens: of the vocabulary the model names, of the embedding reached, or of its first embedding."""
    sizes = [m.num_embeddings for m in facts.model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    named = [n for n in numbers_of(facts.model, ("vocab_size",), deep=False) if n in sizes]
    reached = [module.num_embeddings] if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else []
    return min(VOCABULARY, (named or reached or sizes)[0])


def _entity(facts: Facts, name: str) -> list[Item]:
    return _tokens(facts, name)[::-1]


def _picture(facts: Facts, name: str) -> list[Item]:
    module = facts.reached.get(name)
    if isinstance(module, nn.Conv3d):
        return _video(facts, name)
    rearranged = _rearranged(facts, module) if module is not None else []
    if isinstance(module, nn.modules.conv._ConvNd) or rearranged:
        return _main(facts, module)
    named = numbers_of(facts.model, ("num_channels", "in_channels", "in_chans", "channels"), deep=False)
    channels = next((n for n in named if n <= 16), 3)
    return [Leaf("float", (facts.batch, channels, size, size)) for size in facts.sizes]


def _video(facts: Facts, name: str) -> list[Item]:
    module, batch = facts.reached.get(name, facts.first), facts.batch
    if not isinstance(module, (nn.Conv2d, nn.Conv3d)) and module is not None and _rearranged(facts, module):
        return _main(facts, module)
    channels = module.in_channels if isinstance(module, (nn.Conv2d, nn.Conv3d)) else 3
    frames = next(numbers_of(facts.model, ("num_frames", "frames", "n_frames")), 8)
    found: list[Item] = []
    for size in facts.sizes[:3]:
        orders = [(batch, channels, frames, size, size), (batch, frames, channels, size, size)]
        found += [Leaf("float", shape) for shape in (orders if isinstance(module, nn.Conv3d) else orders[::-1])]
    return found


def _audio(facts: Facts, name: str) -> list[Item]:
    module, batch = facts.reached.get(name), facts.batch
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.RNNBase)):
        return _main(facts, module)
    shapes = [(batch, n) for n in (16000, 4096)]
    if isinstance(module, nn.Conv1d):
        shapes = [(batch, module.in_channels, n) for n in (16000, 4096, 1024)] + shapes  # type: ignore[assignment]
    return [Leaf("float", shape) for shape in shapes]


def _spectrogram(facts: Facts, name: str) -> list[Item]:
    mels = next(
        numbers_of(facts.model, ("num_mel_bins", "n_mels", "n_mel_channels", "feature_size", "input_feat_per_channel")),
        80,
    )
    longest = next(numbers_of(facts.model, ("max_source_positions",)), 50) * 2
    shapes = [(facts.batch, mels, n) for n in (longest, 128)] + [(facts.batch, 128, mels), (facts.batch, 1, mels, 128)]
    return (
        [*_main(facts, facts.reached[name])[:2], *(Leaf("float", s) for s in shapes)]
        if name in facts.reached
        else [Leaf("float", s) for s in shapes]
    )


def _mask(facts: Facts, name: str) -> list[Item]:
    batch, length = facts.batch, facts.lengths[0]
    if name == "attention_mask":
        return [Leaf("int64", (batch, length), 1.0, 2.0)]
    square = Leaf("bool", (length, length))
    row = Leaf("bool", (batch, length))
    if re.search(r"pad|key|pixel", name):
        return [row, Value(None), Leaf("float", (batch, length))]
    return [Value(None), row, square, Leaf("bool", (batch, 1, 1, length)), Leaf("float", (batch, length))]


def _time(facts: Facts, name: str) -> list[Item]:
    batch = facts.batch
    module = facts.reached.get(name)
    whole = Leaf("int64", (batch,), 0.0, 100.0)
    real = Leaf("float", (batch,), 0.0, 1.0)
    column = Leaf("float", (batch, 1), 0.0, 1.0)
    if isinstance(module, nn.Embedding):
        return [replace(whole, high=float(min(100, module.num_embeddings)))]
    if isinstance(module, nn.Linear) and module.in_features == 1:
        return [column, real, whole]
    return [real, whole, column] if re.search(r"sigma|noise|alpha|snr", name) else [whole, real, column]


def _edges(facts: Facts, name: str) -> list[Item]:
    return [Leaf("int64", (2, 40), 0.0, float(LENGTH))]


def _nodes(facts: Facts, name: str) -> list[Item]:
    """Features of the nodes of a graph, if the model takes edges."""
    if not any(p.name in ("edge_index", "adj", "adj_t") for p in facts.parameters):
        return []
    module = facts.reached.get(name, facts.first)
    if isinstance(module, nn.Embedding):
        return [Leaf("tokens", (LENGTH,), 0.0, float(module.num_embeddings))]
    width = (
        next((n for n in numbers_of(module, ("in_channels", "in_features")) if n > 0), width_of(module))
        if module is not None
        else 16
    )
    return [Leaf("float", (LENGTH, width))]


def _adjacency(facts: Facts, name: str) -> list[Item]:
    return [Leaf("float", (LENGTH, LENGTH), 0.0, 1.0), Leaf("float", (facts.batch, LENGTH, LENGTH), 0.0, 1.0)]


def _graph_batch(facts: Facts, name: str) -> list[Item]:
    if not any(p.name == "edge_index" for p in facts.parameters):
        return []
    return [Leaf("int64", (LENGTH,), 0.0, 1.0)]


def _sizes_of_samples(facts: Facts, name: str) -> list[Item]:
    length = float(facts.lengths[0])
    return [Leaf("int64", (facts.batch,), length, length + 1)]


def _labels(facts: Facts, name: str) -> list[Item]:
    module = facts.reached.get(name)
    if isinstance(module, nn.Linear):
        return _main(facts, module)
    classes = float(min(10, facts.vocabulary))
    whole = Leaf("int64", (facts.batch,), 0.0, classes)
    if facts.first is None:  # a loss: labels or values like the prediction
        return [whole, *(Leaf("float", shape) for shape in _shapes_for(facts, None, facts.batch, LENGTH))]
    return [whole, Leaf("float", (facts.batch,)), Leaf("int64", (facts.batch, facts.lengths[0]), 0.0, classes)]


def _context(facts: Facts, name: str) -> list[Item]:
    module = facts.reached.get(name)
    known = ("cross_attention_dim", "context_dim", "cond_dim", "hidden_size", "d_model")
    width = next(numbers_of(facts.model, known), 0) or width_of(module if module is not None else facts.first)
    if isinstance(module, (nn.Conv2d, nn.Embedding)):
        return _main(facts, module)
    if isinstance(module, nn.Linear):
        width = module.in_features
    shapes = [(facts.batch, 8, width), (facts.batch, width), (8, facts.batch, width)]
    return [Leaf("float", shape) for shape in (shapes[1:] + shapes[:1] if name.startswith("cond") else shapes)]


def _latent(facts: Facts, name: str) -> list[Item]:
    found = _main(facts, facts.reached.get(name, facts.first))
    flat = [item for item in found if isinstance(item, Leaf) and len(item.shape) == 2]
    return [*flat, *(item for item in found if item not in flat)]


def _hidden(facts: Facts, name: str) -> list[Item]:
    """States of recurrent networks: many take None; else by the first recurrent module."""
    recurrent = next((m for m in facts.model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))), None)
    width = getattr(recurrent, "hidden_size", 0) or next(numbers_of(facts.model, ("hidden_size", "hidden_dim")), 32)
    batch = facts.batch
    if isinstance(recurrent, nn.RNNBase):
        layers = recurrent.num_layers * (2 if recurrent.bidirectional else 1)
        stacked = Leaf("float", (layers, batch, width))
        pair = Group((("", stacked), ("", stacked)), named=False)
        return [pair if isinstance(recurrent, nn.LSTM) else stacked, Value(None), stacked]
    flat = Leaf("float", (batch, width))
    pair = Group((("", flat), ("", flat)), named=False)
    return [pair if isinstance(recurrent, nn.LSTMCell) else flat, Value(None), pair]


def _bridge(facts: Facts, name: str) -> list[Item]:
    """Attention inputs, all alike."""
    module = facts.reached.get(name, facts.first)
    return (
        []
        if isinstance(module, (nn.Embedding, nn.Conv2d))
        else [
            Leaf("float", (facts.batch, facts.lengths[0], width_of(module))),
            Leaf("float", (facts.batch, 4, facts.lengths[0], width_of(module))),
        ]
    )


BY_NAME: tuple[tuple[str, Maker], ...] = (
    (r"^edge_index$", _edges),
    (r"^(adj|adj_t|adjacency|a_hat)$", _adjacency),
    (r"^(batch|batch_index)$", _graph_batch),
    (r"^(x|feat|feats|features|node_feat\w*|h)$", _nodes),
    (r"mask$|^mask|padding", _mask),
    (r"(^|_)(lengths?|lens?|seq_lens?)$", _sizes_of_samples),
    (r"^(input_ids|decoder_input_ids|token_ids|tokens?|ids|idx|indices|input_tokens)$", _tokens),
    (r"^(words?|sentences?|texts?|captions?)$", _tokens),
    (r"^(src|tgt|trg|source|target_seq|seq|sequence|input_seq)$", _tokens),
    (r"(user|item|movie|product|node)_?(ids?|idx|index|indices)?s?$", _entity),
    (r"_ids$", _tokens),
    (r"^(pixel_values|images?|imgs?|pictures?|photo|frame)\d*$", _picture),
    (r"^(videos?|clips?|frames|pixel_values_videos)$", _video),
    (r"^(audios?|wav|waveforms?|wave|signal|speech|raw_audio|input_values)$", _audio),
    (r"^(spec|spectrograms?|mels?|mel_spec|input_features)$", _spectrogram),
    (r"^(t|ts|times?|timesteps?|time_step|diffusion_step|sigmas?|noise_levels?|log_snr|snr|alpha_t)$", _time),
    (r"^(y|ys|labels?|class_labels?|targets?|gt|ground_truth|y_true|classes|class_ids?|gold)$", _labels),
    (r"^(encoder_hidden_states|enc_outputs?|encoder_outputs?|encoder_out|enc|text_embeds?)$", _context),
    (r"^(context|ctx|cond|condition|conditioning|memory|mem)$", _context),
    (r"^(z|noise|latents?|eps)$", _latent),
    (r"^(h|hx|hidden|hidden_state|prev_hidden|state|states|h0|h_0|hc|init_state|h_prev|prev_state|c0|cell)$", _hidden),
    (r"^(q|k|v|query|key|value|queries|keys|values)$", _bridge),
)
