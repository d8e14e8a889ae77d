"""A model that gives another answer each time, although it is in eval mode.

## What it finds
In a run only: a forward in eval mode that draws random numbers. The state of every generator before and after is
compared, which is exact. Where the draw is a call of torch, that line is named; what is merely random because of a
dropout that never switches off, or of a layer built in `forward`, is left to the rules for these.

## Why it matters
Predictions, validation figures and exported models then depend on the state of a random generator: two evaluations of
one checkpoint disagree, and a bug report cannot be reproduced.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x + 0.1 * torch.randn_like(x))

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            if self.training:
                x = x + 0.1 * torch.randn_like(x)
            return self.fc(x)

## When to ignore it
Where sampling is what the model is for (a VAE's reparametrisation, diffusion, Monte-Carlo dropout). Names and comments
that say so silence the rule; otherwise put `# auditor: ignore[eval-not-repeatable]` on the line.

## References
- https://pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Location, Severity
from auditor.rule import Category, Rule

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

rule = Rule(
    __name__,
    code="MOD010",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="in eval mode the model still draws random numbers",
    yields_to=("MOD004", "MOD005", "MOD006", "MOD007", "MOD008", "DRP006", "DRP011", "DRP014"),
)

# Names of classes and functions whose business is drawing numbers.
SAMPLERS = (
    r"(?i)sampl|nois|random|stochast|vae|variational|diffus|ddpm|ddim|generat|gumbel|reparam|latent|gan\b|augment|jitter|mask"
    r"|bayes|monte|flow|perturb|dither|dequant|reinit|init"
)


@rule.dynamic
def draws_in_eval(capture: Capture) -> Iterator[Finding]:
    """Each line of the eval run that drew numbers; the model as a whole where no call of torch did."""
    from auditor.dynamic.intent import builds_layer_at

    use = capture.eval_rng
    if not use.generators and not use.outputs_differ:  # nothing drawn, or from a generator seeded anew
        return
    severity = Severity.ERROR if use.outputs_differ else Severity.WARNING
    effect = "two seeds give two outputs" if use.outputs_differ else "its generator moves on at every call"
    if not use.nodes:
        if not _samples(capture, "", capture.modules[""].location):
            kinds = " and ".join(f"`{name}`" for name in use.generators)
            message = f"the forward in eval mode draws random numbers ({kinds}): {effect}"
            yield rule.finding(capture.modules[""], message, severity=severity, modules=[""])
        return
    lines: dict[Location, list[NodeFacts]] = {}
    for node in use.nodes:
        lines.setdefault(node.location, []).append(node)
    for location, nodes in lines.items():
        paths = list(dict.fromkeys(node.module for node in nodes))
        if builds_layer_at(location) or all(_samples(capture, path, location) for path in paths):
            continue  # the weights of a layer that is built at the first call are drawn at random
        where = f"`{paths[0]}`" if paths[0] else "the model"
        message = f"{where} draws random numbers in eval mode (`{nodes[0].function}`): {effect}"
        yield rule.finding(location, message, severity=severity, modules=paths, draws=len(nodes))


def _samples(capture: Capture, path: str, location: Location) -> bool:
    """Whether names or comments around the line say that drawing numbers is its purpose."""
    from auditor.dynamic.intent import is_meant_at, names_around

    kinds = [capture.modules[path].kind.rpartition(".")[2]] if path in capture.modules else []
    return is_meant_at(location) or any(re.search(SAMPLERS, name) for name in (*kinds, *names_around(location)))
