"""Parameters that a module makes and torch does not get to know: in a plain container, or new in each forward."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

_READS = frozenset({"len", "zip", "enumerate", "reversed", "range"})
_OWN_CARE = frozenset({"parameters", "named_parameters", "state_dict", "_apply", "to", "cuda"})
_REGISTERS = frozenset({"register_parameter", "setattr", "__setattr__", "ParameterList", "ParameterDict", "add_module"})


def is_parameter(source: Source, call: ast.expr) -> bool:
    """Whether `call` makes an `nn.Parameter` that is to be trained."""
    if not isinstance(call, ast.Call) or not source.is_any(
        call.func, "torch.nn.Parameter", "torch.nn.parameter.Parameter"
    ):
        return False
    trained = source.argument(call, "requires_grad", 1)
    return trained is None or (isinstance(trained, ast.Constant) and trained.value is True)


def holds_parameters(source: Source, value: ast.expr) -> bool:
    """Whether `value` is a plain container of several parameters and nothing else."""
    match value:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Dict(values=elements):
            return len(elements) > 1 and all(is_parameter(source, element) for element in elements)
        case ast.ListComp(elt=element) | ast.DictComp(value=element):
            return is_parameter(source, element)
    return False


def registers_itself(facts: ModuleClass) -> bool:
    """Whether the class looks after what torch does not see, by methods of its own or by registering by name."""
    named = {getattr(node, "attr", getattr(node, "id", "")) for node in walk(facts.node)}
    return not _OWN_CARE.isdisjoint(facts.methods) or not _REGISTERS.isdisjoint(named)


def only_read(source: Source, facts: ModuleClass, name: str) -> bool:
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


def is_forgotten(source: Source, call: ast.Call) -> bool:
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
