"""Final training loss of models with a broken start, as they are and after `auditor.rewrite`, under Adam and SGD.

    python benchmarks/training.py [--steps 150]

The failures are those of deep plain nets: weights that are too small, too large, constant, zero or all positive, and
torch's default at depth. Trained on the digits of scikit-learn where it is installed (8 × 8 pixels, 10 classes), else
on Gaussian classes of the same shape; batches of 64, Adam with rate 1e-3, SGD with rate 0.02 and momentum 0.9. A model
that has learnt nothing stays at ln 10 = 2.30. The same seeds before and after; a table in Markdown.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auditor

STOP = 0.15  # a loss at which a run ends early


def data() -> tuple[Tensor, Tensor, str]:
    """Inputs (N, 64), standardised, labels (N), and where they come from."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(10, (1800,), generator=generator)
        centres = 2 * torch.randn((10, 64), generator=generator)
        return centres[labels] + torch.randn((1800, 64), generator=generator), labels, "Gaussian classes"
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(digits.target), "digits"


def plain(depth: int, activation: Callable[[], nn.Module], norm: bool = False, width: int = 128) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(nn.Linear(64 if index == 0 else width, width))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers.append(activation())
    return nn.Sequential(*layers, nn.Linear(width, 10))


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def fill(model: nn.Module, write: Callable[[Tensor], object]) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                write(module.weight)
                assert module.bias is not None
                module.bias.zero_()
    return model


def he_times(factor: float, activation: str) -> Callable[[Tensor], object]:
    return lambda w: nn.init.kaiming_normal_(w, nonlinearity=activation).mul_(factor)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp_relu_d8 N(0, .01)": lambda: fill(plain(8, nn.ReLU), lambda w: w.normal_(0, 0.01)),
    "mlp_relu_d8 ×10": lambda: fill(plain(8, nn.ReLU), he_times(10, "relu")),
    "mlp_relu_d8 zeros": lambda: fill(plain(8, nn.ReLU), lambda w: w.zero_()),
    "mlp_relu_d8 constant": lambda: fill(plain(8, nn.ReLU), lambda w: w.fill_(0.05)),
    "mlp_relu_d20 default": lambda: plain(20, nn.ReLU),
    "mlp_tanh_d20 N(0, .01)": lambda: fill(plain(20, nn.Tanh), lambda w: w.normal_(0, 0.01)),
    "mlp_tanh_d20 ×10": lambda: fill(plain(20, nn.Tanh), he_times(10, "tanh")),
    "lenet N(0, 1)": lambda: fill(lenet(), lambda w: w.normal_(0, 1)),
    "mlp_bn_d12 U(0, 1)": lambda: fill(plain(12, nn.ReLU, norm=True), lambda w: w.uniform_(0, 1)),
}


def final_loss(model: nn.Module, x: Tensor, labels: Tensor, optimiser: str, steps: int) -> float:
    """Mean loss of the last ten steps; NaN or infinite where it has diverged."""
    model = copy.deepcopy(model).train()
    parameters = list(model.parameters())
    step = torch.optim.Adam(parameters, 1e-3) if optimiser == "Adam" else torch.optim.SGD(parameters, 0.02, 0.9)
    generator, losses = torch.Generator().manual_seed(0), [math.inf]
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        loss = F.cross_entropy(model(x[rows]), labels[rows])
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
        last = losses[-10:]
        if not math.isfinite(losses[-1]) or sum(last) / len(last) < STOP:
            break
    last = losses[-10:]
    return sum(last) / len(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    x, labels, source = data()
    print(f"{source}, {steps} steps, torch {torch.__version__}; loss before / after\n")
    print("| model | rewritten | Adam before | Adam after | SGD before | SGD after |\n|---|---|---|---|---|---|")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make()
        new, certificates = auditor.rewrite(model, x[:64], select="INI")
        made = ", ".join(sorted({one.code for one in certificates if one.accepted})) or "nothing"
        cells = [
            f"{final_loss(side, x, labels, optimiser, steps):.3g}"
            for optimiser in ("Adam", "SGD")
            for side in (model, new)
        ]
        print(f"| {name} | {made} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
