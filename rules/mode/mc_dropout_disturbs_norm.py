"""Train mode to sample with dropout, in a model that also normalises by the batch.

## What it finds
`model.train()` before predictions that are repeated, or that names say are sampled (`mc_predict`, `uncertainty`), for a
model that holds BatchNorm. In a run: a forward in eval mode that switches its own BatchNorm back to training.

## Why it matters
Monte-Carlo dropout needs random dropout layers and nothing else in train mode. `train()` also makes every BatchNorm use
the statistics of the batch, so that a prediction depends on the other samples in it, and moves the running statistics:
after a few hundred predictions the saved model is another one.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))

        def forward(self, x):
            return self.body(x)

    def mc_predict(x, rounds):
        model = Net()
        model.train()
        with torch.no_grad():
            return torch.stack([model(x) for _ in range(rounds)])

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))

        def forward(self, x):
            return self.body(x)

    def mc_predict(x, rounds):
        model = Net()
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        with torch.no_grad():
            return torch.stack([model(x) for _ in range(rounds)])

## When to ignore it
Where the batch statistics are sampled on purpose (Monte-Carlo BatchNorm).

## References
- Gal and Ghahramani, "Dropout as a Bayesian Approximation", 2016
- Teye et al., "Bayesian Uncertainty Estimation for Batch Normalized Deep Networks", 2018 (where it is wanted)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_after, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.spelling import spelled
from auditor.static.layers import DROPOUTS
from auditor.static.modes.evaluations import samplings
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="MOD009",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="sampling with dropout also switches BatchNorm",
    triggers=(".train(",),
)


@rule.static
def whole_model_switched(source: Source) -> Iterator[Finding]:
    """A `train()` of the whole model for predictions."""
    for found in samplings(source):
        message = (
            f"`{found.receiver}.train()` is there for dropout, but switches BatchNorm too: predictions depend on the "
            "batch, and its running statistics move"
        )
        yield rule.finding(found.train, message, notes=[Note(span(found.site), "predicted here")])


@rule.dynamic
def trains_in_eval(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm with running statistics that normalises by the batch although the model is in eval mode."""
    from auditor.dynamic.norms import trained_in_eval

    for path, count, location in trained_in_eval(capture):
        others = f", like {count - 1} others," if count > 1 else ""
        message = f"the forward switches `{path}`{others} to training in eval mode: its running statistics move"
        yield rule.finding(location, message, modules=[path], layers=count)


@rule.fix(
    "put only the dropout layers in train mode",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def only_dropout(source: Source, finding: Finding) -> list[Edit] | None:
    train = source.node_at(finding.location, ast.Call)
    statement = source.statement_of(train) if train is not None else None
    if not isinstance(statement, ast.Expr) or statement.value is not train or not isinstance(train, ast.Call):
        return None
    receiver = ast.unparse(train.func.value)  # type: ignore[attr-defined]
    scope = source.function_of(train) or source.tree.root
    used = [kind for kind in DROPOUTS if source.calls_to(kind)] or ["torch.nn.Dropout"]
    spellings = [spelled(source, kind, scope) for kind in used]
    names = [name for name, _ in spellings]
    kinds = names[0] if len(names) == 1 else f"({', '.join(names)})"
    loop = f"for module in {receiver}.modules():\n    if isinstance(module, {kinds}):\n        module.train()"
    switched = replace(train, f"{receiver}.eval()")
    return [switched, insert_after(statement, loop), *(edit for _, edits in spellings for edit in edits)]
