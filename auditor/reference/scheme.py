"""Which initialiser belongs to which layer of a model, and its application.

What a layer is for (which activation follows, whether it ends a residual branch) does not show in the module tree: it
comes in as `LayerFacts`, from whoever has seen the model run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from auditor.reference import initialization as init
from auditor.reference.layer_sequential import WEIGHT_LAYERS, lsuv
from auditor.reference.monte_carlo import Inputs

Generator = torch.Generator | None

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Both sides of these saturate, so that the backward pass matters as much as the forward one.
_SATURATING = ("tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid")


class LayerFacts(Protocol):
    """What `initialize` has to know of a layer.

    `path` in the model, `module`; `activation` that follows its output ("linear" for none or a normalisation, None if
    unknown; names of `initialization.GAINS` and "leaky_relu", "prelu", "rrelu" with `slope`); `is_residual_out`: its
    output is added to a residual stream; `is_head`: its output is the model's; `is_embedding`: it is looked up in;
    `tied`: its weight belongs to another layer too; `exempt`: why it must be left as it is ("zero-initialised gate"),
    empty otherwise.
    """

    @property
    def path(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def activation(self) -> str | None: ...
    @property
    def slope(self) -> float: ...
    @property
    def is_residual_out(self) -> bool: ...
    @property
    def is_head(self) -> bool: ...
    @property
    def is_embedding(self) -> bool: ...
    @property
    def tied(self) -> bool: ...
    @property
    def exempt(self) -> str: ...


@dataclass(frozen=True, slots=True)
class LayerUse:
    """The plain form of `LayerFacts`."""

    path: str
    module: nn.Module
    activation: str | None = None
    slope: float = 0.01
    is_residual_out: bool = False
    is_head: bool = False
    is_embedding: bool = False
    tied: bool = False
    exempt: str = ""


@dataclass(frozen=True, slots=True)
class Initialised:
    """One parameter after `initialize`: its name, what it got ("he_normal, relu"; "kept" if nothing) and why."""

    parameter: str
    scheme: str
    reason: str


def module_facts(model: nn.Module) -> list[LayerUse]:
    """What the module tree alone tells of every layer that `initialize` knows; activations are unknown."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return [
        LayerUse(
            path,
            module,
            is_embedding=isinstance(module, _EMBEDDINGS),
            tied=any(owners[id(p)] > 1 for p in module.parameters(recurse=False)),
        )
        for path, module in model.named_modules()
        if isinstance(module, (*WEIGHT_LAYERS, *_EMBEDDINGS, *_NORMS, nn.RNNBase, nn.MultiheadAttention))
    ]


# Schemes that `initialize` applies to every linear and convolutional weight alike, with the activation it knows of.
_Fill = Callable[[Tensor, LayerFacts, Generator], Tensor]
SCHEMES: dict[str, _Fill] = {
    "zeros": lambda weight, use, generator: init.constant(weight, 0.0),
    "small_normal": lambda weight, use, generator: init.small_normal(weight, generator=generator),
    "xavier_normal": lambda weight, use, generator: init.xavier_normal(weight, _gain(use), generator),
    "xavier_uniform": lambda weight, use, generator: init.xavier_uniform(weight, _gain(use), generator),
    "he_normal": lambda weight, use, generator: init.he_normal(
        weight, use.activation or "relu", use.slope, init.fan_in(use.module), generator
    ),
    "he_uniform": lambda weight, use, generator: init.he_uniform(
        weight, use.activation or "relu", use.slope, init.fan_in(use.module), generator
    ),
    "lecun_normal": lambda weight, use, generator: init.lecun_normal(weight, init.fan_in(use.module), generator),
    "orthogonal": lambda weight, use, generator: init.orthogonal(weight, _gain(use), generator),
    "transformer_normal": lambda weight, use, generator: init.transformer_normal(weight, generator=generator),
}


def _gain(use: LayerFacts) -> float:
    return 1.0 if use.activation is None else init.gain(use.activation, use.slope)


def initialize(
    model: nn.Module,
    scheme: str = "auto",
    *,
    layers: Iterable[LayerFacts] | None = None,
    transformer: bool | None = None,
    x: Inputs | None = None,
    generator: Generator = None,
) -> list[Initialised]:
    """Initialise the layers of `model` in place, and say what each of their parameters got.

    `scheme` "auto" chooses for each of `layers`: N(0, 0.02²) in a transformer (1/fan_in where it is narrower than 256),
    He with its gain before ReLU, leaky ReLU, GELU, SiLU; Xavier before tanh and sigmoid; LeCun before SELU, before
    nothing and in the head; recurrent weights Xavier, hidden-to-hidden orthogonal, for each gate, forget gates open;
    the last projection of a residual branch divided by √(number of branches); biases 0, gains of norms 1. A weight
    whose activation is unknown is made orthogonal and, if inputs `x` are given, scaled on them (`lsuv`).
    Another `scheme`, one of `SCHEMES` or "lsuv" (which needs `x`), goes to all linear and convolutional weights, with
    bias 0. Kept as they are: exempt layers, parameters without gradient, that are not floating-point or that a
    parametrization computes. A tied weight is initialised once, as an embedding if it is one.

    `layers`: None for `module_facts(model)`. `transformer`: None to look for attention. Raises ValueError for another
    scheme, for "lsuv" without `x`, and for parameters without values (lazy, meta), before anything is changed.
    """
    uses = list(module_facts(model) if layers is None else layers)
    _check(model, scheme, x)
    chooser = _Chooser(model, uses, scheme, transformer, generator)
    for use in sorted(uses, key=lambda use: not use.is_embedding):
        chooser.apply(use)
    if x is not None and chooser.unknown:
        lsuv(model, x, layers=chooser.unknown, orthogonalise=False)
    return chooser.done


def _check(model: nn.Module, scheme: str, x: Inputs | None) -> None:
    if scheme not in ("auto", "lsuv", *SCHEMES):
        raise ValueError(f"no scheme {scheme!r}; there are auto, lsuv, {', '.join(SCHEMES)}")
    if scheme == "lsuv" and x is None:
        raise ValueError("lsuv scales weights on inputs: give `x`")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ValueError(f"`{name}` has no values yet; materialise the model first")


class _Chooser:
    """Applies one scheme to layer after layer."""

    def __init__(
        self, model: nn.Module, uses: Sequence[LayerFacts], scheme: str, transformer: bool | None, generator: Generator
    ) -> None:
        self.scheme, self.generator = scheme, generator
        self.transformer = _has_attention(model) if transformer is None else transformer
        self.width = _width(uses)
        self.branches = sum(use.is_residual_out for use in uses)
        self.names: dict[int, str] = {}  # of what has been initialised, by identity
        self.unknown: list[str] = []
        self.done: list[Initialised] = []

    def apply(self, use: LayerFacts) -> None:
        module = use.module
        if use.exempt or is_parametrized(module):
            reason = use.exempt or "computed by a parametrization"
            self.done += [Initialised(self._name(use, name), "kept", reason) for name, _ in _own(module)]
            return
        for name, parameter in _own(module):
            full = self._name(use, name)
            if not parameter.requires_grad or not parameter.is_floating_point():
                self.done.append(Initialised(full, "kept", "frozen"))
            elif id(parameter) in self.names:
                self.done.append(Initialised(full, "kept", f"tied to {self.names[id(parameter)]}"))
            else:
                self._fill(use, name, full, parameter)

    @staticmethod
    def _name(use: LayerFacts, name: str) -> str:
        return f"{use.path}.{name}" if use.path else name

    def _fill(self, use: LayerFacts, name: str, full: str, parameter: nn.Parameter) -> None:
        module = use.module
        if isinstance(module, WEIGHT_LAYERS) and name == "weight":
            scheme, reason = self._weight(use, parameter)
        elif isinstance(module, WEIGHT_LAYERS) and name == "bias":
            scheme, reason = _filled(parameter, 0.0, "a bias")
        elif self.scheme != "auto":
            scheme, reason = "kept", "not a linear or convolutional layer"
        elif isinstance(module, _NORMS) and name in ("weight", "bias"):
            scheme, reason = _filled(parameter, float(name == "weight"), "a normalisation")
        elif isinstance(module, _EMBEDDINGS):
            scheme, reason = self._embedding(use, parameter)
        elif isinstance(module, nn.RNNBase):
            scheme, reason = self._recurrent(module, name, parameter)
        elif isinstance(module, nn.MultiheadAttention):
            scheme, reason = self._attention(name, parameter)
        else:
            scheme, reason = "kept", f"no reference for a {type(module).__name__}"
        if scheme != "kept":
            self.names[id(parameter)] = full
        self.done.append(Initialised(full, scheme, reason))

    def _weight(self, use: LayerFacts, weight: Tensor) -> tuple[str, str]:
        """A linear or convolutional weight."""
        scheme, reason = self._choice(use)
        if self.scheme in ("auto", "lsuv") and scheme == "orthogonal":
            self.unknown.append(use.path)
        SCHEMES[scheme](weight, use, self.generator)
        if self.scheme == "auto" and use.is_residual_out and self.branches > 1:
            with torch.no_grad():
                weight.div_(math.sqrt(self.branches))
            return f"{scheme} / √{self.branches}", f"{reason}; ends one of {self.branches} residual branches"
        return scheme, reason

    def _choice(self, use: LayerFacts) -> tuple[str, str]:
        """Name in `SCHEMES`, and why."""
        if self.scheme != "auto":
            return ("orthogonal" if self.scheme == "lsuv" else self.scheme), "as asked"
        if self.transformer and isinstance(use.module, nn.Linear):
            scheme = "transformer_normal" if self.width >= 256 else "lecun_normal"
            return scheme, f"a transformer of width {self.width}"
        if use.is_head:
            return "lecun_normal", "the head"
        if use.activation is None:
            return "orthogonal", "unknown activation"
        if use.activation in ("linear", "selu"):
            return "lecun_normal", "no activation" if use.activation == "linear" else "SELU"
        return ("xavier_normal" if use.activation in _SATURATING else "he_normal"), use.activation

    def _embedding(self, use: LayerFacts, weight: Tensor) -> tuple[str, str]:
        std = 1.0
        if self.transformer or use.tied:
            std = init.transformer_std(weight.shape[1])
        init.normal(weight, std, self.generator)
        padding = getattr(use.module, "padding_idx", None)
        if padding is not None:
            with torch.no_grad():
                weight[padding].zero_()
        return f"normal, std {std:.3g}", "an embedding" + (" tied to the head" if use.tied else "")

    def _recurrent(self, module: nn.RNNBase, name: str, parameter: Tensor) -> tuple[str, str]:
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        if name.startswith("weight_hh"):
            init.recurrent_orthogonal(parameter, gates, generator=self.generator)
            return f"recurrent_orthogonal, {gates} gates", "hidden to hidden"
        if name.startswith("weight"):
            for block in parameter.chunk(gates if name.startswith("weight_ih") else 1):
                init.xavier_normal(block, generator=self.generator)
            return "xavier_normal", "for each gate"
        init.constant(parameter, 0.0)
        if module.mode == "LSTM" and name.startswith("bias_ih"):
            # Gers et al. 2000; Jozefowicz et al. 2015: memory is kept until there is a reason to forget
            init.constant(parameter.detach().chunk(4)[1], 1.0)
            return "zeros, forget gate ones", "a bias"
        return "zeros", "a bias"

    def _attention(self, name: str, parameter: Tensor) -> tuple[str, str]:
        """The projections that `torch.nn.MultiheadAttention` holds itself; its `out_proj` is a layer of its own."""
        if name == "in_proj_bias":
            return _filled(parameter, 0.0, "a bias")
        std = init.transformer_std(parameter.shape[-1])
        init.transformer_normal(parameter, std, self.generator)
        return f"normal, std {std:.3g}", "an attention"


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _filled(parameter: Tensor, value: float, reason: str) -> tuple[str, str]:
    init.constant(parameter, value)
    return ("ones" if value else "zeros"), reason


def _has_attention(model: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in model.modules())


def _width(uses: Sequence[LayerFacts]) -> int:
    """The width of the residual stream of a transformer: what most of its linear layers read."""
    widths = Counter(use.module.in_features for use in uses if isinstance(use.module, nn.Linear))
    return widths.most_common(1)[0][0] if widths else 0
