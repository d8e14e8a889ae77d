"""Layers or features dropped at random by hand, in evaluation too.

## What it finds
In a module's forward, by names that say dropping (`drop`, `stochastic depth`, `survival`): a random mask of zeros and
ones that is multiplied in, or a layer skipped where a random number is below a rate, without a look at `self.training`
on the way. On the running model: such a line that really drew random numbers in eval mode.

## Why it matters
`model.eval()` does not reach it: every prediction comes from another random subnetwork, and evaluation is worse than
the model and different in each run.

## Example
    class LayerDrop(nn.Module):
        def __init__(self, layers, drop_rate=0.1):
            super().__init__()
            self.layers = nn.ModuleList(layers)
            self.drop_rate = drop_rate

        def forward(self, x):
            for layer in self.layers:
                if torch.rand(1).item() < self.drop_rate:
                    continue
                x = layer(x)
            return x

## Use instead
    class LayerDrop(nn.Module):
        def __init__(self, layers, drop_rate=0.1):
            super().__init__()
            self.layers = nn.ModuleList(layers)
            self.drop_rate = drop_rate

        def forward(self, x):
            for layer in self.layers:
                if self.training and torch.rand(1).item() < self.drop_rate:
                    continue
                x = layer(x)
            return x

## When to ignore it
Where dropping at random is what the module is for: augmentation, corruption, samplers, Monte-Carlo dropout. Names and
comments that say so silence the rule.

## References
- Huang et al., "Deep Networks with Stochastic Depth", 2016
- Fan et al., "Reducing Transformer Depth on Demand with Structured Dropout", 2020
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters, repeatable, shapes
from auditor.fix.edit import Edit, insert_before, replace
from auditor.rule import Category, Rule
from auditor.static.facts.random_drops import RandomDrop, random_drops, says_drop
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="DRP014",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="hand-written random dropping that never switches off",
    triggers=("bernoulli", "rand", "uniform"),
    yields_to=("MOD004", "MOD005"),
)

DRAWS = ("rand", "rand_like", "bernoulli", "uniform")
MESSAGE = "drops at random in eval mode too: nothing on the way here looks at `self.training`"


@rule.static
def never_gated(source: Source) -> Iterator[Finding]:
    """A mask or a random condition in what a module computes in eval mode."""
    for drop in random_drops(source):
        yield rule.finding(drop.draw, MESSAGE)


@rule.dynamic
def drew_in_eval(capture: Capture) -> Iterator[Finding]:
    """A line that drew zeros and ones, or one number, in eval mode, in code that is named for dropping."""
    from auditor.dynamic.intent import is_meant_at, names_around, source_at

    seen = set()
    for node in capture.eval_rng.nodes:
        kind = capture.modules[node.module].kind if node.module in capture.modules else ""
        if node.operation not in DRAWS or kind.startswith("torch.nn.") or node.location in seen:
            continue
        seen.add(node.location)
        source = source_at(node.location)
        read = source is not None and any(drop.draw.lineno == node.location.row for drop in random_drops(source))
        said = says_drop([kind.rpartition(".")[2], *names_around(node.location)])
        if read or (said and not is_meant_at(node.location)):
            where = f"`{node.module}`" if node.module else "the model"
            yield rule.finding(node, f"{where} {MESSAGE}", modules=[node.module])


@rule.fix(
    "drop in train mode only", applicability="unsafe", keeps=[parameters(), shapes()], gains=[repeatable(mode="eval")]
)
def gate(source: Source, finding: Finding) -> Edit | None:
    for drop in random_drops(source):
        row = finding.location.row
        if drop.draw.lineno == row:
            return _gated(source, drop)
    return None


def _gated(source: Source, drop: RandomDrop) -> Edit | None:
    """`self.training and …` for a condition; for a layer that is nothing but its mask, an early return."""
    if drop.condition is not None:
        text = ast.get_source_segment(source.text, drop.condition)
        simple = isinstance(drop.condition, (ast.Compare, ast.Call, ast.BoolOp))
        if not text or not simple or isinstance(getattr(drop.condition, "op", None), ast.Or):
            return None
        return replace(drop.condition, f"self.training and {text}")
    function = drop.function
    arguments = [argument.arg for argument in function.args.args]
    if function.name != "forward" or len(arguments) != 2 or not isinstance(function.body[-1], ast.Return):
        return None
    owner = source.class_of(function)
    facts = source.module_class(owner) if owner is not None else None
    flow = source.flow(facts) if facts is not None else None
    if flow is None or flow.layer_ops() or len(flow.outputs) != 1:
        return None
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = function.body[1] if documented and len(function.body) > 1 else first
    return insert_before(start, f"if not {arguments[0]}.training:\n    return {arguments[1]}")
