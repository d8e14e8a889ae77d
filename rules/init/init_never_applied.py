"""An initialisation method that nothing calls.

## What it finds
A module class with a method such as `_init_weights` that nothing in the file refers to, while another class of the file
calls its own method of that name when it is constructed.

## Why it matters
The layers keep torch's default initialisation, whatever the method says. Nothing is raised, and the model trains from
another start than its siblings and than its author believes.

## Example
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self._init_weights()

        def _init_weights(self):
            nn.init.xavier_uniform_(self.proj.weight)

        def forward(self, x):
            return self.proj(x)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def _init_weights(self):
            nn.init.xavier_uniform_(self.proj.weight)

        def forward(self, x):
            return self.proj(x)

## Use instead
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self._init_weights()

        def _init_weights(self):
            nn.init.xavier_uniform_(self.proj.weight)

        def forward(self, x):
            return self.proj(x)

## When to ignore it
Where other files call the method on objects of this class.

## References
- https://pytorch.org/docs/stable/nn.init.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import parameters, repeatable
from auditor.fix.edit import Edit, insert_after
from auditor.rule import Category, Rule, span
from auditor.static.classes import Function, ModuleClass
from auditor.static.facts.initialisers import write_of
from auditor.static.source import Source
from auditor.static.tree import walk_scope

rule = Rule(
    __name__,
    code="INI011",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="initialisation methods that nothing calls, unlike those of sibling classes",
    triggers=("def _init", "def init", "def _reset", "def reset", "def weight_init", "def weights_init"),
)
METHOD = r"_?(init|initiali[sz]e)_?(weights?|params|parameters)_?|_?reset_?(weights?|params|parameters)|weights?_init"


@rule.static
def forgotten(source: Source) -> Iterator[Finding]:
    """Methods of that kind without a caller, next to ones that have one."""
    for facts in source.module_classes:
        for name, method in facts.methods.items():
            if not re.fullmatch(METHOD, name) or not _is_plain(source, facts, method):
                continue
            siblings = [other for other in source.module_classes if other is not facts and _calls_its_own(other, name)]
            if siblings and not _is_called(source, facts, name):
                sibling = siblings[0].methods[name]
                yield rule.finding(
                    method,
                    f"nothing calls `{facts.name}.{name}`, although `{siblings[0].name}` calls its own:"
                    " the layers keep torch's default weights",
                    notes=[Note(span(sibling), f"`{siblings[0].name}` calls this one when it is constructed")],
                )


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


@rule.fix(
    "call it at the end of the constructor",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
)
def call_it(source: Source, finding: Finding) -> Sequence[Edit]:
    method = source.node_at(finding.location, ast.FunctionDef)
    place = source.class_of(method) if method is not None else None
    facts = source.module_class(place) if place is not None else None
    start = facts.methods.get("__init__") if facts is not None else None
    if start is None or not isinstance(method, ast.FunctionDef) or isinstance(start.body[-1], (ast.Return, ast.Raise)):
        return ()
    return [insert_after(start.body[-1], f"self.{method.name}()")]
