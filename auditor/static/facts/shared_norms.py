"""BatchNorms that one run of a forward calls behind several weight layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.static.flow import Flow, Op
from auditor.static.layers import BATCH_NORMS, WEIGHTED

if TYPE_CHECKING:
    from auditor.static.source import Source


def places(source: Source) -> Iterator[tuple[ast.Call, list[ast.Call]]]:
    """Each such norm's construction, with its calls that may follow each other, each behind a layer of its own."""
    for _, flow in source.flows_meeting(source.calls_to(*BATCH_NORMS)):
        for norm in dict.fromkeys(op.layer for op in flow.layer_ops() if op.layer_kind in BATCH_NORMS):
            calls = _places(flow, norm) if norm is not None else []
            if norm is not None and len(calls) > 1:
                yield norm, calls


def _places(flow: Flow, norm: ast.Call) -> list[ast.Call]:
    found: list[Op] = []
    for op in flow.layer_ops():
        before = op.only_producer()
        if op.layer is not norm or before is None or before.layer is None or before.layer_kind not in WEIGHTED:
            continue
        known = any(other.only_producer().layer is before.layer for other in found if other.only_producer())  # type: ignore[union-attr]
        if not known and all(_follows(other, op) for other in found):
            found.append(op)
    return [op.node for op in found if isinstance(op.node, ast.Call)]


def _follows(first: Op, then: Op) -> bool:
    """Whether the input of `then` is computed from the output of `first`, so that both happen in one run."""
    todo, seen = [then], {then}
    while todo:
        op = todo.pop()
        if op is first:
            return True
        todo += [producer for producer in op.producers if producer not in seen]
        seen |= op.producers
    return False
