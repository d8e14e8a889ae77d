"""Infers what a model can be called with, and proves it by a dry run that leaves no trace.

First guesses come from the module that each argument of `forward` reaches first, and from the argument's name; the
text of the error of a failed run repairs channels, sizes, ranks and dtypes.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import itertools
import math
import re
import textwrap
import time
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from auditor.dynamic.lines import is_user_file
from auditor.dynamic.inputs import VOCABULARY, Group, InputError, Inputs, Item, Leaf, Spec, Value, from_tensors
from auditor.dynamic.load import summary
from auditor.dynamic.state import preserved, seed_all

TRIES = 40
SECONDS = 60.0
ELEMENTS = 1 << 22  # no guess is larger: a wrong axis must not exhaust memory
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


# Hooks ---------------------------------------------------------------------------------------------------------------


def from_hooks(model: nn.Module, module: types.ModuleType | None, seed: int = 0) -> Inputs | None:
    """Inputs that the user's code provides, or None.

    Read are `example_inputs` of the model or of its file, Lightning's `example_input_array` and the `dummy_inputs` of
    transformers and diffusers (each a value or a method); the last only if the model runs with it, since libraries
    inherit it to models it does not suit.
    """
    for owner, name in (
        (model, "example_inputs"),
        (module, "example_inputs"),
        (model, "example_input_array"),
        (model, "dummy_inputs"),
    ):
        with preserved(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seed_all(seed)
            try:
                value = getattr(owner, name, None)
                value = value() if callable(value) and not isinstance(value, torch.Tensor) else value
                inputs = from_tensors(value) if value is not None else None
            except Exception as error:
                if name == "dummy_inputs":
                    continue
                raise InputError(f"the hook `{name}` failed: {summary(error)}") from error
            if inputs is None or (name == "dummy_inputs" and _run(model, inputs).error is not None):
                continue
        return inputs
    return None


# Guesses -------------------------------------------------------------------------------------------------------------


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


def infer(model: nn.Module, *, batch: int = BATCH, seed: int = 0, hints: Sequence[tuple[int, ...]] = ()) -> Inputs:
    """Find inputs with which `model` runs. `hints` are shapes seen in its file. Raises InputError.

    The model and all random generators are afterwards as before.
    """
    facts = _facts(model, batch)
    subject = copy.deepcopy(model) if any(map(is_lazy, (*model.parameters(), *model.buffers()))) else model
    with preserved(subject), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _search(subject, facts, seed, _hinted(facts, hints))


def _search(model: nn.Module, facts: Facts, seed: int, hinted: Iterable[Guess]) -> Inputs:
    """Run guesses, repaired ones first, until one works and keeps the samples apart."""
    queue = deque(itertools.chain(hinted, itertools.islice(_first_guesses(facts), TRIES)))
    seen: set[str] = set()
    accepted: Inputs | None = None
    complaint = "it takes no tensor" if not queue else ""
    deadline, tries = time.monotonic() + SECONDS, 0
    while queue and tries < TRIES and time.monotonic() < deadline:
        guess = queue.popleft()
        if guess.key in seen:
            continue
        seen.add(guess.key)
        tries += 1
        inputs = _spec(guess, facts).make(seed=seed, source="inferred", batch_axis=guess.axis)
        run = _run(model, inputs)
        if run.error is None and guess.axis == 1 and run.keeps_first(inputs):
            return _spec(guess, facts).make(seed=seed, source="inferred", batch_axis=0)
        if run.error is None and run.keeps(facts.batch):
            return inputs
        if run.error is None:
            accepted = accepted or inputs
            tries += TRIES // 8  # an accidental success by broadcasting: look a little further
            continue
        complaint = complaint or f"{summary(run.error)} (called with {inputs.description})"
        repaired = [g for g in repairs(guess, run.error, facts) if g.key not in seen and g.elements <= ELEMENTS]
        queue.extendleft(reversed(repaired[:6]))
        queue.extend(g for g in by_numbers(guess, str(run.error)) if g.elements <= ELEMENTS)
    if accepted is not None:
        return accepted
    raise InputError(f"no inputs were found that it runs with; the first try: {complaint}")


def _spec(guess: Guess, facts: Facts) -> Spec:
    """Positional up to the first argument that must be named or is left out."""
    args: list[Item] = []
    kwargs: dict[str, Item] = {}
    positional = True
    for parameter in facts.parameters:
        if parameter.name not in guess.items or facts.kwargs_only(parameter.name):
            positional = False
        elif positional and parameter.default is parameter.empty:
            args.append(guess.items[parameter.name])
            continue
        if parameter.name in guess.items:
            kwargs[parameter.name] = guess.items[parameter.name]
    known = {parameter.name for parameter in facts.parameters}
    rest = {name: item for name, item in guess.items.items() if name not in known}
    args += [item for name, item in rest.items() if name.startswith("*")]
    kwargs.update({name: item for name, item in rest.items() if not name.startswith("*")})
    return Spec(tuple(args), kwargs)


# Dry runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How a dry run went."""

    error: BaseException | None = None
    shapes: tuple[tuple[int, ...], ...] = ()

    def keeps(self, batch: int) -> bool:
        """Whether some output has one entry per sample, or is a single number (a loss)."""
        return any(not shape or shape[0] == batch or batch in shape[1:-1] for shape in self.shapes)


    def keeps_first(self, inputs: Inputs) -> bool:
        """Whether the first axis, though the modules take the sequence there, is the one a pooled output keeps."""
        first = {leaf.shape[0] for leaf in inputs.spec.leaves if len(leaf.shape) > 1} if inputs.spec else set()
        return any(len(shape) == 2 and shape[0] in first for shape in self.shapes) and not self.keeps(inputs.batch or 0)


def _run(model: nn.Module, inputs: Inputs) -> Run:
    """Run in the mode the model is in, and in eval mode if training mode does not work (detectors want targets)."""
    first = _run_once(model, inputs)
    if first.error is None or not model.training:
        return first
    training = [module for module in model.modules() if module.training]
    model.eval()
    second = _run_once(model, inputs)
    for module in training:
        module.training = True
    message = str(first.error)
    return first if second.error is not None or "more than 1 value per channel" in message else second


def _run_once(model: nn.Module, inputs: Inputs) -> Run:
    args, kwargs = copy.deepcopy((inputs.args, inputs.kwargs))
    for context in (torch.no_grad, torch.enable_grad):
        try:
            with context():
                output = model(*args, **kwargs)
            return Run(shapes=tuple(tuple(leaf.shape) for leaf in tensors_in(output)))
        except (Exception, SystemExit) as error:
            if context is torch.no_grad and "does not require grad" in str(error):
                continue  # a forward that differentiates
            return Run(error=error)
    raise AssertionError("unreachable")


def tensors_in(tree: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """All tensors in nested containers and in objects that hold them as attributes (model outputs)."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif depth and isinstance(leaf, Mapping):
            yield from tensors_in(list(leaf.values()), depth - 1)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            yield from tensors_in(list(vars(leaf).values()), depth - 1)


# Facts ---------------------------------------------------------------------------------------------------------------


def _facts(model: nn.Module, batch: int) -> Facts:
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
    words = re.compile(r"atten|transformer|encoder_?layer|lstm|gru|rnn|mamba|ssm|mixer|head|block", re.I)
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


def _numbers(model: nn.Module, names: Sequence[str]) -> Iterator[int]:
    """Values of attributes so called, on the model, its configuration and its submodules."""
    owners: list[Any] = [model, *(getattr(model, name, None) for name in CONFIG_ATTRIBUTES), *model.modules()]
    for owner in owners:
        for name in names:
            value = owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
            value = value[-1] if isinstance(value, (tuple, list)) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _sizes(model: nn.Module) -> tuple[int, ...]:
    known = [n for n in dict.fromkeys(_numbers(model, IMAGE_ATTRIBUTES)) if 8 <= n <= 1024]
    return tuple(dict.fromkeys([*known[:2], *IMAGE_SIZES]))


def _lengths(model: nn.Module) -> tuple[int, ...]:
    known = list(itertools.islice(dict.fromkeys(_numbers(model, LENGTH_ATTRIBUTES)), 2))
    exact = [n for n in known if n <= 4096]
    return tuple(dict.fromkeys([min([LENGTH, *known]), *exact, 64, 8, 2]))


def _reached(module: nn.Module, argument: str, depth: int = 4) -> nn.Module | None:
    """The weighted module that an argument of `module.forward` is handed to first, as its source says."""
    tree = _forward(module)
    if tree is None or depth == 0:
        return None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0)):
        position = next((i for i, value in enumerate(call.args) if _mentions(value, argument)), None)
        if position is None:
            continue
        child = _attribute(module, call.func)
        if isinstance(child, nn.Parameter) or not isinstance(child, nn.Module):
            continue
        inner = _inner(child, position, depth)
        if inner is not None:
            return inner
    return None


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


# First guesses -------------------------------------------------------------------------------------------------------

Maker = Callable[[Facts, str], list[Item]]


def _first_guesses(facts: Facts) -> Iterator[Guess]:
    """All arguments at their first choice, then one after the other at its alternatives."""
    choices = {p.name: _choices(facts, p) for p in _needed(facts)}
    if not choices and not facts.parameters:
        choices = {"*0": _main(facts, facts.first)}  # forward(*args)
    if any(not options for options in choices.values()):
        return
    first: dict[str, Item] = {name: options[0] for name, options in choices.items()}
    guesses = [Guess(first)]
    guesses += [Guess({**first, name: option}) for name, options in choices.items() for option in options[1:]]
    if len(choices) > 1:
        for row in itertools.islice(itertools.zip_longest(*choices.values()), 1, 8):
            items = {name: option or first[name] for name, option in zip(choices, row, strict=True)}
            guesses.append(Guess(items))
    yield from (_oriented(guess, facts) for guess in guesses)


def _hinted(facts: Facts, hints: Sequence[tuple[int, ...]]) -> Iterator[Guess]:
    """Shapes that the user's file makes, with our batch size, for a model of one float argument."""
    needed = _needed(facts)
    if len(needed) != 1:
        return
    for shape in dict.fromkeys(hints):
        if len(shape) > 1 and math.prod(shape[1:]) <= 3 * 512 * 512:
            yield Guess({needed[0].name: Leaf("float", (facts.batch, *shape[1:]))})


def _needed(facts: Facts) -> list[inspect.Parameter]:
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


def _choices(facts: Facts, parameter: inspect.Parameter) -> list[Item]:
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
        keys = _keys(facts, parameter.name)
        if keys:
            return [_dictionary(facts, keys)]
    return _main(facts, facts.reached.get(parameter.name, facts.first))


def _keys(facts: Facts, argument: str) -> list[str]:
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


def _dictionary(facts: Facts, keys: Sequence[str]) -> Group:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    items = [(key, _choices(facts, inspect.Parameter(re.sub(r"\W", "_", key), kind))) for key in keys]
    return Group(tuple((key, options[0]) for key, options in items if options), named=True)


def _main(facts: Facts, module: nn.Module | None) -> list[Item]:
    """What the weighted module `module` can be fed, most likely first."""
    batch, length = facts.batch, facts.lengths[0]
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        high = float(min(module.num_embeddings, facts.vocabulary))
        shapes: list[tuple[int, ...]] = [(batch, n) for n in facts.lengths] + [(batch,)]
        return [Leaf("tokens", shape, 0.0, high) for shape in shapes]
    return [Leaf("float", shape) for shape in _shapes_for(facts, module, batch, length)]


def _shapes_for(facts: Facts, module: nn.Module | None, batch: int, length: int) -> list[tuple[int, ...]]:
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
    width = _width(module)
    flat, sequence = [(batch, width)], [(batch, n, width) for n in facts.lengths[:2]]
    image = [(batch, *shape) for shape in ((1, 28, 28), (3, 32, 32), (1, 8, 8)) if math.prod(shape) == width]
    if isinstance(module, nn.Linear) and not facts.sequential:
        patches = [(batch, 3, size, size) for size in facts.sizes[:3]]
        return [*image, *flat, *sequence, *patches]
    if module is None:
        return [(batch, 16), (batch, length, 16), (batch, 3, 32, 32)]
    pictures = [(batch, 3, size, size) for size in facts.sizes[:3]]
    return [*sequence, *flat, *pictures]


def _width(module: nn.Module | None) -> int:
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
    embeds = module is None or isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if not embeds or not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in facts.model.modules()):
        return _main(facts, module) if module is not None else []
    high = float(min(module.num_embeddings if module is not None else facts.vocabulary, VOCABULARY))  # type: ignore[arg-type]
    return [Leaf("tokens", shape, 0.0, high) for shape in [*((facts.batch, n) for n in facts.lengths), (facts.batch,)]]


def _entity(facts: Facts, name: str) -> list[Item]:
    return _tokens(facts, name)[::-1]


def _picture(facts: Facts, name: str) -> list[Item]:
    module = facts.reached.get(name)
    convolution = module if isinstance(module, nn.modules.conv._ConvNd) else None
    if convolution is not None:
        return _main(facts, convolution)
    channels = next(
        (n for n in _numbers(facts.model, ("num_channels", "in_channels", "in_chans", "channels")) if n <= 16), 3
    )
    return [Leaf("float", (facts.batch, channels, size, size)) for size in facts.sizes]


def _video(facts: Facts, name: str) -> list[Item]:
    module, batch = facts.reached.get(name, facts.first), facts.batch
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        channels = module.in_channels if isinstance(module, nn.Conv2d) else 3
        frames = next(_numbers(facts.model, ("num_frames", "frames", "n_frames")), 8)
        shapes = [(batch, frames, channels, s, s) for s in facts.sizes[:3]]
        return [Leaf("float", s) for shape in shapes for s in (shape, (shape[0], shape[2], shape[1], *shape[3:]))]
    return _main(facts, module)


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
        _numbers(facts.model, ("num_mel_bins", "n_mels", "n_mel_channels", "feature_size", "input_feat_per_channel")),
        80,
    )
    longest = next(_numbers(facts.model, ("max_source_positions",)), 50) * 2
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
        next((n for n in _numbers(module, ("in_channels", "in_features")) if n > 0), _width(module))
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
    width = next(_numbers(facts.model, known), 0) or _width(module if module is not None else facts.first)
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
    width = getattr(recurrent, "hidden_size", 0) or next(_numbers(facts.model, ("hidden_size", "hidden_dim")), 32)
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
            Leaf("float", (facts.batch, facts.lengths[0], _width(module))),
            Leaf("float", (facts.batch, 4, facts.lengths[0], _width(module))),
        ]
    )


BY_NAME: tuple[tuple[str, Maker], ...] = (
    (r"^edge_index$", _edges),
    (r"^(adj|adj_t|adjacency|a_hat)$", _adjacency),
    (r"^(batch|batch_index)$", _graph_batch),
    (r"^(x|feat|feats|features|node_feat\w*|h)$", _nodes),
    (r"mask$|^mask|padding", _mask),
    (r"(^|_)(lengths?|lens?|seq_lens?)$", _sizes_of_samples),
    (r"^(input_ids|decoder_input_ids|token_ids|tokens?|ids|idx|indices|input_tokens|words?|sentences?|texts?|captions?)$", _tokens),
    (r"^(src|tgt|trg|source|target_seq|seq|sequence|input_seq)$", _tokens),
    (r"(user|item|movie|product|node)_?(ids?|idx|index|indices)?s?$", _entity),
    (r"_ids$", _tokens),
    (r"^(pixel_values|images?|imgs?|pictures?|photo|frame)\d*$", _picture),
    (r"^(videos?|clips?|frames|pixel_values_videos)$", _video),
    (r"^(audios?|wav|waveforms?|wave|signal|speech|raw_audio|input_values)$", _audio),
    (r"^(spec|spectrograms?|mels?|mel_spec|input_features)$", _spectrogram),
    (r"^(t|ts|time|times|timesteps?|time_step|diffusion_step|sigmas?|noise_levels?|noise_level|log_snr|snr|alpha_t)$", _time),
    (r"^(y|ys|labels?|class_labels?|targets?|gt|ground_truth|y_true|classes|class_ids?|gold)$", _labels),
    (r"^(encoder_hidden_states|context|ctx|cond|condition|conditioning|memory|mem|text_embeds?|enc_outputs?|encoder_outputs?|encoder_out|enc)$", _context),
    (r"^(z|noise|latents?|eps)$", _latent),
    (r"^(h|hx|hidden|hidden_state|prev_hidden|state|states|h0|h_0|hc|init_state|h_prev|prev_state|c0|cell)$", _hidden),
    (r"^(q|k|v|query|key|value|queries|keys|values)$", _bridge),
)  # fmt: skip


# Repairs -------------------------------------------------------------------------------------------------------------

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
        if len(guess.leaves) > 1 and leaf.kind == "float" and leaf.shape and 0 < leaf.shape[-1] - got + wanted != wanted:
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
        channels = 3  # patches are cut before the first weights, as in a vision transformer
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
            width = _width(facts.reached.get(name, facts.first))
            if leaf.kind == "tokens":
                yield guess.with_(name, Leaf("float", (*leaf.shape, width)))
                yield guess.with_(name, Leaf("float", (facts.batch, width)))


def _to_boolean(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    for name, leaf in guess.leaves.items():
        if "mask" in name and leaf.kind != "bool":
            yield guess.with_(name, Leaf("bool", leaf.shape))


def _smaller_range(guess: Guess, match: re.Match[str], facts: Facts) -> Iterator[Guess]:
    """An index was out of range: a smaller vocabulary, or shorter sequences for learned positions."""
    for high in (10.0, 2.0):
        fewer = guess
        for name, leaf in guess.leaves.items():
            if leaf.kind in ("tokens", "int64") and (leaf.high or 0) > high and (leaf.low or 0) < high:
                fewer = fewer.with_(name, replace(leaf, high=high))
        if fewer is not guess:
            yield fewer
    for length in (8, 2):
        shorter = guess
        for name, leaf in guess.leaves.items():
            if len(leaf.shape) >= 2 and leaf.shape[1] > length and leaf.kind in ("tokens", "int64"):
                shorter = shorter.reshaped(name, (leaf.shape[0], length, *leaf.shape[2:]))
        if shorter is not guess:
            yield shorter


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
        keys = _keys(facts, name)
        if keys:
            yield guess.with_(name, _dictionary(facts, keys))
        yield guess.with_(name, Group((("", leaf), ("", leaf)), named=False))


def _missing(guess: Guess, message: str, facts: Facts) -> Iterator[Guess]:
    """Optional arguments that the error names, or that were None where a tensor was needed."""
    optional = [p for p in facts.parameters if p.default is not p.empty and p.name not in guess.items]
    named = [p for p in optional if re.search(rf"\b{re.escape(p.name)}\b", message)]
    none = [p for p in optional if p.default is None] if "NoneType" in message else []
    for parameter in named or none[:4]:
        for item in _choices(facts, parameter)[:2]:
            if item != Value(None):
                yield guess.with_(parameter.name, item)
    for name, item in guess.items.items():
        if item == Value(None) and "NoneType" in message:
            parameter = next(p for p in facts.parameters if p.name == name)
            for choice in _choices(facts, parameter):
                if choice != item:
                    yield guess.with_(name, choice)


def by_numbers(guess: Guess, message: str) -> Iterator[Guess]:
    """Last resort: a number of the message that we chose is replaced by another number of the message."""
    numbers = list(dict.fromkeys(int(n) for n in re.findall(r"(?<![\w.])\d{1,5}(?![\w.])", message)))
    for old, new in itertools.islice(itertools.permutations(numbers[:4], 2), 8):
        for name, leaf in guess.leaves.items():
            shape = tuple(new if axis in _free_axes(leaf) and size == old else size for axis, size in enumerate(leaf.shape))
            if new and shape != leaf.shape:
                yield guess.reshaped(name, shape)


def _free_axes(leaf: Leaf) -> range:
    """Axes whose size may be tried out: not the samples, nor channels and sides of pictures."""
    return range(1, len(leaf.shape) if len(leaf.shape) < 4 else 0)


REPAIRS: tuple[tuple[str, Repair], ...] = (
    (r"to have (\d+) channels, but got (\d+) channels", _channels),
    (r"running_mean should contain (?P<got>\d+) elements not (?P<wanted>\d+)", lambda g, m, f: _replace_axis(g, 1, int(m["got"]), int(m["wanted"]))),
    (r"Expected weight to be a vector of size equal to the number of channels in input, but got weight of shape \[(\d+)\] and input of shape \[\d+, (\d+)", _channels),
    (r"shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)", _product),
    (r"size mismatch, got input \((\d+)\), mat \((\d+)x(\d+)\), vec \((\d+)\)", lambda g, m, f: _last_pair(g, int(m[3]), int(m[4]))),
    (r"input_size\. Expected (\d+), got (\d+)", _last),
    (r"has inconsistent input_size: got (\d+),? expected (\d+)", lambda g, m, f: _replace_axis(g, -1, int(m[1]), int(m[2]))),
    (r"expecting embedding dimension of (\d+), but got (\d+)", _last),
    (r"normalized_shape=\[(?:\d+, )*(\d+)\], expected input with shape \[\*, .*but got input of size ?\[(?:\d+, )*(\d+)\]", _last),
    (r"[Ii]nput image (?:size|height|width) \((\d+).*?\).*?model.*?\((\d+)", lambda g, m, f: _image_size(g, int(m[2]))),
    (r"[Ii]nput (?:size|height|width) \((\d+)\) doesn't match model \((\d+)\)", lambda g, m, f: _image_size(g, int(m[2]))),
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
    (r"number of dims don't match in permute|number of dimensions in the tensor input does not match", lambda g, m, f: itertools.chain(ranked(g, 4, f), ranked(g, 3, f))),
    (r"Kernel size can't be greater|Output size is too small|Padding size should be less|more than 1 value per channel|non-empty|smaller than kernel|too small|cannot be empty", _larger),
    (r"index out of range|out of bounds|is out of range|Target \d+ is out", _smaller_range),
    (r"Expected tensor for argument #1 'indices'|must be .*(?:Long|Int)|expected scalar type Long|tensors used as indices|one_hot is only applicable to index|dtype int64|Index tensor must", _to_integers),
    (r"got Long|found Long|\(long int\)|LongTensor|not implemented for 'Long'|long int|c10::Half|[Gg]ot:? Long|torch\.int64|should be the same", _to_floats),
    (r"mask.*(?:Bool|bool)|BoolTensor|expected.*bool", _to_boolean),
    (r"must be tuples of ints|new\(\): invalid data type|only integer tensors|indices must be|has no attribute '(?:keys|items|get)'|too many indices|Tensor.*string", _subscripted),
)  # fmt: skip


def _last_pair(guess: Guess, wanted: int, got: int) -> Iterator[Guess]:
    yield from _replace_axis(guess, -1, got, wanted)


def _image_size(guess: Guess, size: int) -> Iterator[Guess]:
    for name, leaf in guess.leaves.items():
        if len(leaf.shape) >= 4:
            yield guess.reshaped(name, (*leaf.shape[:-2], size, size))
