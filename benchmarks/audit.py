"""Cost of an audit, as ratios within one run: against one training step of the same model, in time and in memory.

    python benchmarks/audit.py

Two models: an 18-layer residual network on 32×3×32×32 and a 6-layer transformer (d = 512) on 8×128 tokens. The audit
runs in this process, so that importing torch is on neither side; the memory is the peak above that of torch imported,
each side in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class ResNet18(nn.Module):
    """An 18-layer residual network for 32×32 images (11.2 million parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        self.blocks = nn.Sequential(*[Residual(*width) for width in [*widths, (512, 512, 1)]])
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Transformer(nn.Module):
    """A 6-layer encoder language model, d = 512 (23 million parameters with a vocabulary of 4096)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4096, 512)
        nn.init.normal_(self.embed.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, nn.LayerNorm(512), enable_nested_tensor=False)
        self.head = nn.Linear(512, 4096)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens)))


MODELS = {
    "resnet18": (ResNet18, lambda: torch.randn(32, 3, 32, 32)),
    "transformer": (Transformer, lambda: torch.randint(0, 4096, (8, 128))),
}


def step(model: nn.Module, batch: torch.Tensor) -> None:
    """One training step, with plain gradient descent: no optimiser state."""
    output = model(batch)
    target = torch.zeros(output.shape[:-1], dtype=torch.long)
    F.cross_entropy(output.flatten(0, -2), target.flatten()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.grad, alpha=-0.01)
            parameter.grad = None


def peak() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, side: str, runs: int) -> dict[str, float]:
    """Median seconds and peak MB above torch and the built model's own code, of a training step or of an audit."""
    torch.manual_seed(0)
    import auditor
    from auditor.settings import Settings
    from auditor.static.check import chosen_rules

    make, inputs = MODELS[name]
    chosen_rules(Settings())
    base = peak()
    model, batch = make(), inputs()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        if side == "step":
            step(model, batch)
        else:
            report = auditor.audit(model, batch)
            assert not report.problems, report.problems
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "memory": peak() - base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        name, side = arguments.only
        print(json.dumps(measure(name, side, 7 if side == "step" else 2)))
        return
    for name in MODELS:
        found = {}
        for side in ("step", "audit"):
            command = [sys.executable, __file__, "--only", name, side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        step_figures, audit = found["step"], found["audit"]
        print(
            f"{name:<12} step {step_figures['seconds']:6.2f} s {step_figures['memory']:6.0f} MB   "
            f"audit {audit['seconds']:6.2f} s {audit['memory']:6.0f} MB   "
            f"{audit['seconds'] / step_figures['seconds']:5.1f} × time (goal: ≤ 12)   "
            f"{audit['memory'] / step_figures['memory']:4.1f} × memory (goal: ≤ 2)"
        )


if __name__ == "__main__":
    main()
