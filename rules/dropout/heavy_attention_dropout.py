"""A dropout rate above 0.3 on attention weights.

## What it finds
A rate with 0.3 < p that acts on attention weights: of `nn.MultiheadAttention` and the transformer layers, of
`scaled_dot_product_attention`, or of a dropout behind a softmax; read in the source or found on the running model.
Above 0.5 the general rule for excessive rates speaks.

## Why it matters
Attention weights sum to one over few positions that matter. A rate of 0.4 erases the most attended position in four of
ten cases and scales the others up, so that the sum varies from call to call. Published transformers use 0.1; those
trained on large data, such as Llama and Mistral, use 0.

## Example
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4, dropout=0.5)

## Use instead
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4, dropout=0.1)

## When to ignore it
In a recipe that was tuned with such a rate on little data. Graph attention networks, whose published recipes use 0.6,
are not reported.

## References
- Vaswani et al., "Attention Is All You Need", 2017, section 5.4
- Velickovic et al., "Graph Attention Networks", 2018 (0.6 on citation graphs)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, train_eval_gap
from auditor.fix.edit import Edit, replace
from auditor.reference.dropout import ADVISED
from auditor.rule import Category, Rule
from auditor.static.facts.rates import rates, surroundings, written_at
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP013",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="dropout rate above 0.3 on attention weights",
    triggers=("ropout",),
    yields_to=("DRP001", "DRP002"),
    thresholds={"rate above": 0.3},
)

ATTENTION = "attention weights"
GRAPHS = re.compile(r"gat(v2)?(conv|layer|net)?$|graph|edge|node|mask", re.IGNORECASE)
GRAPH_LIBRARIES = ("torch_geometric", "dgl")


@rule.static
def written_rate(source: Source) -> Iterator[Finding]:
    """A rate that can be read and that acts on attention weights."""
    if any(name.startswith(GRAPH_LIBRARIES) for names in source.names.aliases.values() for name in names):
        return
    for rate in rates(source):
        if rate.value is None or not 0.3 < rate.value < 1 or surroundings(source, rate)[0] != ATTENTION:
            continue
        place = source.class_of(rate.call), source.function_of(rate.call)
        names = [node.name for node in place if node is not None]
        if not any(GRAPHS.search(name) for name in (*names, *rate.names(source))):
            yield rule.finding(rate.call, _message(rate.value), rate=rate.value)


@rule.dynamic
def live_rate(capture: Capture) -> Iterator[Finding]:
    """A rate of the running model that acts on attention weights, reported where it was chosen."""
    from auditor.dynamic.rates import chosen_at, live_rates

    if any(facts.kind.startswith(GRAPH_LIBRARIES) for facts in capture.modules.values()):
        return
    for rate in live_rates(capture):
        owner = capture.modules[rate.module]
        names = [owner.kind, capture.modules[owner.parent].kind, rate.module]
        heavy = 0.3 < rate.value < 1 and rate.acts_on == ATTENTION
        if heavy and not any(GRAPHS.search(name.rpartition(".")[2]) for name in names):
            yield rule.finding(chosen_at(capture, rate), _message(rate.value), modules=[rate.module], rate=rate.value)


def _message(rate: float) -> str:
    low, high = ADVISED[ATTENTION]
    return f"`p={rate:g}` on attention weights, where {low:g} to {high:g} is advised: few of them carry the signal"


@rule.fix(
    "use the highest advised rate",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[train_eval_gap()],
)
def lower(source: Source, finding: Finding) -> Edit | None:
    origin = written_at(source, finding.location, finding.facts["rate"])
    return replace(origin, f"{ADVISED[ATTENTION][1]:g}") if origin is not None else None


@rule.rewrite
def lower_in_memory(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.set_rate(path, finding.facts["rate"], ADVISED[ATTENTION][1])
