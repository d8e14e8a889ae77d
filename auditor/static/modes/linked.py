"""What classes and functions of other files of the project do to modes, in a few words that outlive those files."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.modes.objects import AT_ENTRY, ENTRY, TRAIN, UNKNOWN, Built, Function, Place, arguments, tail_of
from auditor.static.project import Definition, imported, project

if TYPE_CHECKING:
    from auditor.static.source import Source


class ClassFacts(NamedTuple):
    """A class, or what a function builds. `module`: an instance surely is an nn.Module; `depends`: whether it computes
    differently in train and in eval mode (None: unknown); `fresh`: whether it surely starts in train mode and is
    switched by `train` and `eval` as a whole."""

    module: bool
    depends: bool | None
    fresh: bool


class FunctionFacts(NamedTuple):
    """A function. `parameters` that can be passed by position, in order; `effects`: the mode in which it leaves the
    model it is given as each parameter (ENTRY: as it was); `evaluated`: the parameters that it evaluates in whatever
    mode they are in; `returns`: the model that it builds, if that is what it returns."""

    parameters: tuple[str, ...]
    effects: dict[str, str]
    evaluated: frozenset[str]
    returns: ClassFacts | None


def may_build(call: ast.Call) -> bool:
    """Whether a callee's name is that of a class, or of a function that may build a model."""
    tail = tail_of(call.func)
    return tail[:1].isupper() or re.search(_BUILDS, tail) is not None


_BUILDS = r"(?i)build|create|make|get_|model|net|construct|init"


def linked(source: Source, callee: ast.expr) -> ClassFacts | FunctionFacts | None:
    """What is known of the class or function of another file that `callee` surely stands for."""
    names = source.resolve(callee)
    if len(names) != 1:
        return None
    found = next(imported(source, names), None)
    return project().ask(_facts, found) if found is not None else None


def linked_class(source: Source, callee: ast.expr) -> ClassFacts | None:
    found = linked(source, callee)
    return found if isinstance(found, ClassFacts) else None


def _facts(source: Source, node: Definition) -> ClassFacts | FunctionFacts | None:
    return _class_facts(source, node) if isinstance(node, ast.ClassDef) else _function_facts(source, node)


def _class_facts(source: Source, node: ast.ClassDef) -> ClassFacts:
    from auditor.static.modes.analysis import modes_of
    from auditor.static.modes.calls import switches_itself
    from auditor.static.modes.dependence import class_dependence, unknown_bases

    facts = source.module_class(node)
    if facts is None:
        return ClassFacts(False, None, False)
    fresh = not unknown_bases(source, facts) and not switches_itself(facts)
    start = facts.method("__init__")
    if fresh and start is not None:
        summary = modes_of(source).summary(start)
        own = Place(start, arguments(start)[0].arg) if arguments(start) else None
        fresh = summary is not None and summary.exit is not None and own not in summary.exit.modes
    return ClassFacts(True, class_dependence(source, facts), fresh)


def _function_facts(source: Source, node: Function) -> FunctionFacts | None:
    from auditor.static.modes.analysis import modes_of
    from auditor.static.modes.calls import changes_mode
    from auditor.static.modes.paths import mode_paths

    analysis = modes_of(source)
    summary = analysis.summary(node)
    if summary is None or summary.exit is None or any(changes_mode(item) for item in node.decorator_list):
        return None
    effects, evaluated = {}, set()
    for argument in arguments(node):
        place = Place(node, argument.arg)
        modes = {setting.mode for setting in summary.exit.modes.get(place, AT_ENTRY)}
        touched = any(owner == place for owner, _ in summary.exit.fields)
        effects[argument.arg] = modes.pop() if len(modes) == 1 and not touched else UNKNOWN
        calls = [call for call in summary.calls if call.model == place]
        as_given = [call for call in calls if call.only(ENTRY)]
        if calls and len(as_given) == len(calls):
            purposes = mode_paths(source).purposes
            if any(purposes.evaluation(call) is not None for call in as_given):
                evaluated.add(argument.arg)
    returned = [held for held in summary.returned if isinstance(held, Built)]
    returns = None
    if returned and len(returned) == len(summary.returned):
        kinds = [analysis.kind(held) for held in returned]
        common = analysis.common_kind(kinds)
        fresh = all(setting.built and setting.mode == TRAIN for held in returned for setting in summary.exit.mode(held))
        returns = ClassFacts(common.module, common.depends, fresh) if common.module else None
    positional = tuple(argument.arg for argument in (*node.args.posonlyargs, *node.args.args))
    return FunctionFacts(positional, effects, frozenset(evaluated), returns)
