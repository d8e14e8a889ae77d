"""Devices written into what a module computes: `.cuda()`, `device="cuda"` in its forward."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.plain_tensors import run_by_forward
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import Function, ModuleClass
    from auditor.static.source import Source

_CUDA = re.compile(r"cuda(:\d+)?$")
_TYPES = re.compile(r"torch\.cuda\.(\w*Tensor|Generator)$")
_ASKS = re.compile(
    r"(?i)cuda|gpu|device|npu|cpu|is_available|\bdist|distributed|nccl"
)  # what a condition on the device speaks of


class DeviceLiteral(NamedTuple):
    """A call that puts something on CUDA whatever device the module is on; `written`: what says so."""

    call: ast.Call
    written: str
    method: Function


def device_literals(source: Source, facts: ModuleClass) -> Iterator[DeviceLiteral]:
    """Those in the forward of a class and in the methods of its own that it calls, in document order, unless something
    around them looks at the device first."""
    for method in run_by_forward(facts):
        if any(isinstance(node, ast.Assert) and _ASKS.search(ast.unparse(node.test)) for node in walk(method)):
            continue
        for node in walk(method):
            if isinstance(node, ast.Call):
                written = _literal(source, node)
                if written and not _asked_before(source, node, method) and not _is_for_cuda(facts):
                    yield DeviceLiteral(node, written, method)


_CUDA_ALONE = frozenset({"current_device", "DataParallel", "DistributedDataParallel"})


def _is_for_cuda(facts: ModuleClass) -> bool:
    """Whether a class is about CUDA as a whole: it spreads a model over GPUs, or asks for the current one."""
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in walk(facts.node)}
    return not _CUDA_ALONE.isdisjoint(names)


def _literal(source: Source, call: ast.Call) -> str:
    names = source.resolve(call.func)
    if names and all(_TYPES.match(name) for name in names):
        return ast.unparse(call.func)
    if names == {"torch.device"} and call.args and _is_cuda(source, call.args[0]):
        return ast.unparse(call)
    if isinstance(call.func, ast.Attribute) and not names:
        first = call.args[0] if call.args else None
        if call.func.attr == "cuda" and not call.keywords and (first is None or isinstance(first, ast.Constant)):
            return ast.unparse(call)[len(ast.unparse(call.func.value)) :]
        if call.func.attr == "to" and first is not None and _is_cuda(source, first):
            return f'.to("{source.constant(first)}")'
    makes_tensor = all(name.startswith("torch.") for name in names) and bool(names)
    method = isinstance(call.func, ast.Attribute) and call.func.attr.startswith(("to", "new_", "cuda"))
    device = source.argument(call, "device") if makes_tensor or method else None
    if isinstance(device, ast.expr) and _is_cuda(source, device):
        return f'device="{source.constant(device)}"'
    return ""


def _is_cuda(source: Source, expression: ast.expr) -> bool:
    value = source.constant(expression)
    return isinstance(value, str) and bool(_CUDA.match(value))


def _asked_before(source: Source, node: ast.AST, method: Function) -> bool:
    """Whether a condition around `node`, or one that left the method before it, looks at the device."""
    below = node
    for above in source.tree.ancestors(node):
        branch = isinstance(above, (ast.If, ast.IfExp, ast.While)) and below is not above.test
        if branch and _ASKS.search(ast.unparse(above.test)):  # type: ignore[attr-defined]
            return True
        if isinstance(above, (ast.ExceptHandler, ast.Try)):
            return True
        if above is method:
            break
        below = above
    return any(
        isinstance(statement, ast.If)
        and statement.lineno < node.lineno  # type: ignore[attr-defined]
        and isinstance(statement.body[-1], (ast.Return, ast.Raise))
        and bool(_ASKS.search(ast.unparse(statement.test)))
        for statement in method.body
    )
