"""What each layer of a captured model is for, as `reference.initialize` wants to know it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from auditor.dynamic.capture import as_inputs, capture
from auditor.dynamic.flow import PASSES, kind_of_call, reached, weight_calls
from auditor.dynamic.state import RandomState, seed_all
from auditor.reference.initialization import GAINS
from auditor.reference.scheme import Initialised, LayerUse, module_facts
from auditor.reference.scheme import initialize as reference_initialize

if TYPE_CHECKING:
    from torch import fx, nn

    from auditor.dynamic.capture import Capture, NodeFacts

_SLOPES = {"leaky_relu": ("negative_slope", 0.01), "rrelu": ("upper", 1 / 3)}
_LEAKY = ("leaky_relu", "prelu", "rrelu")
_ADDITIONS = ("add", "iadd", "add_")


def layer_facts(capture: Capture, model: nn.Module | None = None) -> list[LayerUse]:
    """The layers of `model` (default: the captured one) with what the recorded graph shows of them.

    `activation`: the nonlinearity that takes the output, "linear" where a norm, an addition, another weight layer or
    the output comes first, None where that cannot be told. `is_residual_out`: the output is added to a stream that the
    branch was computed from and that goes on, un-normalised, to the next addition. `exempt`: a weight of zeros that
    learns (a zero-initialised gate, adapter or head), and rows that repeat by design.
    """
    roles = _Roles(capture)
    return [roles.of(use) for use in module_facts(model if model is not None else capture.model)]


def initialize(model: nn.Module, inputs: Any, scheme: str = "auto", *, seed: int = 0) -> list[Initialised]:
    """Initialise every layer of `model` in place for the role it has when it runs on `inputs` (a tensor, a tuple of
    arguments or a dict of keyword arguments), and say what each parameter got: `reference.initialize` with the facts of
    the recorded graph.

    Random numbers come from `seed`; torch's generators are left as they were. ValueError as `reference.initialize`, and
    for a model that does not run.
    """
    captured = capture(copy.deepcopy(model), inputs, seed=seed)
    if not captured.graphs:
        raise ValueError(f"the model cannot be recorded: {captured.rungs['train'].reason}")
    facts = layer_facts(captured, model)
    args, kwargs = as_inputs(inputs).args, as_inputs(inputs).kwargs
    state = RandomState.now()
    try:
        seed_all(seed)
        return reference_initialize(model, scheme, layers=facts, x=kwargs or tuple(args))
    finally:
        state.restore()


class _Roles:
    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.mode = "train" if "train" in capture.graphs else "eval"
        self.probed = {layer.path: layer for layer in capture.probe.layers}
        self.additions = {node.node: node for node in capture.nodes(self.mode) if node.operation in _ADDITIONS}

    def of(self, use: LayerUse) -> LayerUse:
        name = f"{use.path}.weight" if use.path else "weight"
        layer = self.probed.get(use.path)
        exempt = layer.exempt if layer is not None else ""
        if layer is not None and layer.zero and layer.executed and not (layer.dead or layer.symmetric):
            exempt = "starts at zero and learns"
        calls = weight_calls(self.capture, name, use.path) if name in self.capture.parameters else []
        if not calls:
            return replace(use, exempt=exempt)
        activation, slope = self._activation(calls)
        return replace(
            use,
            activation=activation,
            slope=slope,
            is_head=self._is_head(calls),
            is_residual_out=any(self._ends_branch(call) for call in calls),
            exempt=exempt,
        )

    def _activation(self, calls: list[NodeFacts]) -> tuple[str | None, float]:
        after_norm = False
        for kind, behind_norm, node in reached(self.capture, calls, PASSES | {"norm"}):
            if kind in _LEAKY:
                return kind, self._slope(kind, node)
            if kind in GAINS:
                return kind, 0.01
            after_norm = after_norm or behind_norm or kind == "norm"
            if kind in (*_ADDITIONS, "softmax", "log_softmax", "linear") or kind.startswith("conv"):
                return "linear", 0.01
        return ("linear" if after_norm or self._is_head(calls) else None), 0.01

    @staticmethod
    def _slope(kind: str, node: NodeFacts) -> float:
        name, default = _SLOPES.get(kind, ("", 0.25))  # PReLU starts at a quarter
        value = node.argument(name, 1 if kind == "leaky_relu" else 2, default) if name else default
        return float(value) if isinstance(value, (int, float)) else default

    def _is_head(self, calls: list[NodeFacts]) -> bool:
        passed = [node for kind, _, node in reached(self.capture, calls, PASSES) if kind in PASSES]
        return any(node.is_output for node in (*calls, *passed))

    # Residual branches -----------------------------------------------------------------------------------------------

    def _ends_branch(self, call: NodeFacts) -> bool:
        """Whether the output of `call` is added to a stream it was computed from, and the sum to another branch."""
        for kind, after_norm, node in reached(self.capture, [call], PASSES):
            if kind in _ADDITIONS and not after_norm and self._adds_to_stream(node, call):
                return self._goes_on(node)
        return False

    def _adds_to_stream(self, addition: NodeFacts, call: NodeFacts) -> bool:
        before = _ancestors(call.node)
        return any(_origin(self.capture, other).node in before for other in addition.inputs if other.node != call.node)

    def _goes_on(self, addition: NodeFacts) -> bool:
        """Whether the sum is itself an operand of an addition, or comes from one, as in a stream without norms on it
        (a post-norm block hands its sum to a norm and nothing else)."""
        users = [node for kind, _, node in reached(self.capture, [addition], PASSES) if kind in _ADDITIONS]
        return bool(users) or any(_origin(self.capture, given).node in self.additions for given in addition.inputs)


def _origin(capture: Capture, node: NodeFacts) -> NodeFacts:
    """The call that a value comes from, through views, casts and dropout."""
    while kind_of_call(capture, node) in PASSES and node.inputs:
        node = node.inputs[0]
    return node


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = [node]
    for current in queue:
        for given in current.all_input_nodes:
            if given not in found:
                found.add(given)
                queue.append(given)
    return found
