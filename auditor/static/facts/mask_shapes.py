"""For what a random mask draws one entry: for a batch, for each sample, for each element."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.facts.masks import Mask

if TYPE_CHECKING:
    from auditor.static.source import Source


def drawn_per(source: Source, mask: Mask) -> str:
    """ "batch" for one number, "element" for the shape of the data, "" for anything else."""
    data = data_name(mask.data)
    if source.is_any(mask.draw.func, "torch.rand_like"):
        return "element" if mask.draw.args and data and data_name(mask.draw.args[0]) == data else ""
    if not source.is_any(mask.draw.func, "torch.rand"):
        return ""
    sizes = mask.draw.args
    if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
        sizes = sizes[0].elts
        if not sizes:
            return "batch"
    if sizes and all(isinstance(size, ast.Constant) and size.value == 1 for size in sizes):
        return "batch"
    whole = {f"{data}.shape", f"{data}.size()", f"*{data}.shape", f"*{data}.size()"}
    return "element" if data and len(sizes) == 1 and ast.unparse(sizes[0]) in whole else ""


def data_name(node: ast.expr) -> str:
    """The variable that holds the data, past a division by the rate."""
    match node:
        case ast.BinOp(left=left, op=ast.Div()):
            return data_name(left)
        case ast.Call(func=ast.Attribute(value=value, attr="div" | "div_")):
            return data_name(value)
        case ast.Name(id=name):
            return name
    return ""
