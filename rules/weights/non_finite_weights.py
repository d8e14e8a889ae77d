"""A parameter or running statistic that holds NaN or infinity.

## What it finds
Parameters, and running means and variances, with entries that are NaN or infinite: of the model as it is built, or of
the weights it was loaded with (`--weights`).

## Why it matters
One NaN in a weight makes every output that depends on it NaN, in silence: comparisons with NaN are false, `argmax`
picks some class, and a loss that is NaN no longer moves anything. A checkpoint gets there by a diverged step, by an
overflow in half precision, or by a file that was cut or cast; averaging checkpoints spreads it.

## Example
    class Scaled(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.proj = nn.Linear(width, width)
            self.scale = nn.Parameter(torch.tensor(0.0).log())

        def forward(self, x):
            return self.proj(x) * self.scale.exp()

## Use instead
    class Scaled(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.proj = nn.Linear(width, width)
            self.scale = nn.Parameter(torch.tensor(1.0).log())

        def forward(self, x):
            return self.proj(x) * self.scale.exp()

## When to ignore it
Where a parameter is meant to hold infinity, as a frozen additive mask does: better kept in a buffer, which is not
looked at.

## References
- Micikevicius et al., "Mixed Precision Training", 2018 (overflow in half precision, and skipping such steps)
- https://pytorch.org/docs/stable/notes/numerical_accuracy.html#extremal-values
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Location, Severity
from auditor.rule import Category, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from auditor.dynamic.capture import Capture

STATISTICS = ("running_mean", "running_var")

rule = Rule(
    __name__,
    code="WGT001",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="a parameter or running statistic holds NaN or infinity",
    yields_to=("INI007",),
)


@rule.dynamic
def nan_or_infinity(capture: Capture) -> Iterator[Finding]:
    """By the line that last wrote them; uninitialised memory is another defect."""
    groups: dict[Location, list[tuple[str, Tensor]]] = {}
    for name, location, tensor in _tensors(capture):
        if not bool(tensor.detach().isfinite().all()):
            groups.setdefault(location, []).append((name, tensor.detach()))
    for location, found in groups.items():
        name, tensor = found[0]
        bad = int((~tensor.isfinite()).sum())
        more = f", and {len(found) - 1} more tensors have such entries" if len(found) > 1 else ""
        where = f" in {capture.weights}" if capture.weights else ""
        yield rule.finding(
            location,
            f"{bad} of {tensor.numel()} entries of `{name}`{where} are NaN or infinite{more}",
            modules=sorted({name.rpartition(".")[0] for name, _ in found}),
            tensors=[name for name, _ in found],
        )


def _tensors(capture: Capture) -> Iterator[tuple[str, Location, Tensor]]:
    for name, parameter in capture.parameters.items():
        if parameter.initialised and parameter.tensor.is_floating_point():
            yield name, parameter.location, parameter.tensor
    for path, module in capture.modules.items():
        for statistic in STATISTICS:
            tensor = getattr(module.module, statistic, None)
            if tensor is not None and not tensor.is_meta:
                yield f"{path}.{statistic}".lstrip("."), module.location, tensor
