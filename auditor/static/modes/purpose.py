"""What a model is called for: evaluation, a training step, or something else (then rules about modes are silent)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.classes import has_unseen_base
from auditor.static.modes.objects import FUNCTIONS, Function, ModelCall, arguments, tail_of
from auditor.static.tree import walk, walk_scope

if TYPE_CHECKING:
    from auditor.static.source import Source

Loop = ast.For | ast.AsyncFor | ast.While
LOOPS = (ast.For, ast.AsyncFor, ast.While)
_WORD = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+"

# A function of such a name evaluates.
EVALUATING = frozenset(
    {"eval", "evaluate", "evaluation", "evaluating", "validate", "validation", "validating", "valid", "val",
     "test", "testing", "predict", "prediction", "predictions", "infer", "inference", "score", "scoring",
     "accuracy", "generate"}
)  # fmt: skip
# Names inside a gradient-free block that show that it evaluates.
_EVALUATED = EVALUATING - {"generate", "score"} | frozenset(
    {"acc", "pred", "preds", "predicted", "predictions", "correct", "metric", "metrics", "f1", "auc",
     "recall", "precision", "argmax", "topk", "dev", "holdout", "mae", "rmse", "psnr", "miou", "confusion",
     "perplexity", "ppl"}
)  # fmt: skip
# Receivers whose mode is a choice of its own: teachers and averages, networks of GANs and of reinforcement learning.
_OWN_MODE = frozenset(
    {"teacher", "ema", "target", "momentum", "ref", "reference", "frozen", "avg", "averaged", "swa", "old",
     "anchor", "generator", "gen", "netg", "g", "gan", "discriminator", "disc", "netd", "d", "critic",
     "actor", "policy", "agent", "q", "qnet", "vgg", "lpips", "perceptual", "clip", "extractor", "vae",
     "sampler", "supernet"}
)  # fmt: skip
# Functions that run a model without gradients for another purpose than to judge or use its predictions.
_OTHER_PURPOSE = frozenset(
    {"bn", "batchnorm", "norm", "calibrate", "calibration", "recalibrate", "swa", "precise", "warm", "warmup",
     "profile", "flops", "macs", "benchmark", "bench", "speed", "latency", "throughput", "mc", "uncertainty",
     "bayesian", "dropout", "stochastic", "bald", "acquisition", "adapt", "tta", "tent", "lsuv", "hook",
     "hooks", "shape", "shapes", "pseudo", "extract", "feature", "features", "embed", "embedding",
     "embeddings", "rollout", "collect", "act", "teacher", "distill", "ema", "bank", "memory", "prototype",
     "prototypes", "cluster", "kmeans", "sanity", "demo", "export", "ensemble"}
)  # fmt: skip
_REINFORCEMENT = frozenset({"env", "envs", "environment", "rollout", "replay", "reward", "rewards"})
_NO_GRADIENT = frozenset(
    {"torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.grad_mode.no_grad",
     "torch.autograd.inference_mode", "torch.cuda.amp.inference_mode"}
)  # fmt: skip
_SWITCH = frozenset({"torch.set_grad_enabled", "torch.autograd.set_grad_enabled"})
_DUMMY = frozenset(
    f"torch.{name}" for name in ("zeros", "ones", "rand", "randn", "empty", "randint", "full", "arange", "linspace")
)
_LOADS = r"load_state_dict|load_weights|load_checkpoint|load_model|load_pretrained|restore"


class Evaluation(NamedTuple):
    """A place where a model is evaluated: the call of the model (or of its method that calls it), the outermost
    statement that only evaluates, and the source text of the model."""

    site: ast.Call
    region: ast.stmt
    receiver: str


def words(name: str) -> set[str]:
    """The words of an identifier: `val_loader` and `valLoader` both hold `val` and `loader`."""
    return {word.lower() for word in re.findall(_WORD, name)}


class Purposes:
    """Answers for the calls of one file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._slices: dict[ast.AST, set[str]] = {}
        tested = {name for names in source.names.aliases.values() for name in names}
        self.is_test = any(name.partition(".")[0] in ("pytest", "unittest") for name in tested) or bool(
            re.search(r"(?:^|/)(?:tests?/|test_)[^/]*$", source.path)
        )

    # Evaluation ----------------------------------------------------------------------------------------------------

    def evaluation(self, model_call: ModelCall) -> Evaluation | None:
        """Where `model_call` evaluates a model; None if it does not, or may not."""
        path = [model_call.call, *reversed(model_call.chain)]
        sites = [call for call in path if not self.source.method_of(call)]
        if model_call.evaluated is not None:
            return self._elsewhere(model_call, path, sites)
        if self.is_test or not sites or not self._methods_evaluate(path) or self._in_framework(path):
            return None
        site = sites[0]
        receiver = self.receiver(site, model_call.method if site is model_call.call else "")
        if not receiver or words(receiver.rpartition(".")[2]) & _OWN_MODE:
            return None
        if self._has_other_purpose(path, model_call) or not self._evaluates(sites, path):
            return None
        if any(self._used_in_training(call) for call in path):
            return None
        return Evaluation(site, self._region(site, receiver), receiver)

    def _elsewhere(
        self, model_call: ModelCall, path: Sequence[ast.Call], sites: Sequence[ast.Call]
    ) -> Evaluation | None:
        """The call of a function of another file that evaluates the model it is given."""
        receiver = tail_of(model_call.evaluated) if isinstance(model_call.evaluated, (ast.Name, ast.Attribute)) else ""
        if self.is_test or not sites or sites[0] is not model_call.call or self._in_framework(path):
            return None
        if not receiver or words(receiver) & _OWN_MODE or self._has_other_purpose(path, model_call):
            return None
        return Evaluation(sites[0], self._region(sites[0], receiver), ast.unparse(model_call.evaluated))  # type: ignore[arg-type]

    def receiver(self, call: ast.Call, method: str = "") -> str:
        """The model's name in the source, for a call of it, of its `forward` or of another method."""
        function = call.func
        if isinstance(function, ast.Attribute) and (method or self._is_method(function)):
            function = function.value
        named = isinstance(function, (ast.Name, ast.Attribute)) or (
            isinstance(function, ast.Subscript)
            and isinstance(function.slice, ast.Constant)
            and isinstance(function.value, (ast.Name, ast.Attribute))
        )
        return ast.unparse(function) if named else ""

    def _is_method(self, function: ast.Attribute) -> bool:
        """Whether `x.name(…)` calls a method of the model `x` rather than the model `x.name`."""
        return function.attr == "forward" or any(function.attr in f.methods for f in self.source.module_classes)

    def _methods_evaluate(self, path: Sequence[ast.Call]) -> bool:
        """Calls inside a module's own methods count only where the method predicts with the module as a whole."""
        for call in path:
            method = self.source.method_of(call)
            if method is not None:
                whole = ast.unparse(call.func) in ("self", "self.forward")
                if not whole or not words(method[1].name) & EVALUATING:
                    return False
        return True

    def _in_framework(self, path: Sequence[ast.Call]) -> bool:
        """Whether the call stands in a class that inherits from code that is not seen and may set modes itself."""
        for call in path:
            owner = self.source.class_of(call)
            if owner is None or self.source.module_class(owner):
                continue
            if has_unseen_base(self.source, owner):
                return True
        return False

    def _has_other_purpose(self, path: Sequence[ast.Call], model_call: ModelCall) -> bool:
        call = path[0]
        if model_call.traced:
            return False
        inputs = [*call.args, *(keyword.value for keyword in call.keywords)]
        if inputs and all(self._is_dummy(argument) for argument in inputs):
            return True
        for inner in path:
            function = self.source.function_of(inner)
            if function is not None and words(function.name) & _OTHER_PURPOSE:
                return True
        scope = self._scope(call)
        if any(words(name) & _REINFORCEMENT for name in _identifiers(scope)):
            return True
        return self._set_on_purpose(call, model_call)

    def _set_on_purpose(self, call: ast.Call, model_call: ModelCall) -> bool:
        """`model.train()` in the very function that evaluates and does not train."""
        scope = self._scope(call)
        return any(
            setting.node is not None and not setting.built and self._scope(setting.node) is scope
            for setting in model_call.modes
        ) and not self.has_backward(scope)

    def _is_dummy(self, node: ast.expr, depth: int = 4) -> bool:
        """Whether an input is made up on the spot: a probe of shapes or speed, not data."""
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, (ast.Tuple, ast.List)):
            return all(self._is_dummy(element, depth) for element in node.elts)
        if isinstance(node, ast.Call):
            if self.source.resolve(node.func) & _DUMMY:
                return True
            return isinstance(node.func, ast.Attribute) and depth > 0 and self._is_dummy(node.func.value, depth - 1)
        if isinstance(node, ast.Name) and depth:
            scope = self._scope(node)
            stores = [store for store in self.source.names.stores(node.id) if self._scope(store) is scope]
            values = [self._assigned_value(store) for store in stores]
            return bool(values) and all(value is not None and self._is_dummy(value, depth - 1) for value in values)
        return False

    def _assigned_value(self, store: ast.Name) -> ast.expr | None:
        statement = self.source.tree.parent(store)
        return statement.value if isinstance(statement, ast.Assign) and store in statement.targets else None

    def _evaluates(self, sites: Sequence[ast.Call], path: Sequence[ast.Call]) -> bool:
        """Whether names and the absence of gradients show an evaluation."""
        free = next((block for call in path if (block := self.gradient_free(call)) is not None), None)
        functions = [function for call in sites if (function := self.source.function_of(call)) is not None]
        names = set().union(*(words(function.name) for function in functions[:2] if not _trains(function.name)))
        if free is None:
            return bool(names & (EVALUATING - {"generate", "score"})) and self._judges(sites[0])
        if names & EVALUATING:
            return True
        block = free if isinstance(free, (ast.With, ast.AsyncWith)) else self._scope(sites[0])
        if isinstance(block, FUNCTIONS) and _trains(block.name):
            return False
        if isinstance(block, ast.Module):
            block = self._outermost_loop(sites[0]) or self.source.statement_of(sites[0])
        if any(words(name) & _EVALUATED for name in _identifiers(block)):
            return True
        scope = self._scope(sites[0])
        return not self.has_backward(self.source.tree.root) and any(
            isinstance(node, ast.Call) and re.search(_LOADS, tail_of(node.func)) for node in walk_scope(scope)
        )

    def _judges(self, site: ast.Call) -> bool:
        """An evaluating function that keeps gradients: it must loop over data and take no gradient of anything."""
        scope = self._scope(site)
        if self.has_backward(scope) or any("grad" in name or "attack" in name for name in _identifiers(scope)):
            return False
        looped = self._outermost_loop(site) is not None
        shown = _EVALUATED | ({"item", "detach", "cpu"} if looped else set())
        return any(words(name) & shown for name in _identifiers(scope))

    def gradient_free(self, node: ast.AST) -> ast.AST | None:
        """The outermost block without gradients around `node` in its function: a `with`, the decorated function, or
        the scope in which they are switched off for good."""
        found: ast.AST | None = None
        for above in self.source.tree.ancestors(node):
            if isinstance(above, (ast.With, ast.AsyncWith)):
                if any(self._switches_off(item.context_expr) for item in above.items):
                    found = above
            elif isinstance(above, FUNCTIONS):
                if any(self._switches_off(decorator) for decorator in above.decorator_list):
                    return above
                return found or self._switched_off_in(above, node)
            elif isinstance(above, ast.Lambda):
                return found
        return found or self._switched_off_in(self.source.tree.root, node)

    def _switches_off(self, expression: ast.expr) -> bool:
        callee = expression.func if isinstance(expression, ast.Call) else expression
        names = self.source.resolve(callee)
        if names & _NO_GRADIENT:
            return not (isinstance(expression, ast.Call) and any(_is_false(a) for a in expression.args))
        return bool(names & _SWITCH) and isinstance(expression, ast.Call) and any(map(_is_false, expression.args))

    def _switched_off_in(self, scope: ast.AST, node: ast.AST) -> ast.AST | None:
        """`torch.set_grad_enabled(False)` as a statement before `node`."""
        row = getattr(node, "lineno", 0)
        for call in self.source.calls_to(*_SWITCH):
            whole = isinstance(self.source.tree.parent(call), ast.Expr) and self._scope(call) is scope
            if whole and call.lineno < row and self._switches_off(call):
                return scope
        return None

    def _region(self, site: ast.Call, receiver: str) -> ast.stmt:
        """The outermost statement of the function around `site` that only evaluates and for which the model exists."""
        region = self.source.statement_of(site)
        root = receiver.partition(".")[0]
        for above in self.source.tree.ancestors(region):
            if isinstance(above, (*FUNCTIONS, ast.Lambda, ast.ClassDef, ast.Module)):
                break
            if isinstance(above, (ast.With, ast.AsyncWith, *LOOPS)):
                bound = {n.id for n in walk(above) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                if root in bound or _steps(above) or self.trains(above):
                    break
                if isinstance(above, LOOPS) and self.gradient_free(site) is None and not _is_data_loop(above):
                    break
                region = above
            elif isinstance(above, (ast.Try, ast.TryStar)) or not isinstance(above, ast.stmt):
                continue
        return region

    def _outermost_loop(self, node: ast.AST) -> Loop | None:
        found: Loop | None = None
        for above in self.source.tree.ancestors(node):
            if isinstance(above, FUNCTIONS):
                break
            if isinstance(above, LOOPS):
                found = above
        return found

    # Training ------------------------------------------------------------------------------------------------------

    def training_step(self, model_call: ModelCall) -> bool:
        """Whether the outputs of `model_call` reach a `backward()` whose gradients an optimiser uses."""
        path = [model_call.call, *reversed(model_call.chain)]
        if any(self.gradient_free(call) is not None for call in path):
            return False
        for call in path:
            scope = self._scope(call)
            if self.has_backward(scope) or self._class_trains(call):
                return self._reaches_backward(call) and any(_steps(self._home(inner)) for inner in path)
        return False

    def receiver_at(self, model_call: ModelCall) -> str:
        """The model's name in `model_call.scope`, where it can be followed there through the arguments of the calls."""
        text = self.receiver(model_call.call, model_call.method)
        inner = model_call.call
        for call in reversed(model_call.chain):
            text = self._in_caller(text, self._scope(inner), call)
            inner = call
        return text

    def _in_caller(self, text: str, function: ast.AST, call: ast.Call) -> str:
        root, dot, rest = text.partition(".")
        if not text or not isinstance(function, FUNCTIONS):
            return text
        parameters = [argument.arg for argument in arguments(function)]
        if root not in parameters:
            local = any(self._scope(store) is function for store in self.source.names.stores(root))
            return "" if local else text
        position = parameters.index(root)
        is_method = isinstance(self.source.tree.parent(function), ast.ClassDef)
        if is_method and position == 0:
            given: ast.expr | None = call.func.value if isinstance(call.func, ast.Attribute) else None
        else:
            found = self.source.argument(call, root, position - is_method)
            given = found if isinstance(found, ast.expr) else None
        return ast.unparse(given) + dot + rest if isinstance(given, (ast.Name, ast.Attribute)) else ""

    def has_own_mode(self, receiver: str) -> bool:
        """Whether a model's name says that it is not the one being trained, or the file freezes it."""
        tail = receiver.rpartition(".")[2]
        if words(tail) & (_OWN_MODE - {"generator", "gen", "netg", "g", "discriminator", "disc", "netd", "d", "actor",
                                       "critic", "policy", "agent", "vae", "clip", "q", "qnet"}):  # fmt: skip
            return True
        for call in self.source.calls_named("requires_grad_"):
            if (
                any(map(_is_false, call.args))
                and isinstance(call.func, ast.Attribute)
                and tail_of(call.func.value) == tail
            ):
                return True
        return any(
            tail_of(loop.iter.func.value) == tail and _freezes(loop)
            for loop in self.source.tree.all(ast.For)
            if isinstance(loop.iter, ast.Call)
            and isinstance(loop.iter.func, ast.Attribute)
            and loop.iter.func.attr in ("parameters", "named_parameters")
        )

    def has_backward(self, scope: ast.AST) -> bool:
        """Whether gradients are computed in `scope`."""
        return bool(self.source.calls_named("backward", "manual_backward")) and any(
            _is_backward(node) for node in walk_scope(scope)
        )

    def trains(self, scope: ast.AST) -> bool:
        """Whether `scope` takes gradients, directly or by a function that does or is named after training."""
        return any(_is_backward(node) or self._calls_training(node) for node in walk(scope))

    def _calls_training(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.Call):
            return False
        name = tail_of(node.func)
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        flags = all(isinstance(item, ast.Constant) and isinstance(item.value, bool) for item in given)
        if name == "train" and isinstance(node.func, ast.Attribute) and flags:
            return False  # a switch of mode
        return name in self._training_functions or bool(words(name) & {"train", "fit", "training"})

    @cached_property
    def _training_functions(self) -> frozenset[str]:
        """The names of the functions of this file that take gradients."""
        functions: list[Function] = [*self.source.tree.all(ast.FunctionDef)]
        functions += self.source.tree.all(ast.AsyncFunctionDef)
        return frozenset(f.name for f in functions if any(_is_backward(node) for node in walk(f)))

    def _class_trains(self, call: ast.Call) -> bool:
        owner = self.source.class_of(call)
        return owner is not None and any(_is_backward(node) for node in walk(owner))

    def _home(self, call: ast.Call) -> ast.AST:
        return self.source.class_of(call) or self._scope(call)

    def _scope(self, node: ast.AST) -> ast.AST:
        return self.source.function_of(node) or self.source.tree.root

    def _reaches_backward(self, call: ast.Call) -> bool:
        statement = self.source.statement_of(call)
        if any(_is_backward(node) for node in walk(statement)):
            return True
        return bool(set(_assigned(statement)) & self._slice(call))

    def _slice(self, node: ast.AST) -> set[str]:
        """The variables that the losses of the scope around `node` are computed from; in a class, of all its methods
        as far as they go through `self`."""
        scope = self._scope(node)
        if scope not in self._slices:
            statements = list(_simple_statements(scope))
            owner = self.source.class_of(node)
            if owner is not None:
                statements += [s for method in owner.body if method is not scope for s in _through_self(method)]
            self._slices[scope] = _backward_slice(statements)
        return self._slices[scope]

    def _used_in_training(self, call: ast.Call) -> bool:
        """Whether what is computed around an evaluating `call` flows into a loss that is differentiated."""
        if not (self.has_backward(self._scope(call)) or self._class_trains(call)):
            return False
        region: ast.AST = self.source.statement_of(call)
        for above in self.source.tree.ancestors(call):
            if isinstance(above, FUNCTIONS):
                break
            if isinstance(above, (ast.With, ast.AsyncWith)) and any(
                self._switches_off(item.context_expr) for item in above.items
            ):
                region = above
        made = {name for statement in _simple_statements(region) for name in _assigned(statement)}
        suspects = made & self._slice(call)
        return any("." in name or self._read_next(name, region) for name in suspects)

    def _read_next(self, name: str, region: ast.AST) -> bool:
        """Whether the next thing that happens to `name` outside `region` is that it is read."""
        inside = set(walk(region))
        loop = next((above for above in self.source.tree.ancestors(region) if isinstance(above, LOOPS)), None)
        scope = self._scope(region)
        uses = [
            (self._moment(node), isinstance(node.ctx, ast.Load) or self._is_augmented(node))
            for node in walk_scope(scope)
            if isinstance(node, ast.Name) and node.id == name and node not in inside
        ]
        uses.sort()
        end = (region.end_lineno or 0, region.end_col_offset or 0)  # type: ignore[attr-defined]
        after = [read for moment, read in uses if moment > end]
        if after:
            return after[0]
        again = [read for moment, read in uses if loop is not None and moment[0] >= loop.lineno]
        return bool(again) and again[0]

    def _moment(self, node: ast.Name) -> tuple[int, int]:
        """When a name is used: an assignment's target after its value."""
        parent = self.source.statement_of(node)
        if isinstance(node.ctx, ast.Store) and not isinstance(parent, LOOPS):
            return parent.end_lineno or parent.lineno, parent.end_col_offset or 0
        return node.lineno, node.col_offset

    def _is_augmented(self, node: ast.Name) -> bool:
        return isinstance(self.source.tree.parent(node), ast.AugAssign)


# Small questions ---------------------------------------------------------------------------------------------------


def _trains(name: str) -> bool:
    return bool(words(name) & {"train", "training", "fit", "main", "run", "learn"})


def _is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _is_backward(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return tail_of(node.func) in ("backward", "manual_backward") or ast_is(node.func, "torch", "autograd", "grad")


def ast_is(node: ast.expr, *parts: str) -> bool:
    """Whether `node` is written exactly as the dotted name `parts`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node) == ".".join(parts)


def _steps(scope: ast.AST) -> bool:
    """Whether an optimiser steps inside `scope` (not a scheduler or an environment)."""
    for node in walk(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step":
            owner = words(tail_of(node.func.value))
            if not owner & ({"scheduler", "sched", "lr", "warmup", "profiler", "prof", "pbar"} | _REINFORCEMENT):
                return True
    return False


def _is_data_loop(loop: Loop) -> bool:
    if isinstance(loop, ast.While):
        return False
    words_of_data = {"dl", "data", "iter", "batch", "dataset"}
    return any(words(name) & words_of_data or "load" in name.lower() for name in _identifiers(loop.iter))


def _freezes(loop: ast.For) -> bool:
    return any(
        isinstance(node, ast.Assign) and _is_false(node.value) and tail_of(node.targets[0]) == "requires_grad"
        for node in loop.body
    )


def _identifiers(node: ast.AST) -> Iterator[str]:
    for inner in walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr


def _simple_statements(scope: ast.AST) -> Iterator[ast.stmt]:
    for node in walk_scope(scope):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Return, ast.For)):
            yield node
    if isinstance(scope, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr)):
        yield scope


def _through_self(method: ast.stmt) -> Iterator[ast.stmt]:
    """The statements of a method that hand something on through `self`."""
    if isinstance(method, FUNCTIONS):
        for statement in _simple_statements(method):
            if any(_is_backward(n) for n in walk(statement)) or any("." in name for name in _assigned(statement)):
                yield statement


def _variables(node: ast.AST) -> Iterator[str]:
    """Names and `self.name`s read in an expression."""
    for inner in walk(node):
        if isinstance(inner, ast.Name) and inner.id != "self":
            yield inner.id
        elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
            yield f"self.{inner.attr}"


def _assigned(statement: ast.AST) -> Iterator[str]:
    """The variables that a statement assigns, or appends to."""
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        targets = [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        if isinstance(function, ast.Attribute) and function.attr in ("append", "extend", "update"):
            targets = [function.value]
    for target in targets:
        yield from _variables(target)


def _backward_slice(statements: Sequence[ast.stmt]) -> set[str]:
    """The variables from which what is differentiated is computed, by assignments in any order."""
    found: set[str] = set()
    for statement in statements:
        for node in walk(statement):
            if _is_backward(node):
                found.update(_variables(node))
    pairs = []
    for statement in statements:
        value = getattr(statement, "value", None)
        if value is not None:
            pairs.append((set(_assigned(statement)), set(_variables(value))))
    for _ in range(len(pairs)):
        size = len(found)
        for targets, used in pairs:
            if targets & found:
                found |= used
        if len(found) == size:
            break
    return found
