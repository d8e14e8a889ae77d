"""Statements whose value nobody keeps: what they seem meant for."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.static.source import Source


def sized_like(argument: ast.expr) -> ast.expr | None:
    """`w` of `w`, `w.size()` and `w.shape`."""
    match argument:
        case (
            ast.Call(func=ast.Attribute(value=tensor, attr="size"), args=[]) | ast.Attribute(value=tensor, attr="shape")
        ):
            return tensor
        case ast.Attribute() | ast.Name():
            return argument
    return None


def is_weight(source: Source, tensor: ast.expr) -> bool:
    """A `weight` or `bias`, a loop variable over parameters, or the `.data` or `.grad` of one."""
    match tensor:
        case ast.Attribute(value=inner, attr="data" | "grad"):
            return is_weight(source, inner)
        case ast.Attribute(attr=name):
            return re.fullmatch(r"(in_proj_|out_proj_)?(weight|bias)(_[ih]h_l\d+)?", name) is not None
        case ast.Name(id=name):
            loops = [above for above in source.tree.ancestors(tensor) if isinstance(above, ast.For)]
            iterated = [ast.unparse(loop.iter) for loop in loops if name in _last_names(loop.target)]
            return any(re.search(r"\bparameters\(\)$|named_parameters\(\)$", text) for text in iterated)
    return False


def _last_names(target: ast.expr) -> set[str]:
    last = target.elts[-1] if isinstance(target, ast.Tuple) and target.elts else target
    return {last.id} if isinstance(last, ast.Name) else set()


def expects_error(source: Source, call: ast.Call) -> bool:
    """Whether a test or a `try` waits for the call to fail."""
    for above in source.tree.ancestors(call):
        if isinstance(above, ast.Try):
            return True
        if isinstance(above, ast.With):
            contexts = " ".join(ast.unparse(item.context_expr) for item in above.items)
            if re.search(r"(?i)raises|warns|suppress", contexts):
                return True
    return False
