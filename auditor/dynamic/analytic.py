"""How strong the signal is at each call of a recorded graph, computed from initialisers instead of values.

For models that are too large to run: shapes come from a run on the meta device, the second moments of the weights from
their initialisers, and each call maps the second moments of what it takes to that of what it gives, by the formulas of
`reference/propagation.py` (inputs have second moment 1; different signals count as uncorrelated). Beside it goes the
part of the moment that all positions share: attention averages away what they do not share, and what it gives is nearly
the same everywhere. What no formula is known for has no moment, and neither has what depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from auditor.dynamic.flow import CONVOLUTIONS, PASSES, kind_of_call
from auditor.reference.propagation import ACTIVATIONS, paired_moment, second_moment

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts

SWISHES = {"hardswish": "silu", "mish": "silu", "swish": "silu", "relu6": "relu"}


class Signal(NamedTuple):
    """E[x²] of a tensor's entries, and E[x y] of the same entry at two positions."""

    moment: float
    shared: float = 0.0

    def times(self, factor: float) -> Signal:
        return Signal(self.moment * factor, self.shared * factor)


def second_moments(capture: Capture, mode: str, weights: Mapping[str, float]) -> dict[str, float]:
    """E[x²] of the results of the recorded calls, by node name; `weights`: E[w²] by name of parameter."""
    return {name: signal.moment for name, signal in _Propagation(capture, weights).run(mode).items()}


class _Propagation:
    def __init__(self, capture: Capture, weights: Mapping[str, float]) -> None:
        self.capture, self.weights = capture, weights
        self.signals: dict[str, Signal] = {}
        self.logits: dict[str, float] = {}  # variance of what a softmax was taken of, by node of its result

    def run(self, mode: str) -> dict[str, Signal]:
        for node in self.capture.graphs[mode].nodes:
            facts = self.capture.facts(node)
            signal = self._signal(facts)
            if signal is not None and math.isfinite(signal.moment):
                self.signals[facts.name] = signal
        return self.signals

    def _signal(self, node: NodeFacts) -> Signal | None:
        if node.op == "placeholder":
            return Signal(1.0) if node.dtype is not None and node.dtype.is_floating_point else None
        if node.op == "get_attr":
            known = self.weights.get(node.parameter)
            return None if known is None else Signal(known, known)
        if node.op != "call_function":
            return None
        kind = kind_of_call(self.capture, node)
        kind = SWISHES.get(kind, kind)
        if kind == "norm":
            return self.normalised(node)
        if kind in PASSES:
            return self.passed(node)
        rule = RULES.get(kind)
        if rule is not None:
            return rule(self, node)
        return self.activated(node, kind) if kind in ACTIVATIONS else None

    def _of(self, value: Any) -> Signal | None:
        """What is known of an argument: a node or a number."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Signal(float(value) ** 2, float(value) ** 2)
        return self.signals.get(getattr(value, "name", ""))

    # Calls ------------------------------------------------------------------------------------------------------------

    def passed(self, node: NodeFacts) -> Signal | None:
        source = next(iter(node.inputs), None)
        if source is not None and source.name in self.logits:
            self.logits[node.name] = self.logits[source.name]
        return None if source is None else self._of(source)

    def activated(self, node: NodeFacts, kind: str) -> Signal | None:
        given = self._of(node.argument("input", 0))
        if given is None:
            return None
        correlation = given.shared / given.moment if given.moment else 0.0
        return Signal(second_moment(kind, given.moment), paired_moment(kind, given.moment, round(correlation, 2)))

    def normalised(self, node: NodeFacts) -> Signal:
        """Inside or behind a norm: 1, times the square of the gain."""
        gain = self.weights.get(f"{node.module}.weight" if node.module else "weight", 1.0)
        given = next((self._of(source) for source in node.inputs if source.op != "get_attr"), None)
        correlation = given.shared / given.moment if given is not None and given.moment else 0.0
        return Signal(gain, gain * correlation)

    def linear(self, node: NodeFacts) -> Signal | None:
        weight = node.argument("weight", 1)
        return self._weighted(node, weight, weight.shape[-1] if getattr(weight, "shape", None) else None)

    def convolution(self, node: NodeFacts) -> Signal | None:
        weight = node.argument("weight", 1)
        shape = getattr(weight, "shape", None)
        return self._weighted(node, weight, math.prod(shape[1:]) if shape else None)

    def _weighted(self, node: NodeFacts, weight: Any, fan_in: int | None) -> Signal | None:
        given, spread = self._of(node.argument("input", 0)), self._of(weight)
        if given is None or spread is None or fan_in is None:
            return None
        bias = self._of(node.argument("bias", 2))
        result = given.times(spread.moment * fan_in)
        return result if bias is None else Signal(result.moment + bias.moment, result.shared + bias.moment)

    def embedding(self, node: NodeFacts) -> Signal | None:
        table = self._of(node.argument("weight", 1))
        return None if table is None else Signal(table.moment)

    def product(self, node: NodeFacts) -> Signal | None:
        """Of matrices: attention weights with values, queries with keys, signals with weights."""
        left, right = node.argument("input", 0), node.argument("other", 1)
        shape = getattr(left, "shape", None)
        if not shape:
            return None
        if getattr(left, "name", "") in self.logits:
            values = self._of(right)
            return None if values is None else self._averaged(values, shape[-1], self.logits[left.name])
        first, second = self._of(left), self._of(right)
        return None if first is None or second is None else first.times(second.moment * shape[-1])

    def attention(self, node: NodeFacts) -> Signal | None:
        query, key, value = (node.argument(name, place) for place, name in enumerate(("query", "key", "value")))
        queries, keys, values = self._of(query), self._of(key), self._of(value)
        if queries is None or keys is None or values is None or not getattr(key, "shape", None):
            return None
        scale = node.argument("scale", 6) or key.shape[-1] ** -0.5
        logits = queries.moment * (keys.moment - keys.shared) * key.shape[-1] * scale**2
        return self._averaged(values, key.shape[-2], logits)

    def _averaged(self, values: Signal, positions: int, logits: float) -> Signal:
        """Values averaged over positions with weights from logits of this variance: what they share stays."""
        own = max(values.moment - values.shared, 0.0)
        moment = values.shared + own * min(1.0, math.exp(min(logits, 3.0)) / positions)
        return Signal(moment, values.shared + own / positions)

    def softmax(self, node: NodeFacts) -> None:
        given = self._of(node.argument("input", 0))
        self.logits[node.name] = 0.0 if given is None else given.moment

    def sum(self, node: NodeFacts) -> Signal | None:
        other = node.argument("other", 1)
        first, second = self._of(node.argument("input", 0)), self._of(other)
        if first is None or second is None:  # logits plus a mask stay the logits that they are, where they are shown
            return first if "mask" in getattr(other, "name", "") else None
        return Signal(first.moment + second.moment, first.shared + second.shared)

    def times(self, node: NodeFacts) -> Signal | None:
        left, right = node.argument("input", 0), node.argument("other", 1)
        first, second = self._of(left), self._of(right)
        if first is not None and second is not None:
            return Signal(first.moment * second.moment, first.shared * second.shared)
        known = first or second
        return known.times(0.5) if known is not None and self._is_wave(left, right) else None

    def _is_wave(self, *parts: Any) -> bool:
        """Whether a factor is a sine or cosine of positions (rotary embedding), whose mean square is 1/2."""
        queue = [part for part in parts if hasattr(part, "inputs")]
        for _ in range(6):
            if any(part.operation in ("cos", "sin") or part.parameter.endswith(("cos", "sin")) for part in queue):
                return True
            queue = [source for part in queue if part.operation in PASSES for source in part.inputs]
        return False

    def quotient(self, node: NodeFacts) -> Signal | None:
        given, divisor = self._of(node.argument("input", 0)), node.argument("other", 1)
        if given is None or not isinstance(divisor, (int, float)) or not divisor:
            return None
        return given.times(float(divisor) ** -2)

    def joined(self, node: NodeFacts) -> Signal | None:
        """Concatenated: the mean, weighted by size."""
        sizes = [math.prod(part.shape or ()) for part in node.inputs]
        signals = [self._of(part) for part in node.inputs]
        known = [signal for signal in signals if signal is not None]
        if not known or len(known) < len(signals):
            return None
        total = max(1, sum(sizes))
        moment = sum(signal.moment * size for signal, size in zip(known, sizes, strict=True)) / total
        return Signal(moment, sum(signal.shared * size for signal, size in zip(known, sizes, strict=True)) / total)


RULES: dict[str, Callable[[_Propagation, NodeFacts], Signal | None]] = {
    "linear": _Propagation.linear,
    **dict.fromkeys((name for name in CONVOLUTIONS if "transpose" not in name), _Propagation.convolution),
    "embedding": _Propagation.embedding,
    **dict.fromkeys(("matmul", "bmm", "mm"), _Propagation.product),
    "scaled_dot_product_attention": _Propagation.attention,
    "softmax": _Propagation.softmax,
    **dict.fromkeys(("add", "sub"), _Propagation.sum),
    "mul": _Propagation.times,
    "div": _Propagation.quotient,
    **dict.fromkeys(("cat", "concat", "stack"), _Propagation.joined),
    **dict.fromkeys(("neg", "roll", "flip", "repeat_interleave", "repeat", "masked_fill"), _Propagation.passed),
}
