"""Infers what a model can be called with, and proves it by dry runs that leave no trace."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import time
import types
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from auditor.dynamic.deferred import CountedShapes, ShapesOnly
from auditor.dynamic.inputs import InputError, Inputs, Item, Leaf, Spec, from_tensors
from auditor.dynamic.inputs.guesses import BATCH, Facts, Guess, facts_of, first_guesses, needed
from auditor.dynamic.inputs.repairs import by_numbers, repairs
from auditor.dynamic.load import summary
from auditor.dynamic.state import preserved, seed_all

TRIES = 40
SECONDS = 60.0
REPAIRED = 12  # tries at mending a first guess before the next one has its turn
CHEAP = 4 * 3 * 96 * 96  # elements up to which a guess is run without asking what that takes
AFFORDABLE = 1 << 31  # bytes that a run with a guess may compute while there are others to try
CHEAPER_FIRST = 20  # tries at finding something that is
AT_MOST = 2  # times that, where nothing cheaper works
FEW = 2  # samples, where more are not affordable
ELEMENTS = 1 << 22  # no guess is larger: a wrong axis must not exhaust memory


# Hooks ----------------------------------------------------------------------------------------------------------------


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
        buffers = owner._buffers if isinstance(owner, nn.Module) else {}
        if inspect.getattr_static(owner, name, None) is None and name not in buffers:
            continue
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


# Search ---------------------------------------------------------------------------------------------------------------


def infer(
    model: nn.Module, *, batch: int = BATCH, seed: int = 0, hints: Sequence[tuple[int, ...]] = (), device: str = "cpu"
) -> Inputs:
    """Find inputs with which `model` runs. `hints` are shapes seen in its file. Raises InputError.

    On the device "meta" it is run for shapes alone, whatever device its parameters are on.

    The model and all random generators are afterwards as before.
    """
    facts = facts_of(model, batch)
    subject = copy.deepcopy(model) if any(map(is_lazy, (*model.parameters(), *model.buffers()))) else model
    with preserved(subject), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Using a target size")  # a loss that only broadcasts is no success
        return _search(subject, facts, seed, _hinted(facts, hints), device)


def _search(model: nn.Module, facts: Facts, seed: int, hinted: Iterable[Guess], device: str) -> Inputs:
    """Run guesses, repaired ones first, until one works and keeps the samples apart."""
    firsts = itertools.chain(hinted, itertools.islice(first_guesses(facts), TRIES))
    queue = deque(enumerate(firsts))  # each with the number of the first guess that it is, or mends
    tried: Counter[int] = Counter()
    costly: list[Guess] = []
    seen: set[str] = set()
    accepted: Inputs | None = None
    affordable: float = AFFORDABLE
    complaint = "it takes no tensor" if not queue else ""
    deadline, tries = time.monotonic() + SECONDS, 0
    while (queue or costly) and tries < TRIES and time.monotonic() < deadline:
        late = tries >= CHEAPER_FIRST or time.monotonic() > deadline - SECONDS / 2
        if not queue or (costly and late):  # nothing cheaper works
            queue.extendleft((-1, guess) for guess in reversed(costly))
            costly, seen = [], seen - {guess.key for guess in costly}
            affordable *= AT_MOST
        root, guess = queue.popleft()
        if guess.key in seen:
            continue
        seen.add(guess.key)
        if guess.elements > CHEAP and device != "meta" and _bytes_of_run(model, guess, facts) > affordable:
            complaint = complaint or f"a run with {_spec(guess, facts)} needs too much memory"
            if affordable == AFFORDABLE:
                costly += [guess.batched(facts.batch, FEW), guess]
            continue
        tries += 1
        tried[root] += 1
        inputs = _spec(guess, facts).make(seed=seed, device=device, source="inferred", batch_axis=guess.axis)
        run = _run(model, inputs)
        if run.error is None and guess.axis == 1 and run.keeps_first(inputs):
            return _spec(guess, facts).make(seed=seed, device=device, source="inferred", batch_axis=0)
        if run.error is None and (run.keeps(facts.batch) or (inputs.batch == FEW and run.keeps(FEW))):
            return inputs
        if run.error is None:
            accepted = accepted or inputs
            tries += TRIES // 8  # an accidental success by broadcasting: look a little further
            continue
        complaint = complaint or f"{summary(run.error)} (called with {inputs.description})"
        repaired = [g for g in repairs(guess, run.error, facts) if g.key not in seen and g.elements <= ELEMENTS]
        if tried[root] < REPAIRED:
            queue.extendleft((root, g) for g in reversed(repaired[:6]))
        else:  # other first guesses get their turn
            queue.extend((root, g) for g in repaired[:6])
        queue.extend((root, g) for g in by_numbers(guess, str(run.error)) if g.elements <= ELEMENTS)
    if accepted is not None:
        return accepted
    raise InputError(f"no inputs were found that it runs with; the first try: {complaint}")


def _hinted(facts: Facts, hints: Sequence[tuple[int, ...]]) -> Iterator[Guess]:
    """Shapes that the user's file makes, with our batch size, for a model of one float argument."""
    required = needed(facts)
    if len(required) != 1:
        return
    for shape in dict.fromkeys(hints):
        if len(shape) > 1 and math.prod(shape[1:]) <= 3 * 512 * 512:
            yield Guess({required[0].name: Leaf("float", (facts.batch, *shape[1:]))})


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


def _bytes_of_run(model: nn.Module, guess: Guess, facts: Facts) -> int:
    """Bytes of everything that a run computes, told by shapes alone; 0 where they do not tell."""
    inputs = _spec(guess, facts).make(device="meta", source="inferred")
    counter = CountedShapes()
    try:
        with torch.no_grad(), counter:
            model(*inputs.args, **inputs.kwargs)
    except (Exception, SystemExit):  # the run with values meets it again, or it comes of there being no values
        return 0
    return counter.bytes


# Dry runs -------------------------------------------------------------------------------------------------------------


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
    on_meta = any(tensor.is_meta for tensor in tensors_in((args, kwargs)))
    for context in (torch.no_grad, torch.enable_grad):
        try:
            with context(), ShapesOnly() if on_meta else contextlib.nullcontext():
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
