"""What to write in place of a BatchNorm so that every sample is normalised by itself."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from auditor.fix.edit import Edit, replace
from auditor.rule import span
from auditor.static.facts.batches import training_calls, whole_number
from auditor.static.facts.spelling import spelled
from auditor.static.flow import Op, children
from auditor.static.layers import ACTIVATIONS, BATCH_NORMS, CONVS, DROPOUTS, LINEARS, NN
from auditor.static.source import HIDDEN

if TYPE_CHECKING:
    from auditor.finding import Location
    from auditor.static.source import Source

_KEPT = ("device", "dtype")


def norms_without_batch(source: Source, location: Location, group_count: Callable[[int], int]) -> list[Edit]:
    """The edits for every BatchNorm of the model that is trained by the loader or call at `location`, or else for those
    that are built there; none if one of them cannot be replaced."""
    norms = tuple(call for call in source.calls_to(*BATCH_NORMS) if call.lineno == location.row)
    for found in training_calls(source):
        if span(found.loader or found.call, location.path) == location:
            norms = found.norms
    edits = [without_batch(source, norm, group_count) for norm in norms]
    return [edit for group in edits for edit in group] if all(edits) else []


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
    behind = set(weighted_before(source, norm)) if kind == "BatchNorm1d" else {"Conv"}
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


def over_axis_one(source: Source, norm: ast.Call) -> Edit | None:
    """The edit that calls a norm of the last axis, which forward calls once by itself, on axis 1 instead."""
    use = _only_use(source, norm)
    if use is None or source.node_at(span(use), ast.Call) is norm:
        return None
    given = _code(source, use.args[0])
    given = given if isinstance(use.args[0], (ast.Name, ast.Attribute, ast.Call, ast.Subscript)) else f"({given})"
    return replace(use, f"{_code(source, use.func)}({given}.movedim(1, -1)).movedim(-1, 1)")


def _only_use(source: Source, norm: ast.Call) -> ast.Call | None:
    """The one call `self.norm(x)` of a layer in the forwards of the file."""
    flows = [flow for facts in source.module_classes if (flow := source.flow(facts)) is not None]
    uses = [op.node for flow in flows for op in flow.layer_ops() if op.layer is norm]
    alone = len(uses) == 1 and isinstance(uses[0], ast.Call) and len(uses[0].args) == 1
    attribute = uses[0].func if alone and isinstance(uses[0], ast.Call) else None
    mine = isinstance(attribute, ast.Attribute) and isinstance(source.statement_of(norm), (ast.Assign, ast.AnnAssign))
    direct = mine and getattr(source.statement_of(norm), "value", None) is norm
    return uses[0] if direct and isinstance(uses[0], ast.Call) else None


def layer_norm_over_features(source: Source, norm: ast.Call) -> list[Edit] | None:
    """The edits that make a BatchNorm1d over (N, C, L), called once, a LayerNorm over C; affine and ε are kept."""
    use = _only_use(source, norm)
    features, epsilon = source.argument(norm, "num_features", 0), source.argument(norm, "eps", 1)
    affine = source.argument(norm, "affine", 3)
    if use is None or not isinstance(features, ast.expr):
        return None
    name, imports = spelled(source, NN + "LayerNorm", source.function_of(norm) or norm)
    arguments = [_code(source, features)]
    arguments += [f"eps={_code(source, epsilon)}"] if isinstance(epsilon, ast.expr) else []
    arguments += [f"elementwise_affine={_code(source, affine)}"] if isinstance(affine, ast.expr) else []
    given, result = _transposed(source, use.args[0]), source.tree.parent(source.tree.parent(use) or use)
    call = f"{_code(source, use.func)}({given})"
    whole = replace(use, f"{call}.transpose(1, 2)")
    if isinstance(result, ast.Call) and _is_transposition(result):
        whole = replace(result, call)
    return [replace(norm, f"{name}({', '.join(arguments)})"), whole, *imports]


def _is_transposition(node: ast.expr) -> bool:
    return ast.unparse(node).endswith((".transpose(1, 2)", ".transpose(2, 1)", ".mT", ".permute(0, 2, 1)"))


def _transposed(source: Source, given: ast.expr) -> str:
    """An expression with its last two axes exchanged: what it is a transposition of, if it is one."""
    if _is_transposition(given):
        inner = given.func.value if isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute) else given
        return _code(source, inner.value if isinstance(inner, ast.Attribute) and inner.attr == "mT" else inner)
    simple = isinstance(given, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    return f"{_code(source, given) if simple else f'({_code(source, given)})'}.transpose(1, 2)"


def _code(source: Source, node: ast.expr) -> str:
    return ast.get_source_segment(source.text, node) or ast.unparse(node)


def weighted_before(source: Source, norm: ast.Call) -> Iterator[str]:
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
