"""The two ways in which a mode is wrong where a model is called: evaluated in train mode, trained in eval mode.

Both are facts about paths: what set the mode, through which calls, around which loop. The rules word them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary, ref

from auditor.static.modes import libraries
from auditor.static.modes.analysis import modes_of
from auditor.static.modes.linked import may_build
from auditor.static.modes.objects import ENTRY, EVAL, FUNCTIONS, TRAIN, UNKNOWN, Chain, ModelCall, Setting
from auditor.static.modes.purpose import EVALUATING, LOOPS, Loop, Purposes, words
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.source import Source

_HANDS_OVER = r"(?:\b|_)(?:eval\w|valid|val_|test|predict|infer)\w*\("  # to a function of another file, it may be
_SIGNS = ("no_grad", "inference_mode", "set_grad_enabled", "trace", "trace_module")
_EVALUATES = r"\b(?:no_grad|inference_mode|set_grad_enabled|def \w*(?:eval|test|val|predict|infer))|jit\.trace"


class Evaluated(NamedTuple):
    """An evaluation in train mode: the call `site` of the model named `receiver`, what set the mode, and the calls that
    lead to the site from where it was set; further ones of the same model in the same function are part of it.

    `regions`: the outermost statements that only evaluate, in document order; `trains_again`: training may go on after
    them and would find the model in whatever mode it is left in.
    """

    site: ast.Call
    receiver: str
    settings: tuple[Setting, ...]
    chain: Chain
    regions: tuple[ast.stmt, ...]
    trains_again: bool
    traced: bool


class Trained(NamedTuple):
    """A training step in eval mode, from the second round of `loop` on; the first fields are those of Evaluated.

    `settings` hold the `eval()` that nothing undoes; `start` is the statement before which `train()` belongs; `depends`
    whether that surely matters.
    """

    site: ast.Call
    receiver: str
    settings: tuple[Setting, ...]
    chain: Chain
    loop: Loop
    start: ast.stmt
    depends: bool | None


class ModePaths:
    """Both kinds of defect in one file."""

    def __init__(self, source: Source) -> None:
        self._source = ref(source)  # weak: the cache below is keyed by the source

    @property
    def source(self) -> Source:
        source = self._source()
        assert source is not None
        return source

    @cached_property
    def purposes(self) -> Purposes:
        return Purposes(self.source)

    # Evaluated in train mode ---------------------------------------------------------------------------------------

    @cached_property
    def evaluated(self) -> list[Evaluated]:
        """The evaluations of models that are surely in train mode and surely depend on it, in document order."""
        if not re.search(f"{_EVALUATES}|{_HANDS_OVER}", self.source.text) or not self._may_evaluate():
            return []
        if not self._builds_dependent_model():
            return []
        paths: dict[tuple[ast.AST, Chain, ast.Call], list[ModelCall]] = {}
        for call in modes_of(self.source).calls:
            paths.setdefault((call.scope, call.chain, call.call), []).append(call)
        right = {call.call for calls in paths.values() for call in calls if any(s.mode == EVAL for s in call.modes)}
        found: dict[ast.Call, Evaluated] = {}
        for calls in paths.values():
            if calls[0].call not in right and all(call.only(TRAIN) and call.depends for call in calls):
                evaluated = self._evaluated(calls)
                if evaluated is not None:
                    found.setdefault(evaluated.site, evaluated)
        return self._grouped(found.values())

    def _grouped(self, found: Iterable[Evaluated]) -> list[Evaluated]:
        """The first evaluation of each model in each function, with the regions of all."""
        groups: dict[tuple[ast.AST | None, str], list[Evaluated]] = {}
        for item in sorted(found, key=_place):
            groups.setdefault((self.source.function_of(item.site), item.receiver), []).append(item)
        merged = []
        for first, *others in groups.values():
            regions = tuple(dict.fromkeys(region for item in (first, *others) for region in item.regions))
            again = any(item.trains_again for item in (first, *others))
            merged.append(first._replace(regions=regions, trains_again=again))
        return sorted(merged, key=_place)

    def _evaluated(self, calls: Sequence[ModelCall]) -> Evaluated | None:
        call = calls[0]
        if call.traced:
            return self._traced(call)
        evaluation = self.purposes.evaluation(call)
        if evaluation is None:
            return None
        settings = _sorted({setting for item in calls for setting in item.modes})
        again = self._trains_again(evaluation.region, call, settings)
        return Evaluated(
            evaluation.site, evaluation.receiver, settings, call.chain, (evaluation.region,), again, traced=False
        )

    def _traced(self, call: ModelCall) -> Evaluated | None:
        """A trace bakes the mode in: a defect where what it gives is saved."""
        arguments = call.call.args
        statement = self.source.statement_of(call.call)
        if self.purposes.is_test or not arguments or not isinstance(arguments[0], (ast.Name, ast.Attribute)):
            return None
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        name = ast.unparse(target) if target is not None else ""
        saved = any(
            (isinstance(save.func, ast.Attribute) and ast.unparse(save.func.value) == name)
            or (save.args and ast.unparse(save.args[0]) == name)
            for save in self.source.calls_named("save")
            if self.source.function_of(save) is self.source.function_of(call.call)
        )
        direct = isinstance(self.source.tree.parent(call.call), ast.Attribute)
        if not saved and not direct:
            return None
        again = self._trains_again(statement, call, _sorted(call.modes))
        receiver = ast.unparse(arguments[0])
        return Evaluated(call.call, receiver, _sorted(call.modes), call.chain, (statement,), again, traced=True)

    def _may_evaluate(self) -> bool:
        """Whether anything in the file looks like an evaluation, other than inside of a model."""
        tree = self.source.tree
        named = [node.name for node in tree.all(ast.FunctionDef) + tree.all(ast.AsyncFunctionDef)]
        if any(words(name) & EVALUATING for name in named) or re.search(_HANDS_OVER, self.source.text):
            return True
        uses = [use for name in _SIGNS for use in (*tree.attributes(name), *tree.names(name))]
        return any(self.source.method_of(use) is None for use in uses)

    def _builds_dependent_model(self) -> bool:
        """Whether the file builds a model that depends on its mode, outside of other models."""
        source = self.source
        roots = {name.partition(".")[0] for names in source.names.aliases.values() for name in names}
        if roots & {"torchvision", "timm"} and any(
            libraries.builds_library_model(source.resolve(call.func)) for call in source.tree.all(ast.Call)
        ):
            return True
        names = {facts.name for facts in source.module_classes}
        for call in source.calls_named(*names, "Sequential"):
            if source.method_of(call) is None and modes_of(source).call_kind(call).depends:
                return True
        return any(
            source.method_of(call) is None and modes_of(source).call_kind(call).depends
            for name, meanings in source.names.aliases.items()
            if not all(meaning.startswith("torch") for meaning in meanings)
            for call in source.calls_through(name)
            if may_build(call)
        )

    def _trains_again(self, region: ast.stmt, call: ModelCall, settings: Sequence[Setting]) -> bool:
        """Whether training may follow the evaluation without a `train()` of its own."""
        places: list[ast.stmt | ast.expr] = [region, *reversed(call.chain)]
        for node in places:
            for loop in self.loops_around(node):
                if self.purposes.trains(loop):
                    inside = set(walk(loop))
                    return not all(not s.built and inside & {s.node, *s.via} for s in settings)
            scope = self.source.function_of(node) or self.source.tree.root
            if any(s.lineno > (node.end_lineno or 0) and self.purposes.trains(s) for s in scope.body):
                return True
        return False

    # Trained in eval mode ------------------------------------------------------------------------------------------

    @cached_property
    def trained(self) -> list[Trained]:
        """The training steps that find their model in eval mode from the second round of a loop on."""
        text = self.source.text
        switches = ".eval(" in text or ".train(False" in text or re.search(_HANDS_OVER, text)
        if "backward" not in text or ".step(" not in text or not switches:
            return []
        calls = modes_of(self.source).calls
        harmless = {call.call for call in calls if call.depends is False}
        found: dict[tuple[ast.AST | None, str], Trained] = {}
        for call in sorted(calls, key=lambda call: (call.call.lineno, call.call.col_offset)):
            trained = self._trained(call) if call.call not in harmless else None
            if trained is not None:
                found.setdefault((self.source.function_of(call.call), trained.receiver), trained)
        return sorted(found.values(), key=_place)

    def _trained(self, call: ModelCall) -> Trained | None:
        if call.traced or self.source.method_of(call.call):
            return None
        for setting in _sorted(call.modes):
            if setting.mode == EVAL and not setting.built:
                loop = self._carried_by(call, setting)
                if loop is not None:
                    return self._judged(call, setting, loop)
        return None

    def _carried_by(self, call: ModelCall, setting: Setting) -> Loop | None:
        """The loop whose second round brings `setting` to `call`; None where it precedes `call` in one round."""
        if setting.node is None:
            return None
        calls, settings = (*call.chain, call.call), (*setting.via, setting.node)
        level = next((i for i, (a, b) in enumerate(zip(calls, settings, strict=False)) if a is not b), None)
        if level is None or not _comes_after(settings[level], calls[level]):
            return None
        after = set(self.loops_around(settings[level]))
        common = [loop for loop in self.loops_around(calls[level]) if loop in after]
        for outer in reversed(calls[:level]):
            common += self.loops_around(outer)
        return common[0] if common else None

    def _judged(self, call: ModelCall, setting: Setting, loop: Loop) -> Trained | None:
        inside = set(walk(loop))
        if any(s.mode in (TRAIN, UNKNOWN) and not s.built and inside & {s.node, *s.via} for s in call.modes):
            return None  # in the same loop, under a condition of its own: `train()`, or code that is not seen
        receiver = self.purposes.receiver(call.call, call.method)
        names = [receiver, self.purposes.receiver_at(call)]
        if not receiver or any(self.purposes.has_own_mode(name) for name in names if name):
            return None
        if not self.purposes.training_step(call):
            return None
        return Trained(call.call, receiver, (setting,), call.chain, loop, self._start(call.call, loop), call.depends)

    def _start(self, call: ast.Call, loop: Loop) -> ast.stmt:
        """The outermost loop around `call` in its function and inside `loop`, or the start of `loop`'s body."""
        start: ast.stmt | None = None
        for inner in self.loops_around(call):
            if inner is loop:
                return start or loop.body[0]
            start = inner
        return start or self.source.statement_of(call)

    def loops_around(self, node: ast.AST) -> list[Loop]:
        """The loops around `node` in its function, innermost first."""
        found: list[Loop] = []
        below = node
        for above in self.source.tree.ancestors(node):
            if isinstance(above, (*FUNCTIONS, ast.Lambda)):
                break
            if isinstance(above, LOOPS) and (isinstance(above, ast.While) or below is not above.iter):
                found.append(above)
            below = above
        return found


def _place(found: Evaluated | Trained) -> tuple[int, int]:
    return found.site.lineno, found.site.col_offset


def _comes_after(one: ast.AST, other: ast.AST) -> bool:
    return (one.lineno, one.col_offset) > (other.lineno, other.col_offset)  # type: ignore[attr-defined]


def _sorted(settings: Sequence[Setting] | set[Setting] | frozenset[Setting]) -> tuple[Setting, ...]:
    placed = [setting for setting in settings if setting.node is not None and setting.mode != ENTRY]
    return tuple(sorted(placed, key=lambda s: (s.node.lineno, s.node.col_offset, len(s.via))))  # type: ignore[union-attr]


_FOUND: WeakKeyDictionary[Source, ModePaths] = WeakKeyDictionary()


def mode_paths(source: Source) -> ModePaths:
    """The defects of `source`, computed once."""
    if source not in _FOUND:
        _FOUND[source] = ModePaths(source)
    return _FOUND[source]
