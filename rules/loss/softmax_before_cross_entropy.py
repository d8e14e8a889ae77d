"""Softmax applied to what goes into a cross-entropy.

## What it finds
A value that is a softmax on every path and reaches `F.cross_entropy` or an `nn.CrossEntropyLoss`: within one function,
or across modules of one file, where a model whose forward ends in softmax is trained with that loss. On the running
model: the same in a forward that computes its own loss.

## Why it matters
`cross_entropy` takes logits and applies log-softmax itself. Given probabilities it squashes them a second time: with
ten classes the loss of a perfect prediction is 1.46 instead of 0, gradients are small, and training is slow or stops
early, without any error. Where this was found in published code, it was a bug each time.

## Example
    def step(model, x, target):
        probabilities = F.softmax(model(x), dim=1)
        return F.cross_entropy(probabilities, target)

## Use instead
    def step(model, x, target):
        return F.cross_entropy(model(x), target)

## When to ignore it
When a soft bound on the loss is wanted (a form of label smoothing), and said so. Log-softmax before cross-entropy
changes nothing and is not reported.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import loss_floor, parameters, ranking, repeatable
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.endings import Ending, applications
from auditor.static.facts.values import RESHAPING, held, producers
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

rule = Rule(
    __name__,
    code="LOS001",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="softmax before `cross_entropy`, which applies it itself",
    triggers=("cross_entropy", "CrossEntropyLoss"),
)

FUNCTION = "torch.nn.functional.cross_entropy"
SOFTMAX = Ending(
    functions=frozenset({"torch.softmax", "torch.nn.functional.softmax", "torch.special.softmax"}),
    layers=frozenset({"torch.nn.Softmax", "torch.nn.Softmax2d"}),
)
MESSAGE = "`cross_entropy` applies log-softmax itself: fed with probabilities, it stays far from 0 and learns slowly"


@rule.static
def squashed_twice(source: Source) -> Iterator[Finding]:
    """A softmax on every path to the input of a cross-entropy; reported once, with all the losses it reaches."""
    reached: dict[ast.Call, list[Note]] = {}
    for loss in _losses(source):
        given = loss.args[0] if loss.args else source.argument(loss, "input")
        for softmax in _softmaxes(source, given) if isinstance(given, ast.expr) else []:
            reached.setdefault(softmax, []).append(Note(span(loss), "the loss that gets its result"))
    for softmax, notes in reached.items():
        yield rule.finding(softmax, MESSAGE, notes=notes)


def _losses(source: Source) -> Iterator[ast.Call]:
    """Calls of a cross-entropy: the function, or an object that surely is nothing else."""
    yield from source.calls_to(FUNCTION)
    if not source.calls_named("CrossEntropyLoss"):
        return
    for call in source.tree.all(ast.Call):
        if len(call.args) >= 2 and not source.resolve(call.func):
            made = held(source, call.func)
            if made and all(source.is_any(item.func, "torch.nn.CrossEntropyLoss") for item in made):
                yield call


def _softmaxes(source: Source, given: ast.expr) -> list[ast.Call]:
    """Where softmax is applied to what `given` holds; empty unless it surely is."""
    parts = [applications(source, call, SOFTMAX) for call in producers(source, given)]
    return [softmax for part in parts for softmax in part] if all(parts) else []


@rule.dynamic
def squashed_in_forward(capture: Capture) -> Iterator[Finding]:
    """A chain softmax → cross_entropy in the recorded forward, with nothing but rearrangements in between."""
    mode = "train" if capture.nodes("train") else "eval"
    for loss in capture.calls_to(mode, FUNCTION):
        node: NodeFacts | None = loss.inputs[0] if loss.inputs else None
        while node is not None and node.operation in RESHAPING | {"getitem"} and node.inputs:
            node = node.inputs[0]
        if node is not None and node.operation == "softmax":
            layer = capture.modules[node.module]
            in_chain = layer.parent and capture.modules[layer.parent].kind == "torch.nn.Sequential"
            where = layer if in_chain and layer.kind in SOFTMAX.layers else node
            yield rule.finding(where, MESSAGE, modules=[node.module], notes=[Note(loss.location, "the loss")])


@rule.fix(
    "remove the softmax",
    applicability="unsafe",
    keeps=[parameters(), ranking(mode="eval")],
    gains=[loss_floor(mode="eval"), repeatable(mode="eval", idempotent=True)],
)
def hand_over_logits(source: Source, finding: Finding) -> Edit | None:
    """The softmax's input in its place; an `nn.Identity` for a layer of a Sequential, so that no layer changes name."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    if source.layer_kind(call) in SOFTMAX.layers:
        return replace(call, f"{ast.unparse(call.func).rpartition('.')[0] or 'torch.nn'}.Identity()")
    logits = _logits(source, call)
    text = ast.get_source_segment(source.text, logits) if logits is not None else None
    if logits is None or text is None:
        return None
    statement = source.statement_of(call)
    losses = [source.node_at(note.location, ast.Call) for note in finding.notes]
    if isinstance(statement, ast.Assign) and statement.value is call and _is_needed(source, statement, losses):
        return None
    bare = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)
    alone = isinstance(source.tree.parent(call), (ast.stmt, ast.keyword)) or isinstance(logits, bare)
    return replace(call, text if alone else f"({text})")


def _logits(source: Source, call: ast.Call) -> ast.expr | None:
    """What a call applies softmax to: its argument, or the tensor whose method it is."""
    if isinstance(call.func, ast.Attribute) and not source.resolve(call.func) and not held(source, call.func):
        return call.func.value
    given = call.args[0] if call.args else source.argument(call, "input")
    return given if isinstance(given, ast.expr) else None


def _is_needed(source: Source, statement: ast.Assign, losses: Sequence[ast.AST | None]) -> bool:
    """Whether the probabilities that a training function assigns are used for more than its loss."""
    function = source.function_of(statement)
    inside = [loss for loss in losses if isinstance(loss, ast.Call) and source.function_of(loss) is function]
    given = {loss.args[0] for loss in inside if loss.args}
    names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
    loads = [use for name in names for use in source.tree.names(name) if isinstance(use.ctx, ast.Load)]
    after = [name for name in loads if source.function_of(name) is function and name.lineno > statement.lineno]
    return bool(inside) and any(name not in given for name in after)
