"""Methods that initialise weights and that nothing in the file calls, next to classes that call theirs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.static.facts.initialisers import write_of
from auditor.static.tree import walk_scope

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

_METHOD = r"_?(init|initiali[sz]e)_?(weights?|params|parameters)_?|_?reset_?(weights?|params|parameters)|weights?_init"


def uncalled_initialisers(source: Source) -> Iterator[tuple[ModuleClass, Function, ModuleClass]]:
    """The class, its method, and a class of the file that calls its own method of that name when constructed."""
    for facts in source.module_classes:
        for name, method in facts.methods.items():
            if not re.fullmatch(_METHOD, name) or not _is_plain(source, facts, method):
                continue
            siblings = [other for other in source.module_classes if other is not facts and _calls_its_own(other, name)]
            if siblings and not _is_called(source, facts, name):
                yield facts, method, siblings[0]


def _is_plain(source: Source, facts: ModuleClass, method: Function) -> bool:
    """A method without arguments that fills weights, in a class whose bases cannot call it unseen."""
    alone = [argument.arg for argument in method.args.args] == ["self"] and not method.decorator_list
    ends = "__init__" in facts.methods and not facts.has_unseen_base and not _inherited(source, facts)
    writes = [write for node in walk_scope(method) if (write := write_of(source, node)) is not None]
    return alone and ends and any(write.name.startswith(("weight", "bias")) for write in writes)


def _inherited(source: Source, facts: ModuleClass) -> bool:
    """Whether the class has children in the file, or parents of its own: either may call for it."""
    children = any(facts in other.ancestors for other in source.module_classes)
    return children or bool(facts.ancestors)


def _calls_its_own(facts: ModuleClass, name: str) -> bool:
    """Whether the class has a method of that name and its constructor calls it."""
    start = facts.methods.get("__init__")
    return name in facts.methods and start is not None and any(_is_reference(node, name) for node in walk_scope(start))


def _is_reference(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name


def _is_called(source: Source, facts: ModuleClass, name: str) -> bool:
    """Whether this class, or something that is no other class's own call, refers to a method of that name."""
    for node in source.tree.attributes(name):
        place = source.method_of(node)
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if place is None or place[0] is facts or not own:
            return True
    if source.calls_named("reset"):  # torch_geometric's, which resets whatever it is given
        return True
    return any(isinstance(node.value, str) and name in node.value for node in _strings(source))


def _strings(source: Source) -> Iterator[ast.Constant]:
    """Texts that may name a method: all but documentation."""
    for node in source.tree.all(ast.Constant):
        if not isinstance(source.tree.parent(node), ast.Expr):
            yield node
