"""Stochastic depth that draws once for the whole batch, or once per element.

## What it finds
In a class or function named for it (`DropPath`, `StochasticDepth`, `drop_connect`): a random mask that has one entry
for the whole batch, or one for each element, instead of one per sample.

## Why it matters
With one draw per batch, the gradient of a step comes from all samples with the branch or from none: the noise of the
whole step grows with the rate, and a deep network can lose most of its branches at once. With one draw per element it
is no stochastic depth at all, but plain dropout on the branch.

## Example
    class DropPath(nn.Module):
        def __init__(self, drop_prob=0.1):
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x):
            if not self.training:
                return x
            keep = 1 - self.drop_prob
            mask = torch.rand_like(x) < keep
            return x * mask / keep

## Use instead
    class DropPath(nn.Module):
        def __init__(self, drop_prob=0.1):
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x):
            if not self.training:
                return x
            keep = 1 - self.drop_prob
            mask = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) < keep
            return x * mask / keep

## When to ignore it
Where the batch form of the first paper is meant, which also saves the work of the skipped layers: where a name, comment
or docstring says "batch", nothing is reported.

## References
- Huang et al., "Deep Networks with Stochastic Depth", 2016 (one draw per mini-batch)
- Larsson et al., "FractalNet", 2017 (drop-path)
- https://pytorch.org/vision/stable/generated/torchvision.ops.stochastic_depth.html (modes `batch` and `row`)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import expectation, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.mask_shapes import data_name, drawn_per
from auditor.static.facts.masks import masks
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="DRP011",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="stochastic depth that does not draw per sample",
    triggers=("rop", "tochastic"),
)

NAMED = re.compile(r"drop_?path|stochastic_?depth|drop_?connect|path_?drop", re.IGNORECASE)
PER_BATCH = re.compile(
    r"batch[ _-]?(wise|mode|form|level)|(per|whole|entire|one|same)[ _-](mini-?)?batch|[\"']batch[\"']", re.I
)
MESSAGES = {
    "batch": "one draw decides for the whole batch: all samples lose this branch at once, or none",
    "element": "one draw per element makes this plain dropout: stochastic depth drops a branch for whole samples",
}


@rule.static
def shape_of_the_draw(source: Source) -> Iterator[Finding]:
    """A mask in code that is named for stochastic depth, drawn in the shape of one number or of the data."""
    for mask in masks(source):
        owner = source.class_of(mask.function)
        named = [node.name for node in (mask.function, owner) if node is not None]
        per = drawn_per(source, mask) if any(NAMED.search(name) for name in named) else ""
        if per and not _says_batch(source, owner or mask.function):
            yield rule.finding(mask.draw, MESSAGES[per], per=per)


def _says_batch(source: Source, node: ast.AST) -> bool:
    text = ast.get_source_segment(source.text, node) or ""
    return bool(PER_BATCH.search(text))


@rule.dynamic
def shape_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A draw of the run, in a layer of such a name, that has one number or the shape of the layer's input."""
    from auditor.dynamic.capture import class_location
    from auditor.dynamic.intent import source_at

    for node in capture.nodes("train"):
        facts = capture.modules.get(node.module)
        if facts is None or not node.random or not NAMED.search(facts.kind.rpartition(".")[2]):
            continue
        given, drawn = facts.in_shape.get("train"), node.shape
        if facts.kind.startswith("torch") or given is None or drawn is None or len(given) < 2 or given[0] < 2:
            continue
        per = "batch" if all(size == 1 for size in drawn) else "element" if tuple(drawn) == tuple(given) else ""
        row = class_location(type(facts.module))
        source = source_at(row)
        owner = source.node_at(row, ast.ClassDef) if source is not None else None
        if per and not (source is not None and owner is not None and _says_batch(source, owner)):
            yield rule.finding(node, MESSAGES[per], modules=[node.module], per=per)


@rule.fix(
    "draw per sample",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[expectation(idempotent=True)],
)
def draw_per_sample(source: Source, finding: Finding) -> Edit | None:
    for mask in masks(source):
        data = data_name(mask.data)
        if mask.draw.lineno == finding.location.row and drawn_per(source, mask) and data:
            words = [f"{item.arg}={ast.unparse(item.value)}" for item in mask.draw.keywords if item.arg]
            known = {item.arg for item in mask.draw.keywords}
            words += [f"{name}={data}.{name}" for name in ("dtype", "device") if name not in known]
            shape = f"({data}.shape[0],) + (1,) * ({data}.ndim - 1)"
            function = ast.unparse(mask.draw.func).removesuffix("_like")
            return replace(mask.draw, f"{function}({shape}, {', '.join(words)})")
    return None
