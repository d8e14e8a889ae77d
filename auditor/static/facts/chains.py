"""Plain chains of weight layers: one feeds the next through nothing but activations, norms, dropout and reshaping.

No residual, gate, branch or second use in between, so that what holds for a signal through one layer after another
holds for the chain.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.layers import ACTIVATIONS, CONVS, DROPOUTS, LINEARS, NN, NORMS, SHAPE_ONLY

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.flow import Op
    from auditor.static.source import Source

# The activations that auditor.reference.propagation knows, by the name of the layer, function or method.
_KNOWN = {
    "ReLU": "relu", "relu": "relu", "relu_": "relu", "LeakyReLU": "leaky_relu", "leaky_relu": "leaky_relu",
    "Tanh": "tanh", "tanh": "tanh", "tanh_": "tanh", "Sigmoid": "sigmoid", "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid", "GELU": "gelu", "gelu": "gelu", "SiLU": "silu", "silu": "silu", "ELU": "elu", "elu": "elu",
    "SELU": "selu", "selu": "selu", "Softplus": "softplus", "softplus": "softplus",
}  # fmt: skip
_OTHER_ACTIVATIONS = {
    "relu6",
    "hardswish",
    "hardtanh",
    "hardsigmoid",
    "mish",
    "celu",
    "softsign",
    "logsigmoid",
    "prelu",
}
_RESHAPES = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "float",
    "to", "movedim", "swapaxes", "type_as", "clone",
}  # fmt: skip
_POOLS = ("MaxPool1d", "MaxPool2d", "MaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d",
          "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")  # fmt: skip
_FUNCTIONAL = ("torch.nn.functional.", "torch.")


class Link:
    """One weight layer of a chain: its operation, its construction, and the operations between it and the next one.

    `activation` follows it: a name that auditor.reference.propagation knows, "linear" for none, "" for one that cannot
    be computed. `normed`: a normalisation follows. `pools`: the pooling operations that follow.
    """

    def __init__(self, op: Op, layer: ast.Call, kind: str) -> None:
        self.op = op
        self.layer = layer
        self.kind = kind
        self.activation = "linear"
        self.normed = False
        self.pools: list[Op] = []


class Chain:
    """Weight layers in order. `whole`: it begins at an input of forward and its last result is returned."""

    def __init__(self, links: list[Link], whole: bool) -> None:
        self.links = links
        self.whole = whole


def chains(source: Source, facts: ModuleClass) -> list[Chain]:
    """The chains of a class's forward, longest possible, in order of their first layer."""
    flow = source.flow(facts)
    if flow is None:
        return []
    found, taken = [], set()
    for op in flow.layer_ops():
        if op.layer is not None and op.layer_kind in LINEARS | CONVS and op not in taken and not _before(op):
            chain = _follow(op)
            taken |= {link.op for link in chain.links}
            found.append(chain)
    return found


def _before(op: Op) -> Op | None:
    """The weight layer that feeds `op` through transparent operations, if there is one."""
    while (producer := op.only_producer()) is not None and producer.only_user() is op and _one_input(op):
        if _is_weighted(producer):
            return producer
        if not _is_transparent(producer):
            return None
        op = producer
    return None


def _follow(op: Op) -> Chain:
    begins = _begins_at_input(op)
    links: list[Link] = []
    while True:
        assert op.layer is not None
        links.append(Link(op, op.layer, op.layer_kind))
        following: Op | None = op
        while True:
            before, following = following, following.only_user() if following else None
            if (
                following is None
                or before is None
                or following.only_producer() is not before
                or not _one_input(following)
            ):
                return Chain(links, False)
            if following.kind == "output":
                return Chain(links, begins)
            if _is_weighted(following):
                break
            if not _is_transparent(following):
                return Chain(links, False)
            _note(links[-1], following)
        op = following


def _note(link: Link, op: Op) -> None:
    tail = _tail(op)
    if _is_norm(op):
        link.normed = True
    elif tail in _POOLS:
        link.pools.append(op)
    elif _is_activation(op):
        plain = link.activation == "linear" and not link.pools and not _other_arguments(op)
        link.activation = _KNOWN.get(tail, "") if plain else ""


def _begins_at_input(op: Op) -> bool:
    while (producer := op.only_producer()) is not None:
        if producer.kind == "input":
            return True
        if not _is_transparent(producer) or _is_activation(producer) or not _one_input(producer):
            return False
        op = producer
    return False


def _one_input(op: Op) -> bool:
    return bool(op.inputs) and bool(op.inputs[0]) and not any(op.inputs[1:])


def _is_weighted(op: Op) -> bool:
    return op.kind == "layer" and op.layer is not None and op.layer_kind in LINEARS | CONVS


def _is_transparent(op: Op) -> bool:
    return _is_norm(op) or _is_activation(op) or _is_reshape(op)


def _tail(op: Op) -> str:
    return (op.layer_kind or op.target if op.kind == "layer" else op.target).rpartition(".")[2]


def _is_norm(op: Op) -> bool:
    return op.layer_kind in NORMS


def _is_activation(op: Op) -> bool:
    if op.kind == "layer":
        return op.layer_kind in ACTIVATIONS
    known = _tail(op) in _KNOWN or _tail(op) in _OTHER_ACTIVATIONS
    return known and (op.kind == "method" or (op.kind == "call" and op.target.startswith(_FUNCTIONAL)))


def _is_reshape(op: Op) -> bool:
    tail = _tail(op)
    if op.kind == "layer":
        return (
            op.layer_kind in SHAPE_ONLY or op.layer_kind in DROPOUTS or op.layer_kind in {NN + pool for pool in _POOLS}
        )
    if op.kind == "call" and op.target.startswith(_FUNCTIONAL):
        return tail in _RESHAPES or tail in _POOLS or tail.startswith("dropout")
    return op.kind == "method" and tail in _RESHAPES


def _other_arguments(op: Op) -> bool:
    """Whether an activation was given a shape of its own (`LeakyReLU(0.2)`, `ELU(alpha)`); `inplace` does not count."""
    call = op.layer if op.kind == "layer" else op.node
    if not isinstance(call, ast.Call):
        return False
    arguments = call.args[1:] if op.kind == "call" else call.args
    tail = _tail(op)
    curved = tail.lower().rstrip("_") in ("leakyrelu", "leaky_relu", "elu", "softplus", "gelu")
    return curved and bool(arguments or [word for word in call.keywords if word.arg not in ("inplace", "approximate")])


def unrolled(source: Source, chain: Chain) -> list[Link] | None:
    """The links of a chain with every `[layer for _ in range(n)]` at its true length; None where `n` is not known.

    The flow goes twice through such a list, whatever its length.
    """
    links, index, found = chain.links, 0, []
    while index < len(links):
        ahead = range(index + 1, len(links))
        again = next((later for later in ahead if links[later].layer is links[index].layer), None)
        if again is None:
            found.append(links[index])
            index += 1
            continue
        count = _length(source, links[index].layer)
        if not count:
            return None
        found += links[index:again] * count
        index = again + (again - index)
    return found


def _length(source: Source, layer: ast.Call) -> int:
    """How many times the comprehension around `layer` builds it; 0 if not known."""
    for above in source.tree.ancestors(layer):
        if isinstance(above, ast.stmt):
            break
        if isinstance(above, (ast.ListComp, ast.GeneratorExp)) and len(above.generators) == 1:
            match above.generators[0]:
                case ast.comprehension(iter=ast.Call(func=ast.Name(id="range"), args=[count]), ifs=[]):
                    value = source.constant(count)
                    return value if isinstance(value, int) and 0 < value <= 1000 else 0
    return 0
