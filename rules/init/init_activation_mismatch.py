"""An initialiser that names another nonlinearity than the one that follows.

## What it finds
`kaiming_*_(…, nonlinearity=…)`, or `gain=calculate_gain(…)`, that names one kind of nonlinearity (rectifiers, tanh,
sigmoid, SELU) where all the layers that it fills are followed by another kind, with no norm in between.

## Why it matters
The gain makes up for what the nonlinearity does to the scale of the signal: √2 for the half that ReLU takes away, 5/3
for tanh, 1 for sigmoid. The gain of another one makes the signal grow or shrink by a constant factor at every layer,
and says something about the model that is not so: usually the activation was exchanged and the initialiser forgotten.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 64)
            self.head = nn.Linear(64, 10)
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")

        def forward(self, x):
            return self.head(torch.sigmoid(self.hidden(x)))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 64)
            self.head = nn.Linear(64, 10)
            nn.init.xavier_normal_(self.hidden.weight)

        def forward(self, x):
            return self.head(torch.sigmoid(self.hidden(x)))

## When to ignore it
In shallow nets, where a factor matters little. An initialiser that names nothing is never reported, such as Xavier
before ReLU; nor is one that fills layers of both kinds, nor a last layer without a nonlinearity.

## References
- He et al., "Delving Deep into Rectifiers", 2015, section 2.2
- https://pytorch.org/docs/stable/nn.init.html (`calculate_gain`)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import alive, parameters, repeatable
from auditor.fix.edit import Edit
from auditor.rule import Category, Rule, span
from auditor.static.facts.initial_signal import reinitialised
from auditor.static.facts.named_gains import contradictions
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="INI006",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="an initialiser for another nonlinearity than the one that follows",
    triggers=("nonlinearity", "calculate_gain"),
    yields_to=("INI004", "INI005"),
)


@rule.static
def named_otherwise(source: Source) -> Iterator[Finding]:
    """A write whose named nonlinearity contradicts all the layers that it fills."""
    for found in contradictions(source):
        follows = found.activation.replace("leaky_relu", "leaky ReLU")
        yield rule.finding(
            found.write.node,  # type: ignore[arg-type]
            f"this takes the gain for `{found.named}`, but {follows} follows these weights",
            notes=[Note(span(found.link.layer), "the layer that it fills")],
            activation=found.activation,
        )


@rule.fix(
    "initialise the weights for the activation that follows",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True), alive(idempotent=True)],
)
def reference_initialiser(source: Source, finding: Finding) -> Sequence[Edit]:
    return reinitialised(source, finding)
