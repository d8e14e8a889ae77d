"""A dropout rate above one half on a hidden layer.

## What it finds
A rate `p` with 0.5 < p < 1: written in the source for `nn.Dropout`, `F.dropout`, an attention, recurrent or
transformer layer, or handed to a module of the same file that uses it as its rate; and, on the running model, the rate
that a layer really has, whatever configuration computed it. The advice depends on what the rate acts on:

| acts on | advised |
|---|---|
| linear layer, 1024 units or more | 0.5 |
| linear layer, 256 to 1023 units | 0.3 to 0.5 |
| linear layer, fewer units | 0.1 to 0.3 |
| input, embedding | 0.1 to 0.2 |
| convolution | 0 to 0.1 |
| features after global pooling | 0.2 to 0.5 |
| attention, residual branch | 0 to 0.1 |
| between recurrent layers | 0.2 to 0.5 |

## Why it matters
At p = 0.5 the noise already has the variance of the signal; at 0.9 it has nine times that, and the network underfits:
on the digits data set a rate of 0.9 left the training loss, measured in eval mode, ten times as high as 0.5 did.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 128)
            self.drop = nn.Dropout(0.9)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 128)
            self.drop = nn.Dropout(0.3)

## When to ignore it
In a recipe that was tuned with such a rate (the auxiliary heads of GoogLeNet, graph attention networks on citation
graphs, masking of tokens or patches; where names say so, nothing is reported).

## References
- Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014, section A.4
- Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters, train_eval_gap
from auditor.fix.edit import Edit, replace
from auditor.reference.dropout import advised_range, effective_rate, noise_to_signal
from auditor.rule import Category, Rule
from auditor.static.facts.rates import Rate, rates, surroundings, written_at
from auditor.static.layers import RECURRENT
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP001",
    category=Category.TRAINABILITY,
    severity=Severity.WARNING,
    summary="dropout rate above 0.5 on a hidden layer",
    triggers=("ropout",),
    yields_to=("DRP002",),
    thresholds={"rate above": 0.5},
)

# Names that say that something else than the units of a hidden layer is dropped, on purpose.
MEANT = r"(?i)aux|mask|token|patch|path|depth|cond|label|noise|augment"
# Their published recipes use 0.6, on graphs with few labels.
GRAPH_LIBRARIES = ("torch_geometric", "dgl")


@rule.static
def written_rate(source: Source) -> Iterator[Finding]:
    """A rate that can be read, and whose names do not say that it is meant."""
    if any(name.startswith(GRAPH_LIBRARIES) for names in source.names.aliases.values() for name in names):
        return
    for rate in rates(source):
        if rate.value is None or not 0.5 < rate.value < 1:
            continue
        if not _is_meant(source, rate) and not _ignored(source, rate):
            acts_on, width = surroundings(source, rate)
            message, advised = _advice(rate.value, acts_on, width)
            yield rule.finding(rate.call, message, rate=rate.value, advised=advised)


def _is_meant(source: Source, rate: Rate) -> bool:
    around = [node.name for node in (source.class_of(rate.call), source.function_of(rate.call)) if node is not None]
    return any(re.search(MEANT, name) for name in (*around, rate.kind, *rate.names(source)))


def _ignored(source: Source, rate: Rate) -> bool:
    """Whether it is the rate of a recurrent layer alone, which has nothing to drop between."""
    return rate.kind in RECURRENT and source.constant(source.argument(rate.call, "num_layers", 2), default=1) == 1


@rule.dynamic
def live_rate(capture: Capture) -> Iterator[Finding]:
    """A rate that the running model has, reported where it was chosen."""
    from auditor.dynamic.rates import chosen_at, live_rates

    if any(facts.kind.startswith(GRAPH_LIBRARIES) for facts in capture.modules.values()):
        return
    for rate in live_rates(capture):
        owner = type(capture.modules[rate.module].module).__name__
        parent = type(capture.modules[capture.modules[rate.module].parent].module).__name__
        if 0.5 < rate.value < 1 and not any(re.search(MEANT, name) for name in (rate.module, owner, parent)):
            message, advised = _advice(rate.value, rate.acts_on, rate.width, rate.before)
            where = chosen_at(capture, rate)
            yield rule.finding(where, message, modules=[rate.module], rate=rate.value, advised=advised)


def _advice(rate: float, acts_on: str, width: int | None, before: tuple[float, ...] = ()) -> tuple[str, float]:
    """The message, and the advised rate nearest to what was chosen."""
    low, high = advised_range(acts_on, width)
    place = ("a linear layer" if acts_on == "linear" else acts_on) + (f" of {width} units" if width else "")
    advised = f"{low:g} to {high:g}" if low < high else f"{high:g}"
    message = f"`p={rate:g}` on {place}, where {advised} is advised: the noise has "
    message += f"{noise_to_signal([rate]):.2g} times the power of the signal"
    if before:
        message += f", and with the dropouts before it {effective_rate([rate, *before]):.0%} are lost"
    return message, high


@rule.fix(
    "use the highest advised rate",
    applicability="unsafe",
    keeps=[parameters(), outputs(mode="eval")],
    gains=[train_eval_gap()],
)
def lower(source: Source, finding: Finding) -> Edit | None:
    origin = written_at(source, finding.location, finding.facts["rate"])
    return replace(origin, f"{finding.facts['advised']:g}") if origin is not None else None


@rule.rewrite
def lower_in_memory(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.set_rate(path, finding.facts["rate"], finding.facts["advised"])
