"""What test steps and reseeded runs show: signal, gradient, symmetry of each weight layer; random numbers in eval."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from auditor.dynamic.record import cloned, reason_of, tensors_in
from auditor.dynamic.state import preserved, seed_all
from auditor.finding import Location

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture, NodeFacts, ParameterFacts


@dataclass
class LayerProbe:
    """One weight of one linear, convolutional or recurrent layer.

    `order`: how many weight layers ran before it (last call), None if it did not run (`executed` False).
    `in_rms`, `out_rms`, `sens`: of its input, output, and the share of its input's energy that differs between samples;
    `out_rms` is the largest over calls. `dup_before`, `dup_after`: share of its rows (output units) that repeat another
    row, at the start and after the steps. `spike`: strength of the mean against the bulk (above 1: a rank-one spike).
    `live_step`: first step, from 1, with a gradient other than 0. `exempt`: why repeated rows are by design.
    `activation` follows it without another weight layer or addition between; `normalised_after`: a norm comes first.
    `tied`: other names of the same tensor. `detached`: it only ran without gradients being recorded. `connected`: the
    loss depends on it as far as autograd knows (False: its output goes nowhere, or was detached).
    """

    name: str
    path: str
    weight: str
    kind: str
    facts: ParameterFacts
    location: Location
    shape: tuple[int, ...]
    requires_grad: bool
    zero: bool
    dup_before: float
    spike: float
    gain: float
    exempt: str = ""
    tied: tuple[str, ...] = ()
    activation: str | None = None
    normalised_after: bool = False
    executed: bool = False
    detached: bool = True
    connected: bool = False
    order: int | None = None
    in_rms: float | None = None
    out_rms: float | None = None
    in_shape: tuple[int, ...] | None = None
    sens: float | None = None
    dup_after: float | None = None
    grad_rms: float | None = None
    live_step: int | None = None
    steps: int = 0

    @property
    def dead(self) -> bool:
        """It ran, should learn, and no step gave it a gradient."""
        return self.executed and self.requires_grad and self.steps > 0 and self.live_step is None

    @property
    def duplicated(self) -> bool:
        """More than half of its rows repeat others from the start, and it is not all zero."""
        return self.dup_before > 0.5 and not self.zero and self.requires_grad and not self.exempt

    @property
    def symmetric(self) -> bool:
        """More than half of its rows still repeat others after the steps."""
        repeated = self.dup_after is not None and self.dup_after > 0.5
        return repeated and self.executed and self.requires_grad and not self.exempt


@dataclass
class UnitProbe:
    """One call of a nonlinearity in the first step. `saturated`: share of tanh beyond ±0.97, of sigmoid beyond 0.015.

    `zeros`: share of zeros; `dead_units`: share of units (channels, features) that are zero for the whole batch.
    """

    activation: str
    path: str
    location: Location
    saturated: float
    zeros: float
    dead_units: float


@dataclass
class Probe:
    """The outcome of the initialisation probe; `ran` False with its `reason` where it could not be run.

    `head`: the last executed weight layer; `head_rms` its input's rms; `initial_sens`, `sens_after` its input's
    between-sample share before and after the steps. `loss`: cross-entropy at the start with `classes`, both None where
    the output is no table of logits. `logit_std`: of the main output. `nonfinite`: names of what was NaN or infinite.
    `batch`: samples used; `regenerated`: whether inputs were drawn anew (else those given were used).
    """

    ran: bool = False
    reason: str = ""
    layers: list[LayerProbe] = field(default_factory=list)
    units: list[UnitProbe] = field(default_factory=list)
    head: LayerProbe | None = None
    head_rms: float | None = None
    initial_sens: float | None = None
    sens_after: float | None = None
    loss: float | None = None
    classes: int | None = None
    logit_std: float | None = None
    nonfinite: list[str] = field(default_factory=list)
    gradients: dict[str, float | None] = field(default_factory=dict)
    steps: int = 0
    batch: int = 0
    regenerated: bool = False

    @property
    def failure(self) -> str:
        """Why it could not be run; empty if it could."""
        return "" if self.ran else self.reason

    @property
    def executed(self) -> list[LayerProbe]:
        return [layer for layer in self.layers if layer.executed]

    @property
    def dead(self) -> list[LayerProbe]:
        return [layer for layer in self.layers if layer.dead]

    @property
    def symmetric(self) -> list[LayerProbe]:
        return [layer for layer in self.layers if layer.symmetric]

    @property
    def duplicated(self) -> list[LayerProbe]:
        return [layer for layer in self.layers if layer.duplicated]

    @property
    def largest_rms(self) -> float:
        """The largest output rms of any weight layer."""
        return max((layer.out_rms for layer in self.executed if layer.out_rms is not None), default=0.0)


@dataclass
class RngUse:
    """Random numbers in eval mode. `generators`: which moved ("torch", "python", "numpy").

    `nodes`: the calls that drew from torch's. `outputs_differ`: whether two seeds give two outputs; None if nothing was
    drawn or it could not be run again (`reason`).
    """

    used: bool
    generators: tuple[str, ...] = ()
    nodes: list[NodeFacts] = field(default_factory=list)
    outputs_differ: bool | None = None
    reason: str = ""


# Random numbers in eval -----------------------------------------------------------------------------------------------


def use_of_generators(capture: Capture) -> RngUse:
    """Whether the recorded eval forward moved any generator (exact), which calls did, and whether it matters."""
    if "eval" not in capture.moved:
        return RngUse(False, reason=capture.rungs["eval"].reason)
    generators = capture.moved["eval"]
    nodes = [node for node in capture.nodes("eval") if node.random]
    if not generators and not nodes:
        return RngUse(False)
    try:
        first, second = (_outputs_under(capture, capture.seed + shift) for shift in (1, 2))
    except Exception as error:  # whatever user code raises
        return RngUse(True, generators, nodes, None, reason_of(error))
    differ = len(first) != len(second) or not all(map(_identical, first, second))
    return RngUse(True, generators, nodes, differ)


def _outputs_under(capture: Capture, seed: int) -> list[torch.Tensor]:
    args, kwargs = cloned((tuple(capture.inputs.args), dict(capture.inputs.kwargs)))
    with preserved(capture.model), torch.no_grad():
        capture.model.eval()
        seed_all(seed)
        return tensors_in(capture.model(*args, **kwargs))


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
