"""Where a signal goes in a recorded graph: the nonlinearity and the norm that follow a weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
WEIGHT_FUNCTIONS = {"linear", *CONVOLUTIONS}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
ACTIVATIONS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"}
    | {"softsign", "tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish", "logsigmoid", "tanhshrink", "hardshrink"}
    | {"softshrink", "softmax", "log_softmax", "softmin", "glu", "threshold"}
)
NORMALISATIONS = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize", "local_response_norm"}
)
# Calls that pass a signal on: rearrangement, casts, pooling, dropout.
PASSES = frozenset(
    {"view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "swapaxes", "movedim", "contiguous"}
    | {"unsqueeze", "squeeze", "getitem", "chunk", "split", "tensor_split", "unbind", "select", "narrow", "expand"}
    | {"t", "T", "mT", "to", "float", "half", "double", "bfloat16", "type", "clone", "pad", "pixel_shuffle"}
    | {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "interpolate"}
    | {f"{adaptive}{kind}_pool{n}d" for adaptive in ("", "adaptive_") for kind in ("max", "avg") for n in (1, 2, 3)}
    | {"max_pool2d_with_indices", "boolean_dispatch", "upsample"}
)
# Hand-written activations, by a word in their class's name.
ACTIVATION_CLASSES = {
    **{"gelu": "gelu", "silu": "silu", "swish": "silu", "mish": "mish"},
    **{"relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid"},
}


def what_follows(capture: Capture, parameter: str, path: str) -> tuple[str | None, bool, bool]:
    """From the call that uses a weight on: (first nonlinearity or None, a norm before it, a pixel shuffle reached).

    Followed through views, pooling, dropout and norms; not through additions, products or other weight layers.
    """
    start = weight_calls(capture, parameter, path)
    through = PASSES | {"norm"}
    kinds = list(_follow(capture, start, through))
    normed = any(kind == "norm" for kind, _ in kinds)
    activation, normalised = next(((kind, after) for kind, after in kinds if kind in ACTIVATIONS), (None, normed))
    shuffled = any(kind == "pixel_shuffle" for kind, _ in _follow(capture, start, through | ACTIVATIONS))
    return activation, normalised, shuffled


def _follow(capture: Capture, start: list[NodeFacts], through: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """Kinds of the calls reached from `start`, each with whether a norm lies before it."""
    return ((kind, after_norm) for kind, after_norm, _ in reached(capture, start, through))


def reached(capture: Capture, start: list[NodeFacts], through: frozenset[str]) -> Iterator[tuple[str, bool, NodeFacts]]:
    """The calls reached from `start` (breadth first) through those of the kinds `through`: the kind, whether a norm
    lies before it, the call."""
    queue = [(node, False) for node in start]
    seen = set(start)
    for node, after_norm in queue:
        for user in node.users:
            if user not in seen:
                seen.add(user)
                kind = kind_of_call(capture, user)
                yield kind, after_norm, user
                if kind in through:
                    queue.append((user, after_norm or kind == "norm"))


def kind_of_call(capture: Capture, node: NodeFacts) -> str:
    """A call's operation; "norm" and the activation's name also for hand-written ones, by their module's class."""
    kind = node.operation
    if kind in NORMALISATIONS:
        return "norm"
    if kind in ACTIVATIONS or kind in PASSES:
        return kind
    module = capture.modules.get(node.module)
    name = module.kind.rpartition(".")[2].lower() if module is not None else ""
    if "norm" in name:
        return "norm"
    return next((known for word, known in ACTIVATION_CLASSES.items() if word in name), kind)


def weight_calls(capture: Capture, parameter: str, path: str) -> list[NodeFacts]:
    """The calls of the recorded run that take a parameter, those of its own module where there are any.

    For a weight that is computed first (weight norm, standardisation): the module's last call.
    """
    mode = "train" if "train" in capture.graphs else "eval"
    tensor = capture.parameters[parameter].tensor
    names = [name for name, facts in capture.parameters.items() if facts.tensor is tensor]
    uses = [user for name in names for node in capture.reads_of(mode, name) for user in node.users]
    uses = [use for use in uses if use.operation in WEIGHT_FUNCTIONS or use.operation in RECURRENT] or uses
    own = [use for use in uses if use.module == path]
    if not uses:
        own = [node for node in capture.nodes(mode) if node.module == path][-1:]
    return own or uses


def reaches_output(capture: Capture, parameter: str, path: str) -> bool:
    """Whether what a weight gives surely or possibly goes on to the model's output as a signal: through rearrangement,
    norms, activations, additions and other weights, not only as a gate or a choice of experts. True where the run was
    not recorded."""
    start = weight_calls(capture, parameter, path)
    if not start:
        return True
    queue, seen = list(start), set(start)
    carries = (
        PASSES | ACTIVATIONS | WEIGHT_FUNCTIONS | RECURRENT | {"norm", "add", "cat", "stack", "mean", "sum", "sub"}
    )
    for node in queue:
        if node.is_output:
            return True
        for user in node.users:
            if user not in seen and kind_of_call(capture, user) in carries:
                seen.add(user)
                queue.append(user)
    return False
