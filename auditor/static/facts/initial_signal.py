"""How the chains of a module class start: equal layers, the strength of a signal, and the initialiser that mends."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.finding import Note, Severity
from auditor.fix.edit import Edit, add_import, replace
from auditor.reference import propagation
from auditor.rule import span
from auditor.static.facts.chains import Chain, Link, chains, unrolled
from auditor.static.facts.initialisers import INIT, Event, Initialisers, Write, spelled, weight_kinds, write_of
from auditor.static.layers import CONVS, LINEARS, NN, PARAMETRIC, WEIGHTED

if TYPE_CHECKING:
    from auditor.finding import Finding, Location
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

# Decades of rms beyond which a chain's signal is lost or blown up: VANISH and EXPLODE of the probe.
DECADES = 3.0
EQUAL = {"zero", "constant"}


class Pair(NamedTuple):
    """Two weight layers, the first feeding the second, that both start with all weights equal.

    `biased`: the first layer's bias is random, so that its units are not quite equal.
    """

    first: Link
    second: Link
    first_write: Write
    second_write: Write
    zero: bool
    biased: bool

    @property
    def activation(self) -> str:
        return self.first.activation

    @property
    def severity(self) -> Severity | None:
        """A warning where the biases break the symmetry: such a model learns, if slowly."""
        return Severity.WARNING if self.biased else None

    def notes(self) -> list[Note]:
        return [Note(span(self.first.layer), "the first of them"), Note(span(self.second.layer), "the one it feeds")]


def equal_pairs(source: Source, zero: bool) -> Iterator[Pair]:
    """The pairs of a file that are both zero, or (`zero` False) both constant and not both zero; one per write."""
    if not source.once(weight_kinds) & EQUAL:
        return
    reported: set[ast.AST] = set()
    for facts in source.module_classes:
        starts = source.once(Initialisers, facts)
        for chain in chains(source, facts):
            for pair in _pairs(source, chain, starts):
                if pair.zero is zero and not {pair.first_write.node, pair.second_write.node} & reported:
                    reported |= {pair.first_write.node, pair.second_write.node}
                    yield pair


def _pairs(source: Source, chain: Chain, starts: Initialisers) -> Iterator[Pair]:
    for first, second in zip(chain.links, chain.links[1:], strict=False):
        (one, one_write), (two, two_write) = starts.start(first.layer), starts.start(second.layer)
        if one_write and two_write and {one.kind, two.kind} <= EQUAL:
            biased = _bias(source, first, starts) != 0 and starts.start(first.layer, "bias")[0].kind not in EQUAL
            yield Pair(first, second, one_write, two_write, {one.kind, two.kind} == {"zero"}, biased)


# Prediction -----------------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """What analytic propagation says of one whole, un-normalised chain. `write`: the initialiser of most of its layers;
    `decades`: of rms gained (lost if negative) on the way to the last layer's input, or output if that is larger."""

    links: tuple[Link, ...]
    signal: propagation.Signal
    write: Write

    @property
    def activation(self) -> str:
        """The most frequent activation inside the chain."""
        return Counter(link.activation for link in self.links[:-1]).most_common(1)[0][0]

    @property
    def vanishes(self) -> bool:
        return math.log10(max(self.signal.head_input, 1e-300)) < -2 * DECADES - self.signal.tolerance

    @property
    def explodes(self) -> bool:
        return math.log10(max(*self.signal.outputs, 1e-300)) > 2 * DECADES + self.signal.tolerance


def predictions(source: Source) -> Iterator[Prediction]:
    """One for every chain of the file, of two weight layers or more, whose widths and initialisers are known."""
    if not source.once(weight_kinds):
        return
    for facts in source.module_classes:
        for chain in chains(source, facts):
            if chain.whole and len(chain.links) > 1 and not any(link.normed for link in chain.links):
                prediction = _prediction(source, facts, chain)
                if prediction is not None:
                    yield prediction


def _prediction(source: Source, facts: ModuleClass, chain: Chain) -> Prediction | None:
    starts = source.once(Initialisers, facts)
    links = unrolled(source, chain)
    written = [write for link in chain.links if (write := starts.start(link.layer)[1]) is not None]
    if links is None or not written:
        return None
    layers = [_layer(source, link, starts) for link in links]
    known = [layer for layer in layers if layer is not None]
    if len(known) != len(layers):
        return None
    node, _ = Counter(write.node for write in written).most_common(1)[0]
    write = next(write for write in written if write.node is node)
    return Prediction(tuple(links), propagation.propagate(known), write)


def _layer(source: Source, link: Link, starts: Initialisers) -> propagation.Layer | None:
    fans = fan(source, link.layer)
    start, _ = starts.start(link.layer)
    if fans is None or (start.mean != 0 and start.kind != "constant"):
        return None
    weight, bias = start.second_moment(*fans), _bias(source, link, starts)
    slack = _slack(source, link)
    if weight is None or bias is None or slack is None or link.activation not in propagation.ACTIVATIONS:
        return None
    return propagation.Layer(*fans, weight, bias, link.activation, slack)


def fan(source: Source, layer: ast.Call) -> tuple[int, int] | None:
    """(fan-in, fan-out) of a Linear or convolution as torch counts them; None if its sizes are not known."""
    kind = source.layer_kind(layer)
    linear = kind == NN + "Linear"
    if not linear and (kind not in CONVS or "Lazy" in kind or "Transpose" in kind):
        return None
    names = ("in_features", "out_features") if linear else ("in_channels", "out_channels")
    sizes = [source.constant(source.argument(layer, name, index)) for index, name in enumerate(names)]
    taps = 1 if linear else _taps(source, layer, int(kind[-2]))
    groups = 1 if linear else source.constant(source.argument(layer, "groups", 6), 1)
    if taps is None or not all(isinstance(size, int) and size > 0 for size in (*sizes, groups)):
        return None
    return sizes[0] // groups * taps or 1, sizes[1] * taps


def _taps(source: Source, layer: ast.Call, rank: int) -> int | None:
    kernel = source.constant(source.argument(layer, "kernel_size", 2))
    kernel = (kernel,) * rank if isinstance(kernel, int) else kernel
    if isinstance(kernel, tuple) and all(isinstance(size, int) for size in kernel):
        return math.prod(kernel)
    return None


def _bias(source: Source, link: Link, starts: Initialisers) -> float | None:
    """E[b²] of a layer's bias; None if it is not known."""
    argument = source.argument(link.layer, "bias", 2 if link.kind in LINEARS else 7)
    present = True if argument is None else source.constant(argument)
    if present is False:
        return 0.0
    start, _ = starts.start(link.layer, "bias")
    fans = fan(source, link.layer)
    if present is not True or (fans is None and start.kind == "default"):
        return None
    return start.second_moment(*(fans or (1, 1)))


def _slack(source: Source, link: Link) -> float | None:
    """Decades of q by which padding and pooling may change the signal; None if it cannot be bounded."""
    slack = 0.0
    if link.kind in CONVS and source.constant(source.argument(link.layer, "padding", 4), 0) != 0:
        kernel = source.constant(source.argument(link.layer, "kernel_size", 2))
        if not isinstance(kernel, int):
            return None
        slack += propagation.padding_loss(kernel)
    for pool in link.pools:
        call = pool.layer if pool.kind == "layer" else pool.node
        position = 0 if pool.kind == "layer" else 1
        size = source.constant(source.argument(call, "kernel_size", position)) if isinstance(call, ast.Call) else None
        if not isinstance(size, int):
            return None
        slack += 2 * math.log10(size)
    return slack


# Mending --------------------------------------------------------------------------------------------------------------

# By activation: the initialiser that keeps a signal's scale, and its arguments.
_HE = 'kaiming_normal_({}, nonlinearity="relu")'
_REFERENCE = {
    **dict.fromkeys(("relu", "leaky_relu", "gelu", "silu", "elu", "softplus"), _HE),
    "tanh": "xavier_normal_({}, gain=5 / 3)",
    "selu": 'kaiming_normal_({}, nonlinearity="linear")',
}


def reference_call(activation: str, tensor: str) -> str:
    """The call of torch.nn.init (without its module) that suits weights followed by `activation`."""
    return _REFERENCE.get(activation, "xavier_normal_({})").format(tensor)


def reinitialised(source: Source, finding: Finding, warnings: bool = False) -> Sequence[Edit]:
    """The write of weights at a finding replaced by the initialiser for the activation named in the finding's facts.

    Empty where there is no single such write, or where it also reaches tensors that are no matrices. What a mere
    warning is about learns already: such a model gains nothing that could be shown (`warnings` True: try it).
    """
    if finding.severity is Severity.WARNING and not warnings:
        return ()
    write = weight_write_at(source, finding.location)
    if write is None or not _only_matrices(source, write):
        return ()
    call = reference_call(str(finding.facts.get("activation", "")), ast.unparse(write.tensor))
    module = spelled(source, INIT.rstrip("."))
    imports = [] if module else [add_import("torch")]
    return [replace(write.node, f"{module or 'torch.nn.init'}.{call}"), *imports]


def weight_write_at(source: Source, location: Location) -> Write | None:
    """The one write of a `weight` at a location (its exact range, or else its rows)."""
    nodes: list[ast.Call | ast.Assign] = [*source.tree.all(ast.Call), *source.tree.all(ast.Assign)]
    near = [node for node in nodes if node.lineno <= location.row <= (node.end_lineno or node.lineno)]
    writes = [write for node in near if (write := write_of(source, node)) is not None]
    found = [write for write in writes if write.name == "weight"]
    exact = [write for write in found if write.node is source.node_at(location, type(write.node))]
    chosen = exact or found
    return chosen[0] if len(chosen) == 1 else None


def _only_matrices(source: Source, write: Write) -> bool:
    """Whether every layer the write may reach is linear or convolutional."""
    events = [
        event
        for facts in source.module_classes
        for event in source.once(Initialisers, facts).events
        if event.write.node is write.node
    ]
    return bool(events) and not any(event.could_fill(kind) for event in events for kind in _others(source, event))


def _others(source: Source, event: Event) -> Iterator[str]:
    """The kinds of layers that are no matrices and that the event's variable may stand for, but for its tests."""
    calls = event.reach.calls
    kinds = PARAMETRIC if calls is None or event.reach.deep else {source.layer_kind(call) for call in calls}
    yield from sorted(kinds - WEIGHTED)
