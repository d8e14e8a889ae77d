"""Parameters that the model does not know.

## What it finds
`nn.Parameter`s that a module keeps in a plain list, tuple or dict and does nothing else with that could register them;
and an `nn.Parameter` made in `forward`, used there and forgotten.

## Why it matters
`parameters()` does not list them, so no optimiser trains them; `state_dict()` does not save them; `to(device)` does not
move them. One made in `forward` is a fresh leaf each time: nothing is learned, and gradients stop at it.

## Example
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = [nn.Parameter(torch.ones(8)) for _ in range(4)]

## Use instead
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(8)) for _ in range(4)])

## When to ignore it
A link that is to stay weak, such as a parameter shared with another model. A list of one is not reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.ParameterList.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, registered
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.classes import ModuleClass
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="REG003",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="parameters that the model does not know: never trained, never saved",
    triggers=("Parameter(",),
)

KEPT = "the parameters in `self.{}` are not registered with the model: they are neither trained nor saved"
MADE = "a parameter made in `forward` is new at every call: it is never trained, and gradients stop at it"
_READS = frozenset({"len", "zip", "enumerate", "reversed", "range"})
_OWN_CARE = frozenset({"parameters", "named_parameters", "state_dict", "_apply", "to", "cuda"})
_REGISTERS = frozenset({"register_parameter", "setattr", "__setattr__", "ParameterList", "ParameterDict", "add_module"})


@rule.static
def not_registered(source: Source) -> Iterator[Finding]:
    """Parameters in a container that is only read; parameters that `forward` makes for itself."""
    for facts in source.module_classes:
        for name, assigned in facts.own_attributes.items():
            alone = len(assigned) == 1 and isinstance(assigned[0].statement, (ast.Assign, ast.AnnAssign))
            if not alone or not _holds_parameters(source, assigned[0].value) or _registers_itself(facts):
                continue
            if _only_read(source, facts, name):
                yield rule.finding(assigned[0].statement, KEPT.format(name))
        forward = facts.methods.get("forward")
        for call in walk(forward) if forward is not None else ():
            if isinstance(call, ast.Call) and _is_parameter(source, call) and _is_forgotten(source, call):
                yield rule.finding(call, MADE)


def _is_parameter(source: Source, call: ast.expr) -> bool:
    if not isinstance(call, ast.Call) or not source.is_any(
        call.func, "torch.nn.Parameter", "torch.nn.parameter.Parameter"
    ):
        return False
    trained = source.argument(call, "requires_grad", 1)
    return trained is None or (isinstance(trained, ast.Constant) and trained.value is True)


def _holds_parameters(source: Source, value: ast.expr) -> bool:
    match value:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Dict(values=elements):
            return len(elements) > 1 and all(_is_parameter(source, element) for element in elements)
        case ast.ListComp(elt=element) | ast.DictComp(value=element):
            return _is_parameter(source, element)
    return False


def _registers_itself(facts: ModuleClass) -> bool:
    """Whether the class looks after what torch does not see, by methods of its own or by registering by name."""
    named = {getattr(node, "attr", getattr(node, "id", "")) for node in walk(facts.node)}
    return not _OWN_CARE.isdisjoint(facts.methods) or not _REGISTERS.isdisjoint(named)


def _only_read(source: Source, facts: ModuleClass, name: str) -> bool:
    """Whether `self.name` is only indexed and looped over, so that nothing else can get hold of the parameters."""
    for node in source.tree.attributes(name):
        if not isinstance(node.ctx, ast.Load):
            continue
        parent = source.tree.parent(node)
        if isinstance(parent, ast.Attribute) and parent.attr in ("items", "values", "keys"):
            continue
        if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in _READS:
            continue
        if not isinstance(parent, (ast.Subscript, ast.For, ast.comprehension)):
            return False
    return True


def _is_forgotten(source: Source, call: ast.Call) -> bool:
    """Whether the result is only used inside the forward: not stored on anything, not returned."""
    statement = source.statement_of(call)
    if isinstance(statement, (ast.Return, ast.AugAssign)):
        return False
    if not isinstance(statement, ast.Assign):
        return True
    names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if len(names) < len(statement.targets):
        return False
    function = source.function_of(call)
    for node in walk(function) if function is not None else ():
        used = isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load)
        around = source.statement_of(node) if used else None
        if isinstance(around, ast.Return) and isinstance(source.tree.parent(node), (ast.Return, ast.Tuple, ast.Dict)):
            return False
        stores = isinstance(around, ast.Assign) and any(not isinstance(item, ast.Name) for item in around.targets)
        if stores or (isinstance(around, ast.Expr) and isinstance(around.value, ast.Call)):
            return False
    return True


@rule.fix(
    "keep them in an `nn.ParameterList`",
    applicability="unsafe",  # adds parameters to checkpoints and optimisers
    keeps=[parameters(added=True), outputs(mode="train")],
    gains=[registered()],
)
def register(source: Source, finding: Finding) -> list[Edit] | None:
    """A `ParameterList` around a list that is assigned directly."""
    statement = source.node_at(finding.location, ast.Assign)
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, (ast.List, ast.ListComp)):
        return None
    written = ast.get_source_segment(source.text, statement.value)
    name, imports = spelled(source, "torch.nn.ParameterList", source.function_of(statement) or source.tree.root)
    indented = (written or "").replace("\n" + " " * statement.col_offset, "\n")
    return [replace(statement.value, f"{name}({indented})"), *imports] if written else None
