"""`requires_grad` assigned to a module, which freezes nothing.

## What it finds
`module.requires_grad = …` where the object surely is a module: a layer of the class, a variable that holds a new
layer, a loop variable over `modules()` or `children()`.

## Why it matters
Only tensors have `requires_grad`. On a module the assignment makes a new attribute that nothing reads: all its
parameters train on (or stay frozen), without an error.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.stem.requires_grad = False

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.stem.requires_grad_(False)

## When to ignore it
A module class of one's own that reads such an attribute.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.requires_grad_
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, state_dict_keys
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.constants import enclosing_scope
from auditor.static.facts.api import text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API011",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="`requires_grad` assigned to a module, which freezes nothing",
    triggers=(".requires_grad ", ".requires_grad="),
)

MAKERS = ("torchvision.models.", "timm.create_model", "segmentation_models_pytorch.")
EACH = {"modules": None, "children": None, "named_modules": 1, "named_children": 1}


@rule.static
def of_a_module(source: Source) -> Iterator[Finding]:
    for statement in source.tree.all(ast.Assign):
        target = statement.targets[0]
        if len(statement.targets) != 1 or not isinstance(target, ast.Attribute) or target.attr != "requires_grad":
            continue
        if _is_module(source, target.value):
            owner = text_of(source, target.value)
            yield rule.finding(target, f"`{owner}` is a module: this sets an attribute that nothing reads")


def _is_module(source: Source, owner: ast.expr) -> bool:
    if isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self":
        method = source.method_of(owner)
        held = method[0].attributes.get(owner.attr, []) if method else []
        return bool(held) and all(source.layer_kind(attribute.value) for attribute in held)
    if not isinstance(owner, ast.Name):
        return False
    scope = enclosing_scope(source, owner)
    stores = [store for store in source.names.stores(owner.id) if enclosing_scope(source, store) is scope]
    return bool(stores) and all(_binds_module(source, store) for store in stores)


def _binds_module(source: Source, store: ast.Name) -> bool:
    """Whether a variable is bound to a module here: to a new layer, or in a loop over layers."""
    parent = source.tree.parent(store)
    if isinstance(parent, ast.Assign) and isinstance(parent.value, ast.Call):
        made = source.resolve(parent.value.func)
        return bool(source.layer_kind(parent.value)) or (bool(made) and all(name.startswith(MAKERS) for name in made))
    place = None
    if isinstance(parent, ast.Tuple):
        place, parent = parent.elts.index(store), source.tree.parent(parent)
    if not isinstance(parent, ast.For) or not isinstance(parent.iter, ast.Call) or parent.iter.args:
        return False
    function = parent.iter.func
    return isinstance(function, ast.Attribute) and function.attr in EACH and EACH[function.attr] == place


@rule.fix("call `requires_grad_`", applicability="unsafe", keeps=[state_dict_keys(), outputs(), outputs(mode="train")])
def call_it(source: Source, finding: Finding) -> Edit | None:
    """Not safe: what was meant to be frozen is frozen from now on."""
    target = source.node_at(finding.location, ast.Attribute)
    statement = source.tree.parent(target) if target is not None else None
    if not isinstance(target, ast.Attribute) or not isinstance(statement, ast.Assign):
        return None
    return replace(statement, f"{text_of(source, target.value)}.requires_grad_({text_of(source, statement.value)})")
