"""Train mode comes back while an evaluation is still going on.

## What it finds
`model.train()` inside a loop that only evaluates, where `model.eval()` stands before the loop: from the second round on
the model is in train mode.

## Why it matters
Only the first batch is evaluated as meant. All others go through active dropout, and BatchNorm normalises each by its
own statistics and learns from the data it is tested on. The figures are wrong, and so is the model afterwards. Most
often the line is indented one step too far.

## Example
    def evaluate(model, loader):
        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum().item()
                model.train()
        return correct

## Use instead
    def evaluate(model, loader):
        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum().item()
        model.train()
        return correct

## When to ignore it
Where only the first round is to be evaluated.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_after, remove
from auditor.rule import Category, Rule, span
from auditor.static.modes.evaluations import turned_back
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="MOD013",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="train mode comes back during an evaluation",
    triggers=(".eval(", ".train(False"),
)


@rule.static
def evaluated_once(source: Source) -> Iterator[Finding]:
    """A `train()` in a loop that evaluates."""
    for found in turned_back(source):
        message = f"`{found.receiver}` is back in train mode from the second round of this evaluation on"
        notes = [Note(span(setting.node), "put in eval mode here") for setting in found.settings if setting.node]
        notes += [Note(span(found.loop), "the loop that evaluates"), Note(span(found.site), "evaluated here")]
        yield rule.finding(found.train, message, notes=notes)


@rule.fix(
    "switch back after the loop",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def switch_back_later(source: Source, finding: Finding) -> list[Edit] | None:
    """The statement moved behind the loop; only where it is a statement of its own that nothing can leave before."""
    train = source.node_at(finding.location, ast.Call)
    for found in turned_back(source):
        if found.train is train:
            statement = source.statement_of(found.train)
            leaves = any(isinstance(node, (ast.Return, ast.Yield)) for node in walk(found.loop))
            if isinstance(statement, ast.Expr) and statement.value is train and not leaves:
                return [remove(statement), insert_after(found.loop, ast.unparse(statement))]
    return None
