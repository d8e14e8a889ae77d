"""A module whose constructor never calls that of `nn.Module`.

## What it finds
An `nn.Module` that assigns layers or parameters in an `__init__` without `super().__init__()`, or before it.

## Why it matters
The registries of parameters, buffers and submodules do not exist yet: the first layer assigned raises "cannot assign
module before Module.__init__() call", in code that is often reached for the first time in a long job.

## Example
    class Net(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(8, 4)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

## When to ignore it
Where something that cannot be seen initialises the module.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.rule import Category, Rule
from auditor.static.classes import ModuleClass
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="REG001",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="layers assigned before `nn.Module` is initialised",
    triggers=("__init__",),
)

MESSAGE = "`{}` assigns a layer before `super().__init__()` has run: constructing it raises"
_CUSTOM = frozenset({"__new__", "__setattr__", "__getattr__", "__init_subclass__"})


@rule.static
def not_initialised(source: Source) -> Iterator[Finding]:
    """The first layer or parameter of a constructor comes before any call of a base's constructor."""
    for facts in source.module_classes:
        first = _first_layer(source, facts)
        if first is not None and not _may_be_initialised(facts, first):
            yield rule.finding(first, MESSAGE.format(facts.name))


def _first_layer(source: Source, facts: ModuleClass) -> ast.stmt | None:
    """The first layer or parameter that every run of the class's own constructor assigns."""
    start = facts.methods.get("__init__")
    unclear = facts.has_unseen_base or facts.node.decorator_list or facts.node.keywords
    if start is None or unclear or start.decorator_list or not _CUSTOM.isdisjoint(facts.methods):
        return None
    bases = {name for names in facts.bases for name in names}
    if any("Parameter" in name or name.endswith("Buffer") for name in bases):
        return None
    for statement in start.body:
        match statement:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"))], value=ast.Call() as value):
                if source.layer_kind(value) or source.is_any(value.func, "torch.nn.Parameter"):
                    return statement
    return None


def _may_be_initialised(facts: ModuleClass, first: ast.stmt) -> bool:
    """Whether anything before `first` may call a constructor of a base: `__init__` itself, or a method that does."""
    start = facts.methods["__init__"]
    earlier = start.body[: start.body.index(first)]
    for node in (inner for statement in earlier for inner in walk(statement)):
        if isinstance(node, ast.Attribute) and node.attr in ("__init__", "__dict__", "__setattr__"):
            return True
        if isinstance(node, ast.Call) and any(ast.unparse(argument) == "self" for argument in node.args):
            return True
        own = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if own and ast.unparse(node.func.value) in ("self", "super()"):  # type: ignore[attr-defined]
            return True
    return False
