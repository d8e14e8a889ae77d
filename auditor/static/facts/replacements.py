"""What to write in place of a BatchNorm so that every sample is normalised by itself."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from auditor.fix.edit import Edit, replace
from auditor.static.facts.batches import whole_number
from auditor.static.facts.spelling import spelled
from auditor.static.flow import Op, children
from auditor.static.layers import ACTIVATIONS, CONVS, DROPOUTS, LINEARS, NN
from auditor.static.source import HIDDEN

if TYPE_CHECKING:
    from auditor.static.source import Source

_KEPT = ("device", "dtype")


def without_batch(source: Source, norm: ast.Call, group_count: Callable[[int], int]) -> list[Edit]:
    """The edits that make a BatchNorm a GroupNorm, or a LayerNorm behind a linear layer; affine and ε are kept.

    Empty where the arguments, or what it normalises, cannot be known. `group_count`: groups for a number of channels;
    a number that the file does not fix gets one group, which is always valid.
    """
    kind = source.layer_kind(norm).removeprefix(NN)
    channels = source.argument(norm, "num_features", 0)
    epsilon, affine = source.argument(norm, "eps", 1), source.argument(norm, "affine", 3)
    if not isinstance(channels, ast.expr) or HIDDEN in (epsilon, affine):
        return []
    behind = set(_weighted_before(source, norm)) if kind == "BatchNorm1d" else {"Conv"}
    if behind not in ({"Linear"}, {"Conv"}):
        return []
    layered = behind == {"Linear"}
    where = source.function_of(norm) or norm
    name, edits = spelled(source, NN + ("LayerNorm" if layered else "GroupNorm"), where)
    size = _code(source, channels)
    count = whole_number(source, channels)
    arguments = [size] if layered else [str(group_count(count) if count else 1), size]
    if isinstance(epsilon, ast.expr):
        arguments.append(f"eps={_code(source, epsilon)}")
    if isinstance(affine, ast.expr):
        arguments.append(f"{'elementwise_affine' if layered else 'affine'}={_code(source, affine)}")
    arguments += [f"{item.arg}={_code(source, item.value)}" for item in norm.keywords if item.arg in _KEPT]
    return [replace(norm, f"{name}({', '.join(arguments)})"), *edits]


def _code(source: Source, node: ast.expr) -> str:
    return ast.get_source_segment(source.text, node) or ast.unparse(node)


def _weighted_before(source: Source, norm: ast.Call) -> Iterator[str]:
    """What gives the norm its input, past activations and dropout: `Linear`, `Conv`, or "" for anything else."""
    for facts in source.module_classes:
        flow = source.flow(facts)
        for op in flow.layer_ops() if flow is not None else ():
            if op.layer is norm:
                yield _source_of(op)
    for call in source.calls_to("torch.nn.Sequential"):
        chain = children(source, call)
        if norm in chain:
            before = [source.layer_kind(layer) for layer in chain[: chain.index(norm)]]
            while before and before[-1] in _PASSING:
                before.pop()
            if before:
                yield _family(before[-1])


_PASSING = ACTIVATIONS | frozenset(DROPOUTS)


def _source_of(op: Op) -> str:
    for _ in range(8):
        producer = op.only_producer()
        if producer is None:
            return ""
        if producer.layer_kind not in _PASSING and not (producer.kind == "call" and len(producer.inputs) == 1):
            return _family(producer.layer_kind)
        op = producer
    return ""


def _family(kind: str) -> str:
    return "Linear" if kind in LINEARS else "Conv" if kind in CONVS else ""
