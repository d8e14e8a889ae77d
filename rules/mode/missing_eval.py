"""A model evaluated in train mode.

## What it finds
A model with layers that depend on the mode (Dropout, BatchNorm, stochastic depth, an own `if self.training`) that is
run for evaluation, prediction or export while it is in train mode for sure: it was just built, or `train()` was the
last call, and no function, caller, constructor or context manager on the way put it in eval mode.

## Why it matters
Dropout stays on and BatchNorm normalises with the statistics of the evaluation batch, and even updates its running
statistics from it. Figures are wrong, predictions depend on what else is in the batch, and no error is raised.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

        def forward(self, x):
            return self.net(x)

    def evaluate(model, loader):
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum().item()
        return correct

    def main(test_loader):
        model = Net()
        model.load_state_dict(torch.load("net.pt"))
        print(evaluate(model, test_loader))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

        def forward(self, x):
            return self.net(x)

    def evaluate(model, loader):
        correct = 0
        model.eval()
        with torch.no_grad():
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum().item()
        return correct

    def main(test_loader):
        model = Net()
        model.load_state_dict(torch.load("net.pt"))
        print(evaluate(model, test_loader))

## When to ignore it
Where randomness in evaluation is the purpose (Monte-Carlo dropout), or where batch statistics are wanted at test time.

## References
- https://pytorch.org/docs/stable/notes/autograd.html#evaluation-mode-nn-module-eval
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import evaluation, outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_after, insert_before
from auditor.rule import Category, Rule, span
from auditor.static.modes.paths import Evaluated, mode_paths
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="MOD001",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="model evaluated in train mode",
    triggers=("no_grad", "inference_mode", "set_grad_enabled", "jit.trace", "def eval", "def test", "def valid",
              "def predict", "def infer", ("import", "eval"), ("import", "valid"), ("import", "val_"),
              ("import", "test"), ("import", "predict"), ("import", "infer")),
)  # fmt: skip

LEAVING = (ast.Return, ast.Yield, ast.YieldFrom)


@rule.static
def evaluated_while_training(source: Source) -> Iterator[Finding]:
    """A model that provably depends on its mode, provably in train mode where it is evaluated."""
    for found in mode_paths(source).evaluated:
        action = "traced" if found.traced else "evaluated"
        message = f"`{found.receiver}` is {action} in train mode: no `{found.receiver}.eval()` on any path to this call"
        yield rule.finding(found.site, message, notes=list(_notes(found)))


def _notes(found: Evaluated) -> Iterator[Note]:
    for call in found.chain:
        yield Note(span(call), "called here")
    for setting in found.settings:
        if setting.node is not None:
            text = "built here, in train mode" if setting.built else "put in train mode here"
            yield Note(span(setting.node), text)


@rule.fix(
    "call `eval()` before the evaluation",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
    gains=[evaluation()],
)
def evaluate_in_eval_mode(source: Source, finding: Finding) -> list[Edit] | None:
    site = source.node_at(finding.location, ast.Call)
    found = next((item for item in mode_paths(source).evaluated if item.site is site), None)
    if found is None or _is_element(source, found):
        return None
    first, last = found.regions[0], found.regions[-1]
    together = source.tree.parent(first) is source.tree.parent(last)
    before = [first] if together else found.regions
    edits = [insert_before(region, f"{found.receiver}.eval()") for region in before]
    if found.trains_again:
        after = [last] if together else found.regions
        if any(isinstance(node, LEAVING) for region in after for node in walk(region)):
            return None  # a `train()` after the evaluation would not be reached
        edits += [insert_after(region, f"{found.receiver}.train()") for region in after]
    return edits


def _is_element(source: Source, found: Evaluated) -> bool:
    """Whether the model has its name inside a comprehension only, as one of several."""
    root = found.receiver.partition(".")[0].partition("[")[0]
    return any(
        isinstance(above, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp))
        and any(isinstance(n, ast.Name) and n.id == root for part in above.generators for n in walk(part.target))
        for above in source.tree.ancestors(found.site)
    )
