"""What goes wrong in code that evaluates, beside a missing `eval()`: gradients are recorded, train mode comes back
before the evaluation is over, train mode is used to sample with dropout."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.modes.analysis import modes_of
from auditor.static.modes.dependence import holds_batch_norm
from auditor.static.modes.objects import EVAL, FUNCTIONS, TRAIN, ModelCall, Setting
from auditor.static.modes.paths import ModePaths, mode_paths
from auditor.static.modes.purpose import EVALUATING, LOOPS, Loop, words
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Source

_NEEDS_GRADIENTS = re.compile(
    r"(?i)grad|attack|adversar|fgsm|pgd|saliency|jacobian|hessian|detach|\bdata\b|volatile|invert|optimi|lbfgs|meta|maml"
)
_SAMPLES = frozenset(
    {"mc", "monte", "carlo", "dropout", "uncertainty", "uncertainties", "bayesian", "stochastic", "epistemic", "bald"}
)


class EvaluationLoop(NamedTuple):
    """A loop that evaluates the model `receiver` in eval mode: the call `site`, and what set the mode."""

    site: ast.Call
    receiver: str
    settings: tuple[Setting, ...]
    region: ast.stmt


class TurnedBack(NamedTuple):
    """`train` is called inside the `loop` that evaluates `receiver` at `site`, for which `settings` set eval mode."""

    train: ast.Call
    receiver: str
    site: ast.Call
    loop: Loop
    settings: tuple[Setting, ...]


class Sampling(NamedTuple):
    """`train` switches the whole model `receiver`, BatchNorm included, for predictions at `site`."""

    train: ast.Call
    receiver: str
    site: ast.Call


# Gradients recorded ---------------------------------------------------------------------------------------------------


def with_gradients(source: Source) -> Iterator[EvaluationLoop]:
    """Loops over data that evaluate a model in eval mode while gradients are recorded, one for each function."""
    if not (".eval(" in source.text or ".train(False" in source.text):
        return
    purposes = mode_paths(source).purposes
    seen: set[ast.AST | None] = set()
    for call in modes_of(source).calls:
        function = source.function_of(call.call)
        if function in seen or call.traced or source.method_of(call.call) or not call.only(EVAL):
            continue
        settings = tuple(s for s in call.modes if not s.built and source.function_of(s.node) is function)  # type: ignore[arg-type]
        if not settings or any(purposes.gradient_free(item) is not None for item in (call.call, *call.chain)):
            continue
        evaluation = purposes.evaluation(call._replace(modes=frozenset()))  # who set the mode is no matter here
        if evaluation is None or not isinstance(evaluation.region, LOOPS):
            continue
        if _wants_gradients(source, evaluation.region) or _called_without_gradients(source, call):
            continue
        seen.add(function)
        yield EvaluationLoop(evaluation.site, evaluation.receiver, settings, evaluation.region)


def _wants_gradients(source: Source, region: ast.stmt) -> bool:
    """Whether the function around an evaluation speaks of gradients, or looks after them in another way."""
    scope = source.function_of(region) or source.tree.root
    names = {getattr(node, "attr", getattr(node, "id", getattr(node, "arg", None))) for node in walk(scope)}
    return any(isinstance(name, str) and _NEEDS_GRADIENTS.search(name) for name in names)


def _called_without_gradients(source: Source, call: ModelCall) -> bool:
    """Whether some caller of the function in this file switches gradients off, or the file does for good."""
    purposes = mode_paths(source).purposes
    function = source.function_of(call.call)
    if function is None:
        return False
    return any(purposes.gradient_free(site) is not None for site in source.calls_named(function.name))


# Train mode comes back ------------------------------------------------------------------------------------------------


def turned_back(source: Source) -> Iterator[TurnedBack]:
    """`train()` inside a loop that evaluates, for which `eval()` was called before the loop, in document order."""
    if not (".eval(" in source.text and ".train(" in source.text):
        return
    paths = mode_paths(source)
    seen: set[ast.AST] = set()
    for call in modes_of(source).calls:
        before = tuple(s for s in call.modes if s.mode == EVAL and not s.built and not s.via)
        after = [s for s in call.modes if s.mode == TRAIN and not s.built and not s.via]
        for setting in after:
            loop = _common_loop(paths, call, setting) if before and isinstance(setting.node, ast.Call) else None
            if loop is None or setting.node in seen or not _evaluates_in(paths, call, loop, before):
                continue
            seen.add(setting.node)  # type: ignore[arg-type]
            receiver = paths.purposes.receiver(call.call, call.method)
            if receiver and not paths.purposes.has_own_mode(receiver):
                yield TurnedBack(setting.node, receiver, call.call, loop, before)  # type: ignore[arg-type]


def _common_loop(paths: ModePaths, call: ModelCall, setting: Setting) -> Loop | None:
    """The innermost loop of one function around both the call and, later in its body, the switch to train mode."""
    if call.chain or setting.node is None or setting.node.lineno < call.call.lineno:  # type: ignore[attr-defined]
        return None
    around = paths.loops_around(setting.node)
    return next((loop for loop in paths.loops_around(call.call) if loop in around), None)


def _evaluates_in(paths: ModePaths, call: ModelCall, loop: Loop, before: tuple[Setting, ...]) -> bool:
    """Whether `loop` only evaluates, and eval mode was set for it: before it, in the same function."""
    source, inside = paths.source, set(walk(loop))
    function = source.function_of(loop)
    if paths.purposes.trains(loop) or paths.purposes.is_test or any(s.node in inside for s in before):
        return False
    if not all(source.function_of(s.node) is function and s.node.lineno < loop.lineno for s in before if s.node):  # type: ignore[attr-defined]
        return False
    return function is None or not words(function.name) & _SAMPLES


# Sampling with dropout ------------------------------------------------------------------------------------------------


def samplings(source: Source) -> Iterator[Sampling]:
    """`train()` of a whole model that holds BatchNorm, for predictions that dropout is to make random."""
    if ".train(" not in source.text or not re.search("BatchNorm|torchvision|timm", source.text):
        return
    yield from _own_samplings(source)
    if not any(_may_sample(source, switch) for switch in source.calls_named("train")):
        return  # spares most files the analysis of modes
    analysis, purposes = modes_of(source), mode_paths(source).purposes
    seen: set[ast.AST] = set()
    for call in analysis.calls:
        switch = _only_switch(call)
        function = source.function_of(call.call)
        if switch is None or switch in seen or function is None or purposes.is_test:
            continue
        here = source.function_of(switch) is function or _is_sampling(source.function_of(switch))
        if not here or purposes.trains(function) or not _samples(source, call.call, function):
            continue
        if holds_batch_norm(source, analysis.built_by(call.model)):
            seen.add(switch)
            yield Sampling(switch, purposes.receiver(call.call, call.method), call.call)


def _may_sample(source: Source, switch: ast.Call) -> bool:
    """Whether the function around a `train()` is named after sampling, or does anything several times, and trains
    nothing."""
    function = source.function_of(switch)
    if function is None or mode_paths(source).purposes.trains(function):
        return False
    return _is_sampling(function) or any(_counts(node) for node in walk(function) if isinstance(node, ast.Call))


def _own_samplings(source: Source) -> Iterator[Sampling]:
    """`self.train()` in a method of a module that then samples from itself."""
    purposes = mode_paths(source).purposes
    for switch in source.calls_named("train"):
        match switch:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self")), args=[], keywords=[]):
                owner = source.method_of(switch)
            case _:
                continue
        if owner is None or owner[1].name in ("train", "eval") or purposes.trains(owner[1]):
            continue
        facts, method = owner
        site = next((node for node in walk(method) if _calls_itself(node)), None)
        if isinstance(site, ast.Call) and _samples(source, site, method) and holds_batch_norm(source, facts):
            yield Sampling(switch, "self", site)


def _calls_itself(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="self") | ast.Attribute(value=ast.Name(id="self"), attr="forward")):
            return True
    return False


def _only_switch(call: ModelCall) -> ast.Call | None:
    """The `train()` that surely set the mode of a call."""
    (setting, *others) = call.modes
    plain = not others and setting.mode == TRAIN and not setting.built
    return setting.node if plain and isinstance(setting.node, ast.Call) else None


def _samples(source: Source, site: ast.Call, function: ast.AST) -> bool:
    """Whether the same prediction is made several times, or names say that its randomness is wanted."""
    if _is_sampling(function):
        return True
    inputs = {node.id for argument in site.args for node in walk(argument) if isinstance(node, ast.Name)}
    for above in source.tree.ancestors(site):
        if above is function or isinstance(above, FUNCTIONS):
            return False
        rounds = above.generators if isinstance(above, (ast.ListComp, ast.GeneratorExp)) else [above]
        for loop in rounds:
            if isinstance(loop, (ast.For, ast.comprehension)) and _counts(loop.iter):
                bound = {
                    node.id for node in walk(loop) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                }
                return mode_paths(source).purposes.gradient_free(site) is not None and not bound & inputs
    return False


def _is_sampling(function: ast.AST | None) -> bool:
    named = words(function.name) if isinstance(function, FUNCTIONS) else set()
    return bool(named & _SAMPLES) and not named & {"train", "training"} - EVALUATING


def _counts(iterable: ast.expr) -> bool:
    return isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) and iterable.func.id == "range"
