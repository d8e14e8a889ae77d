"""A running sum of losses that keeps every round's graph.

## What it finds
The very tensor that was differentiated in a round of a training loop is added, graph and all, to a variable that lives
on across rounds (`total += loss`), and the sum is never differentiated itself.

## Why it matters
The sum requires grad, so it refers to the graph of every round so far. Memory grows with each batch until the end of
the epoch, or until the device has none left.

## Example
    def train(model, loader, optimizer):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss
        return total / len(loader)

## Use instead
    def train(model, loader, optimizer):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total / len(loader)

## When to ignore it
For a handful of rounds, where the memory does not matter.

## References
- https://pytorch.org/docs/stable/notes/faq.html#my-model-reports-cuda-runtime-error-2-out-of-memory
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.training_loops import LOOPS, Loop
from auditor.static.modes.paths import mode_paths
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="TRN003",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="a running sum of losses keeps the graph of every round",
    triggers=(".backward(",),
)

MESSAGE = "`{}` adds `{}` with its graph: memory grows with every round of the loop"


@rule.static
def sums_with_graph(source: Source) -> Iterator[Finding]:
    """`total += loss` in the round in which `loss.backward()` ran, `total` started outside of the loop."""
    for call in source.calls_named("backward"):
        loss = call.func.value if isinstance(call.func, ast.Attribute) else None
        loop = next((above for above in source.tree.ancestors(call) if isinstance(above, LOOPS)), None)
        if not isinstance(loss, ast.Name) or loop is None or source.function_of(loop) is not source.function_of(call):
            continue
        for statement in _sums(source, loop, loss.id):
            if statement.lineno > call.lineno and _is_same(source, loop, loss, statement):
                message = MESSAGE.format(ast.unparse(_target(statement)), loss.id)
                yield rule.finding(statement, message, notes=[Note(span(call), "differentiated here")])


def _target(statement: ast.stmt) -> ast.expr:
    if isinstance(statement, ast.AugAssign):
        return statement.target
    assert isinstance(statement, ast.Assign)
    return statement.targets[0]


def _sums(source: Source, loop: Loop, loss: str) -> Iterator[ast.stmt]:
    """The statements `total += loss` and `total = total + loss` of the loop, `loss` itself or a multiple of it."""
    for node in walk(loop):
        match node:
            case ast.AugAssign(op=ast.Add(), value=value) if _is_multiple(value, loss):
                yield node
            case ast.Assign(targets=[target], value=ast.BinOp(op=ast.Add(), left=left, right=right)):
                if ast.unparse(target) == ast.unparse(left) and _is_multiple(right, loss):
                    yield node


def _is_multiple(value: ast.expr, loss: str) -> bool:
    match value:
        case ast.Name(id=name):
            return name == loss
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
            return _is_multiple(left, loss) or (isinstance(value.op, ast.Mult) and _is_multiple(right, loss))
    return False


def _is_same(source: Source, loop: Loop, loss: ast.Name, statement: ast.stmt) -> bool:
    """Whether the statement adds the differentiated tensor to something that lives on and is never differentiated."""
    total = ast.unparse(_target(statement))
    if next((above for above in source.tree.ancestors(statement) if isinstance(above, LOOPS)), None) is not loop:
        return False
    inside = list(walk(loop))
    stores = [node for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    rebound = [node for node in stores if node.id == loss.id and loss.lineno < node.lineno <= statement.lineno]
    if rebound or not any(node.id == loss.id for node in stores):
        return False
    started = [
        node
        for node in walk(source.function_of(loop) or source.tree.root)
        if isinstance(node, ast.Assign)
        and total in {ast.unparse(target) for target in node.targets}
        and node is not statement
    ]
    if not started or any(node in inside for node in started) or not all(_is_number(node.value) for node in started):
        return False
    if mode_paths(source).purposes.gradient_free(statement) is not None:
        return False
    function = source.function_of(loop) or source.tree.root
    return not any(
        isinstance(node, ast.Attribute) and node.attr in _CUTS and ast.unparse(node.value) == total
        for node in walk(function)
    )


_CUTS = frozenset({"backward", "detach_", "data"})


def _is_number(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, (int, float))


@rule.fix(
    "detach the loss from its graph",
    applicability="safe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def detach(source: Source, finding: Finding) -> Edit | None:
    """`loss` → `loss.detach()`."""
    statement = source.node_at(finding.location, ast.AugAssign, ast.Assign)
    backward = source.node_at(finding.notes[0].location, ast.Call)
    if not isinstance(statement, (ast.AugAssign, ast.Assign)) or not isinstance(backward, ast.Call):
        return None
    loss = backward.func.value.id  # type: ignore[attr-defined]
    names = [node for node in walk(statement.value) if isinstance(node, ast.Name) and node.id == loss]
    return replace(names[0], f"{loss}.detach()") if len(names) == 1 else None
