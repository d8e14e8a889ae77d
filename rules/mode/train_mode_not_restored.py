"""Training goes on in eval mode after an evaluation.

## What it finds
A training loop in which the model is put in eval mode, directly or by a function that the loop calls, and nothing puts
it back in train mode before its next training step. A warning where it cannot be seen whether the model's layers
depend on the mode; silent where they surely do not.

## Why it matters
From the second round on, Dropout no longer drops and BatchNorm normalises with frozen running statistics. Training
goes on without an error, with another regularisation than was meant, and often diverges or overfits.

## Example
    def train(model, loader, val_loader, optimizer):
        model.train()
        for epoch in range(10):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                print(sum(F.cross_entropy(model(x), y).item() for x, y in val_loader))

## Use instead
    def train(model, loader, val_loader, optimizer):
        for epoch in range(10):
            model.train()
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                print(sum(F.cross_entropy(model(x), y).item() for x, y in val_loader))

## When to ignore it
Where fine-tuning in eval mode from the second epoch on is meant, or the model has no layer that depends on its mode.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.train
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, insert_before
from auditor.rule import Category, Rule, span
from auditor.static.modes.paths import Trained, mode_paths
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="MOD002",
    category=Category.TRAINABILITY,
    severity=Severity.ERROR,
    summary="training goes on in eval mode after an evaluation",
    triggers=(
        ".eval(",
        ".train(False",
        *(("backward", name) for name in ("eval", "valid", "val_", "test", "predict", "infer")),
    ),
)


@rule.static
def trained_in_eval_mode(source: Source) -> Iterator[Finding]:
    """A training step that its model reaches in eval mode from the second round of the loop on."""
    for found in mode_paths(source).trained:
        (setting,) = found.settings
        row = getattr(setting.node, "lineno", 0)
        message = (
            f"`{found.receiver}` is trained in eval mode from the second round of the loop on: line {row} switches it, "
            f"and nothing calls `train()` before the next step"
        )
        severity = Severity.ERROR if found.depends else Severity.WARNING
        yield rule.finding(found.site, message, severity=severity, notes=list(_notes(found)))


def _notes(found: Trained) -> Iterator[Note]:
    (setting,) = found.settings
    yield Note(span(found.loop), "the loop that carries eval mode into its next round")
    for call in setting.via:
        yield Note(span(call), "switched by this call")
    if setting.node is not None:
        yield Note(span(setting.node), "put in eval mode here")
    for call in found.chain:
        yield Note(span(call), "the training step is reached through this call")


@rule.fix(
    "call `train()` before training goes on",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
)
def train_in_train_mode(source: Source, finding: Finding) -> Edit | None:
    site = source.node_at(finding.location, ast.Call)
    found = next((item for item in mode_paths(source).trained if item.site is site), None)
    if found is None:
        return None
    root = found.receiver.partition(".")[0]
    bound = (node.id for node in walk(found.start) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return None if root in bound else insert_before(found.start, f"{found.receiver}.train()")
