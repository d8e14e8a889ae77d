"""A BatchNorm that keeps no running statistics.

## What it finds
A BatchNorm built with `track_running_stats=False`, written or found on the running model.

## Why it matters
Without running statistics it normalises by the batch in evaluation too: what the model says of a sample depends on the
other samples of the batch, and a batch of one is normalised by itself.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64, track_running_stats=False)

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(64)

## When to ignore it
Where that is meant, as in style transfer, generators and meta-learning: a class, function or file named so is not
reported. Where the statistics of a sample are wanted, InstanceNorm and GroupNorm compute them at every batch size.

## References
- Ioffe and Szegedy, "Batch Normalization", 2015
- https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (`track_running_stats`)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, samples_independent
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.norm_calls import norm_calls
from auditor.static.layers import BATCH_NORMS
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="NRM005",
    category=Category.ROBUSTNESS,
    severity=Severity.INFO,
    summary="`BatchNorm` without running statistics, whose evaluation depends on the batch",
    triggers=("track_running_stats",),
)

ON_PURPOSE = re.compile(r"style|adain|instance|generator|(^|[^a-z])gan|meta|maml|conditional|spade", re.IGNORECASE)


@rule.static
def untracked(source: Source) -> Iterator[Finding]:
    """`track_running_stats=False` written in the call, where no name around says that it is meant."""
    for norm in norm_calls(source, *BATCH_NORMS):
        tracked = norm.argument(source, "track_running_stats")
        if isinstance(tracked, ast.Constant) and tracked.value is False and not _on_purpose(source, norm.call):
            yield rule.finding(norm.call, _message(norm.name))


def _on_purpose(source: Source, call: ast.Call) -> bool:
    above = source.tree.ancestors(call)
    named = [node.name for node in above if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return any(ON_PURPOSE.search(name) for name in (*named, source.path.rpartition("/")[2]))


@rule.dynamic
def untracked_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A BatchNorm of the running model that has no running statistics to evaluate with."""
    for path, facts in capture.modules.items():
        if facts.kind not in BATCH_NORMS or getattr(facts.module, "track_running_stats", True):
            continue
        owner = capture.modules.get(facts.parent)
        names = (path, facts.location.path.rpartition("/")[2], owner.kind if owner is not None else "")
        if capture.executed(path) and not any(ON_PURPOSE.search(name) for name in names):
            yield rule.finding(facts, _message(facts.kind.rpartition(".")[2]), modules=[path])


def _message(name: str) -> str:
    return f"this `{name}` keeps no running statistics: in evaluation its output for a sample depends on the batch"


@rule.fix(
    "keep running statistics",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="train")],
    gains=[samples_independent()],
)
def track(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    for norm in norm_calls(source, *BATCH_NORMS):
        tracked = norm.argument(source, "track_running_stats")
        if norm.call is call and isinstance(tracked, ast.Constant):
            return replace(tracked, "True")
    return None
