"""Frozen layers whose BatchNorm is not frozen.

## What it finds
A part of a module whose parameters all get `requires_grad = False` in the constructor, that holds BatchNorm, and that
nothing keeps in eval mode. In a run: BatchNorms whose scale and shift are frozen and whose running statistics a forward
in train mode still updates, in a model that trains something else.

## Why it matters
`requires_grad` stops gradients. Running statistics are no parameters: in train mode each batch moves them, and the part
normalises by the batch instead of by what it was pretrained with. The "frozen" features drift as training goes on, and
differ between training and evaluation.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            for parameter in self.body.parameters():
                parameter.requires_grad = False
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            for parameter in self.body.parameters():
                parameter.requires_grad = False
            self.head = nn.Linear(8, 4)

        def train(self, mode=True):
            super().train(mode)
            self.body.eval()
            return self

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

## When to ignore it
Where the statistics are meant to follow the new data (AdaBN).

## References
- https://pytorch.org/docs/stable/notes/autograd.html#setting-requires-grad
- Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2017 (where it is wanted)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, state_dict_keys, statistics_untouched
from auditor.fix.edit import Applicability, Fix, insert_after
from auditor.rule import Category, Rule, span
from auditor.static.facts.frozen_norms import frozen_norms
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="MOD012",
    category=Category.CORRECTNESS,
    severity=Severity.WARNING,
    summary="frozen layers whose `BatchNorm` keeps learning",
    triggers=("requires_grad",),
)


@rule.static
def frozen_without_eval(source: Source) -> Iterator[Finding]:
    """A part that the constructor freezes and nothing keeps in eval mode."""
    for found in frozen_norms(source):
        message = (
            f"`self.{found.attribute}` is frozen, but its BatchNorm is not: in train mode each batch moves its running "
            "statistics"
        )
        notes = [Note(span(found.built.statement), "built here, with BatchNorm")]
        yield rule.finding(found.frozen, message, notes=notes)


@rule.dynamic
def statistics_move(capture: Capture) -> Iterator[Finding]:
    """Frozen BatchNorms that a forward in train mode updated, one finding for each frozen part."""
    from auditor.dynamic.norms import updated_though_frozen

    for part, norms in updated_though_frozen(capture).items():
        facts = capture.modules[part]
        norm = "its BatchNorm still updates" if len(norms) == 1 else f"its {len(norms)} BatchNorms still update"
        message = f"`{part}` is frozen, but in train mode {norm} the running statistics"
        yield rule.finding(facts, message, modules=[part], layers=len(norms))


@rule.fix(
    "keep the frozen part in eval mode",
    applicability="unsafe",
    keeps=[parameters(), state_dict_keys(), outputs(mode="eval")],
    gains=[statistics_untouched()],
)
def keep_in_eval(source: Source, finding: Finding) -> Fix | None:
    """A `train` of the class's own behind its constructor."""
    for found in frozen_norms(source):
        if finding.location.row in (found.frozen.lineno, found.built.statement.lineno):
            body = ("super().train(mode)", f"self.{found.attribute}.eval()", "return self")
            code = "def train(self, mode=True):\n" + "\n".join(f"    {line}" for line in body)
            gains = rule.gains if found.alone else ()  # other BatchNorms go on, as they should
            edits = (insert_after(found.owner.methods["__init__"], code),)
            return Fix(rule.title, edits, Applicability.UNSAFE, rule.keeps, gains)
    return None
