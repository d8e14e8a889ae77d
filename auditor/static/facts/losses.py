"""Calls of a loss, what was applied last to the predictions they get, and how to hand over what it was applied to."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Note
from auditor.fix.edit import Edit, replace
from auditor.rule import span
from auditor.static.facts.endings import Ending, applications
from auditor.static.facts.values import held, producers

if TYPE_CHECKING:
    from auditor.static.source import Source


def loss_calls(source: Source, function: str, layer: str) -> Iterator[ast.Call]:
    """Calls of the loss `function`, and of objects that surely are nothing but the loss `layer` (dotted names)."""
    yield from source.calls_to(function)
    if not source.calls_named(layer.rpartition(".")[2]):
        return
    for call in source.tree.all(ast.Call):
        if len(call.args) >= 2 and not source.resolve(call.func):
            made = held(source, call.func)
            if made and all(source.is_any(item.func, layer) for item in made):
                yield call


def fed_with(source: Source, losses: Iterator[ast.Call], ending: Ending) -> dict[ast.Call, list[Note]]:
    """Where `ending` surely is what is applied last to the predictions of a loss, with the losses that each reaches."""
    reached: dict[ast.Call, list[Note]] = {}
    for loss in losses:
        given = loss.args[0] if loss.args else source.argument(loss, "input")
        made = producers(source, given) if isinstance(given, ast.expr) else []
        parts = [applications(source, call, ending) for call in made]
        for applied in [call for part in parts for call in part] if all(parts) else []:
            reached.setdefault(applied, []).append(Note(span(loss), "the loss that gets its result"))
    return reached


def operand(source: Source, call: ast.Call) -> ast.expr | None:
    """What a call like `F.softmax(x)`, `torch.sigmoid(x)`, `layer(x)` or `x.sigmoid()` is applied to."""
    if isinstance(call.func, ast.Attribute) and not source.resolve(call.func) and not held(source, call.func):
        return call.func.value
    given = call.args[0] if call.args else source.argument(call, "input")
    return given if isinstance(given, ast.expr) else None


def _used_otherwise(source: Source, call: ast.Call, notes: Sequence[Note]) -> bool:
    """Whether a training function assigns the result of `call` and uses it for more than the losses in `notes`."""
    statement = source.statement_of(call)
    if not isinstance(statement, ast.Assign) or statement.value is not call:
        return False
    losses = [source.node_at(note.location, ast.Call) for note in notes]
    function = source.function_of(statement)
    inside = [loss for loss in losses if isinstance(loss, ast.Call) and source.function_of(loss) is function]
    given = {loss.args[0] for loss in inside if loss.args}
    names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
    loads = [use for name in names for use in source.tree.names(name) if isinstance(use.ctx, ast.Load)]
    after = [name for name in loads if source.function_of(name) is function and name.lineno > statement.lineno]
    return bool(inside) and any(name not in given for name in after)


def _without(source: Source, call: ast.Call) -> str | None:
    """The code of what `call` is applied to, in parentheses where its place needs them."""
    inner = operand(source, call)
    text = ast.get_source_segment(source.text, inner) if inner is not None else None
    if inner is None or text is None:
        return None
    bare = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)
    alone = isinstance(source.tree.parent(call), (ast.stmt, ast.keyword)) or isinstance(inner, bare)
    return text if alone else f"({text})"


def handing_over(source: Source, call: ast.Call, ending: Ending, notes: Sequence[Note]) -> Edit | None:
    """The edit that takes `call`, which applies `ending` before the losses in `notes`, away: its operand in its place,
    or an `nn.Identity` for the construction of a layer, so that no layer of a Sequential changes its name."""
    if source.layer_kind(call) in ending.layers:
        return replace(call, f"{ast.unparse(call.func).rpartition('.')[0] or 'torch.nn'}.Identity()")
    text = _without(source, call)
    return replace(call, text) if text is not None and not _used_otherwise(source, call, notes) else None
