"""Dropout and its relatives in plain tensor operations, as their papers define them.

Throughout, p is the share that is dropped, in [0, 1] (ValueError otherwise), masks are drawn from `generator` (torch's
default one if None), and all but `classical_dropout` scale by 1/(1 − p) in training, so that the expectation in
training is the output in evaluation and evaluation is the identity. Floating-point tensors of any shape, unless said
otherwise; the result has the shape, the dtype and the device of the input. On the CPU the masks, and so the outputs,
are those that torch's own functions draw from the same seed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# −λα, the value that SELU saturates at, with torch's digits (Klambauer et al. 2017, section 1 of the appendix).
_SELU_FLOOR = -1.7580993408473766


def _check(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a dropout rate lies between 0 and 1, this one is {p}")


def _scaled(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """x · mask / (1 − p), and zero for p = 1; `mask` broadcasts against `x` and is overwritten."""
    return x * (mask.div_(1.0 - p) if p < 1.0 else mask.zero_())


def inverted_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Training: x · m / (1 − p), m ~ Bernoulli(1 − p) for each element. Evaluation: x.

    The form that `torch.nn.Dropout` and every current framework have. Srivastava et al., "Dropout: A Simple Way to
    Prevent Neural Networks from Overfitting", JMLR 2014, section 10 describes it as the equivalent of its own.
    """
    _check(p)
    if not training or p == 0.0:
        return x
    return _scaled(x, torch.empty_like(x).bernoulli_(1.0 - p, generator=generator), p)


def classical_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Training: x · m, m ~ Bernoulli(1 − p) for each element. Evaluation: x · (1 − p).

    The original form. Srivastava et al. 2014, section 4 (there on the weights behind it, which is the same).
    It is (1 − p) times `inverted_dropout` in both modes: see `weight_behind_inverted`.
    """
    _check(p)
    if not training:
        return x * (1.0 - p)
    return x * torch.empty_like(x).bernoulli_(1.0 - p, generator=generator)


def weight_behind_inverted(weight: Tensor, p: float) -> Tensor:
    """The weight (bias unchanged) with which a layer behind `inverted_dropout` computes, in training and in evaluation,
    what it computes with `weight` behind `classical_dropout`: W · (1 − p).

    The way back is division by 1 − p. To take a classically trained network over without this scales every such layer
    by 1/(1 − p).
    """
    _check(p)
    return weight * (1.0 - p)


def attention_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    p: float = 0.1,
    training: bool = True,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """dropout(softmax(Q Kᵀ/√d + mask), p) V: whole attention weights are dropped, rows do not sum to 1 in training.

    `query` (…, L, d), `key` (…, S, d), `value` (…, S, e) → (…, L, e). `mask` broadcasts to (…, L, S): boolean (True
    takes part) or added to the logits. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1; dropout on the
    weights as in its reference code and in `torch.nn.functional.scaled_dot_product_attention`, which has no `training`
    and drops whenever its rate is not 0.
    """
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return inverted_dropout(logits.softmax(-1), p, training, generator) @ value


def spatial_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, rank: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Inverted dropout of whole channels: one mask value for each sample and channel.

    `x` has `rank` (1, 2 or 3) positional axes: (N, C, L), (N, C, H, W) or (N, C, D, H, W); ValueError otherwise, since
    on (N, L, C) it would drop positions. Tompson et al., "Efficient Object Localization Using Convolutional Networks",
    2015, section 3.2: neighbouring pixels carry the same signal, so that dropping one of them loses little.
    """
    _check(p)
    if rank not in (1, 2, 3) or x.dim() != rank + 2:
        raise ValueError(f"spatial dropout of rank {rank} needs {rank + 2} axes, (N, C, …), got {tuple(x.shape)}")
    if not training or p == 0.0:
        return x
    mask = x.new_empty([*x.shape[:2], *[1] * rank]).bernoulli_(1.0 - p, generator=generator)
    return _scaled(x, mask, p)


def stochastic_depth(
    branch: Tensor, p: float, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Drops a residual branch (N, …) for whole samples: x + stochastic_depth(f(x), p).

    Training: branch · m_n / (1 − p), one m_n ~ Bernoulli(1 − p) for each sample. Evaluation: branch. Huang et al.,
    "Deep Networks with Stochastic Depth", 2016, section 3, draw one m for the batch and scale at test time (equation
    5); one for each sample, scaled in training, has the same expectation and less noise, and is what is used today.
    """
    _check(p)
    if not training or p == 0.0:
        return branch
    mask = branch.new_empty([len(branch), *[1] * (branch.dim() - 1)]).bernoulli_(1.0 - p, generator=generator)
    return _scaled(branch, mask, p)


def depth_rates(last: float, layers: int) -> list[float]:
    """The linear schedule of stochastic depth: block l of L is dropped with p_l = last · l / L, l = 1 … L.

    Huang et al. 2016, equation 4 (their survival probability is 1 − p_l and `last` is 0.5). Early blocks, on which the
    others build, are kept.
    """
    _check(last)
    return [last * layer / layers for layer in range(1, layers + 1)]


def drop_connect(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A linear layer whose weights are dropped one by one, independently for each row of `x`.

    Training: y_n = (M_n ⊙ W) x_n / (1 − p) + b, M_n ~ Bernoulli(1 − p) of the shape of W. Evaluation: W x + b.
    `x` (…, in), `weight` (out, in), `bias` (out) → (…, out); memory for rows × out × in mask values in training.
    Wan et al., "Regularization of Neural Networks using DropConnect", 2013, section 3; they drop the bias too and, at
    test time, average the activation over the normal distribution of `drop_connect_moments` instead of taking its mean.
    """
    _check(p)
    if not training or p == 0.0:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    mask = weight.new_empty([len(rows), *weight.shape]).bernoulli_(1.0 - p, generator=generator)
    y = torch.einsum("noi,ni->no", _scaled(weight, mask, p), rows).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def drop_connect_moments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mean and variance over the masks of `drop_connect` in training: W x + b and p/(1 − p) · (W ⊙ W)(x ⊙ x).

    Wan et al. 2013, section 3.2, for the scaling in training. ValueError for p = 1, where the variance is infinite.
    """
    _check(p)
    if p == 1.0:
        raise ValueError("all weights are dropped at p = 1")
    return F.linear(x, weight, bias), F.linear(x.square(), weight.square()) * (p / (1.0 - p))


def alpha_dropout(x: Tensor, p: float = 0.5, training: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Dropout that keeps mean 0 and variance 1, for networks of SELU.

    Training: a · (x · m + α' · (1 − m)) + b with m ~ Bernoulli(1 − p), α' = −λα (what SELU tends to at −∞),
    a = ((1 − p)(1 + p α'²))^(−1/2) and b = −a p α'. Evaluation: x. Klambauer et al., "Self-Normalizing Neural
    Networks", 2017, section 2, equation for "alpha dropout". Zero for p = 1.
    """
    _check(p)
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * torch.zeros((), dtype=x.dtype, device=x.device)
    mask = torch.empty_like(x).bernoulli_(1.0 - p, generator=generator)
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * _SELU_FLOOR**2))
    return x * (mask * scale) + ((mask - 1.0) * (-_SELU_FLOOR * scale) - scale * p * _SELU_FLOOR)


class ClassicalDropout(nn.Module):
    """`classical_dropout` as a layer; p may be changed."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        _check(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return classical_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class StochasticDepth(ClassicalDropout):
    """`stochastic_depth` as the last layer of a residual branch."""

    def forward(self, x: Tensor) -> Tensor:
        return stochastic_depth(x, self.p, self.training)


class DropConnectLinear(nn.Linear):
    """`torch.nn.Linear` with `drop_connect` on its weights; same parameters, so that one can be loaded as the other."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5) -> None:
        super().__init__(in_features, out_features, bias)
        _check(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop_connect(x, self.weight, self.bias, self.p, self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
