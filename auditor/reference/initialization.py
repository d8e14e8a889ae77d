"""Initialisers of weights in plain tensor operations, and the gain that each activation asks for.

Every initialiser fills `tensor` in place, without gradients, and returns it; it draws from `generator` (torch's default
one if None), and from the same seed draws what the function of that name in `torch.nn.init` draws. Weights are laid
out as torch does: (out, in) for linear layers, (out, in/groups, *kernel) for convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from auditor.reference.propagation import second_moment

# Activation → gain of the reference initialisation. √2 for GELU and SiLU although `moment_gain` is 1.53 and 1.68: with
# those, one step from the fixed point grows from layer to layer; plain nets of 20 such layers then diverge under SGD.
# 1 for tanh and ELU, as their papers have it: both come to rest near their linear part. (torch's `calculate_gain` has
# 5/3 for tanh, which saturates deep nets, and 3/4 for SELU, which gives up self-normalisation.)
GAINS = {
    **dict.fromkeys(("linear", "sigmoid", "tanh", "elu", "selu"), 1.0),
    **dict.fromkeys(("relu", "gelu", "silu", "softplus"), math.sqrt(2.0)),
    # close to one of the above
    **dict.fromkeys(("celu", "hardsigmoid", "hardtanh", "logsigmoid", "softsign"), 1.0),
    **dict.fromkeys(("hardswish", "mish", "relu6"), math.sqrt(2.0)),
}
_LEAKY = ("leaky_relu", "prelu", "rrelu")


def gain(activation: str, slope: float = 0.01) -> float:
    """The gain g for a layer that is followed by `activation`: its weights get the variance g²/fan_in.

    √(2/(1 + a²)) for "leaky_relu", "prelu" and "rrelu" of (mean) negative slope a (He et al. 2015, equation 15), else
    from `GAINS`. Raises KeyError for another name.
    """
    return math.sqrt(2.0 / (1.0 + slope**2)) if activation in _LEAKY else GAINS[activation]


def moment_gain(activation: str, slope: float = 0.01) -> float:
    """The gain that keeps the second moment of the signal exactly at 1: 1/√E[φ(z)²], z ~ N(0, 1).

    ReLU √2, tanh 1.59, GELU 1.53, SiLU 1.68, SELU 1. `propagation.ACTIVATIONS` are known; KeyError for others.
    """
    return gain(activation, slope) if activation in _LEAKY else 1.0 / math.sqrt(second_moment(activation, 1.0))


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """fan_in and fan_out of a weight (out, in, *kernel): how many products an output sums, and how many outputs an
    input feeds (at stride 1, without groups). ValueError for fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"fans need at least two axes, got {tuple(shape)}")
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def fan_in(module: nn.Module) -> float:
    """Products that one output of a linear, convolutional or transposed convolutional layer sums.

    A transposed convolution keeps its weight as (in, out/groups, *kernel), and only one in ∏stride of its taps meets an
    input: in/groups · ∏kernel/∏stride. `torch.nn.init` takes the out channels for it.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        taps = math.prod(module.kernel_size) / math.prod(module.stride)
        return module.in_channels // module.groups * taps
    return float(fans(weight.shape)[0])


@torch.no_grad()
def constant(tensor: Tensor, value: float = 0.0) -> Tensor:
    """Counter-example for weights: every unit computes the same and gets the same gradient, for ever; with value 0 and
    ReLU no gradient at all. Right for biases (0) and the gain of a normalisation (1). Goodfellow et al., "Deep
    Learning", section 8.4.
    """
    return tensor.fill_(value)


@torch.no_grad()
def normal(tensor: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """N(0, std²)."""
    return tensor.normal_(0.0, std, generator=generator)


def small_normal(tensor: Tensor, std: float = 0.01, generator: torch.Generator | None = None) -> Tensor:
    """N(0, std²) whatever the width. Breaks symmetry, but the signal is multiplied by std·√fan_in (and the gain of the
    activation) in each layer: it vanishes in deep nets without normalisation. Krizhevsky et al. 2012, section 5.
    """
    return normal(tensor, std, generator)


def xavier_normal(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """N(0, g² · 2/(fan_in + fan_out)), between what the forward and what the backward pass ask for.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, equation 12.
    """
    return normal(tensor, gain * math.sqrt(2.0 / sum(fans(tensor.shape))), generator)


@torch.no_grad()
def xavier_uniform(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """U(−b, b), b = g √(6/(fan_in + fan_out)): the variance of `xavier_normal`. Glorot and Bengio 2010, equation 16."""
    bound = gain * math.sqrt(6.0 / sum(fans(tensor.shape)))
    return tensor.uniform_(-bound, bound, generator=generator)


def he_normal(
    tensor: Tensor,
    activation: str = "relu",
    slope: float = 0.01,
    fan: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """N(0, gain²/fan_in): 2/fan_in for ReLU, 2/((1 + a²) fan_in) for a leaky slope a.

    He et al., "Delving Deep into Rectifiers", 2015, equations 10 and 15. `fan`: fan_in where the shape does not tell.
    """
    return normal(tensor, gain(activation, slope) / math.sqrt(fan or fans(tensor.shape)[0]), generator)


@torch.no_grad()
def he_uniform(
    tensor: Tensor,
    activation: str = "relu",
    slope: float = 0.01,
    fan: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """U(−b, b), b = gain √(3/fan_in): the variance of `he_normal`."""
    bound = gain(activation, slope) * math.sqrt(3.0 / (fan or fans(tensor.shape)[0]))
    return tensor.uniform_(-bound, bound, generator=generator)


def lecun_normal(tensor: Tensor, fan: float | None = None, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 1/fan_in). LeCun et al., "Efficient BackProp", 1998, section 4.6; what SELU asks for (Klambauer 2017)."""
    return he_normal(tensor, "linear", fan=fan, generator=generator)


@torch.no_grad()
def orthogonal(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """g times a random matrix with orthonormal rows or columns (whichever are fewer), of all but the first axis
    together.

    Q of the QR decomposition of a normal matrix, signs made those of the diagonal of R so that Q is uniform. Saxe et
    al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014, section 3: keeps
    the norm of every signal and gradient in a linear network; behind ReLU it needs gain √2.
    """
    rows, columns = tensor.shape[0], tensor[0].numel()
    flat = tensor.new_empty((rows, columns)).normal_(0.0, 1.0, generator=generator)
    # QR exists in single and double precision only
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    q, r = torch.linalg.qr(wide.t() if rows < columns else wide)
    q = q * r.diagonal().sign()
    return tensor.copy_((q.t() if rows < columns else q).reshape(tensor.shape)).mul_(gain)


def recurrent_orthogonal(
    weight: Tensor, gates: int = 1, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """`orthogonal` for each gate of a recurrent weight (gates · hidden, hidden): one gate in an RNN, 3 in a GRU, 4 in
    an LSTM. Of the whole matrix at once, a gate would only get 1/√gates of the norm. Saxe et al. 2014; Le et al., "A
    Simple Way to Initialize Recurrent Networks of Rectified Linear Units", 2015.
    """
    for block in weight.chunk(gates):
        orthogonal(block, gain, generator)
    return weight


def transformer_std(width: int) -> float:
    """0.02 from width 256 on, else 1/√width. 0.02 is what GPT (Radford et al. 2018, section 4.1) and BERT use; in a
    narrow model it is far below LeCun's scale and works only because normalisation hides it.
    """
    return 0.02 if width >= 256 else 1.0 / math.sqrt(width)


def transformer_normal(weight: Tensor, std: float = 0.02, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 0.02²) for linear layers and embeddings, whose biases are 0. Radford et al. 2018; Devlin et al. 2019."""
    return normal(weight, std, generator)


def residual_projection(
    weight: Tensor, branches: int, std: float = 0.02, generator: torch.Generator | None = None
) -> Tensor:
    """N(0, std²/branches) for the last projection of each of `branches` residual branches (2 for each block of a
    transformer: 1/√(2·layers)), so that their sum does not grow with depth. Radford et al., "Language Models are
    Unsupervised Multitask Learners" (GPT-2), 2019, section 2.3.
    """
    return normal(weight, std / math.sqrt(branches), generator)
