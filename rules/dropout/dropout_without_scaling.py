"""Hand-written dropout that leaves out the scaling by 1/(1 − p).

## What it finds
A random mask of zeros and ones (of elements, channels or whole samples) that is multiplied in during training, with
neither a division by the probability to keep there nor a multiplication by it in evaluation. On the running model: a
layer that zeroes part of its input in training and whose mean output then differs from its output in eval mode, by a
test with a false alarm rate of 1e-6.

## Why it matters
In training the next layer sees activations smaller by the factor 1 − p than in evaluation. Everything behind it was
tuned to the smaller ones: predictions are over-confident or plainly wrong, with no error anywhere.

## Example
    class Drop(nn.Module):
        def __init__(self, p=0.2):
            super().__init__()
            self.p = p

        def forward(self, x):
            if not self.training:
                return x
            mask = torch.rand_like(x) > self.p
            return x * mask

## Use instead
    class Drop(nn.Module):
        def __init__(self, p=0.2):
            super().__init__()
            self.p = p

        def forward(self, x):
            if not self.training:
                return x
            mask = torch.rand_like(x) > self.p
            return x * mask / (1 - self.p)

## When to ignore it
Where dropping is augmentation or corruption rather than regularisation (masked language models, SpecAugment, dropped
conditions): there the values that stay must stay as they are.

## References
- Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014, section 10
- https://pytorch.org/docs/stable/generated/torch.nn.Dropout.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import expectation, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.gating import gated
from auditor.static.facts.mask_scaling import CORRUPTS, drops_activations, is_scaled
from auditor.static.facts.masks import masks
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="DRP006",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="hand-written dropout without scaling",
    triggers=("bernoulli", "torch.rand", "rand_like", "uniform_"),
    thresholds={"t statistic above": 6.07},
)


@rule.static
def unscaled_product(source: Source) -> Iterator[Finding]:
    """A mask that is applied in training only, by a name that says dropout, and nothing around it that scales."""
    for mask in masks(source):
        if drops_activations(source, mask) and gated(source, mask.draw) and not is_scaled(source, mask):
            message = f"the mask keeps `{mask.keep}` of the values on average and nothing divides by it: "
            message += "the layer gives less in training than in evaluation"
            yield rule.finding(mask.product, message, keep=mask.keep)


@rule.dynamic
def shifted_mean(capture: Capture) -> Iterator[Finding]:
    """A layer without parts of its own whose mean output in training is off."""
    from auditor.dynamic.expectation import expectations, product_line

    for layer in expectations(capture):
        if layer.is_off and not CORRUPTS.search(f"{type(layer.facts.module).__name__} {layer.facts.path}"):
            message = (
                f"keeps {layer.kept:.0%} of the values in training, times {layer.scale:.3g}: its mean output there "
            )
            message += f"is {layer.ratio:.3g} of that in eval mode"
            where = product_line(capture, layer.facts)
            yield rule.finding(where, message, modules=[layer.facts.path], ratio=layer.ratio, t=layer.t)


@rule.fix(
    "divide by the probability to keep",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[expectation()],
)
def scale(source: Source, finding: Finding) -> Edit | None:
    for mask in masks(source):
        if mask.product.lineno == finding.location.row and not is_scaled(source, mask):
            keep = mask.keep if mask.keep.replace(".", "").isidentifier() else f"({mask.keep})"
            target = mask.product if isinstance(mask.product, ast.BinOp) else mask.factor
            return replace(target, f"{ast.get_source_segment(source.text, target)} / {keep}")
    return None
