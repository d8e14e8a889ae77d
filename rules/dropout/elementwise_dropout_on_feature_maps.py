"""Dropout of single pixels on convolutional feature maps, where it hardly drops anything.

## What it finds
`nn.Dropout` or `F.dropout` on the maps of a convolution that looks at neighbours, N × C × H × W with H · W > 1, whose
next weights are a convolution too. Not behind global pooling or flattening, and not in a chain of 1 × 1 convolutions,
which is an MLP on tokens.

## Why it matters
Neighbouring pixels of a map say nearly the same, so that what is dropped can be read off its neighbours. On maps with
the correlation of real images (0.79 from pixel to pixel) p = 0.5 took away as little information as 0.13 would.
`nn.Dropout2d` drops whole channels, as intended.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(16, 16, 3), nn.ReLU()
            )

        def forward(self, x):
            return self.layers(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(16, 16, 3), nn.ReLU()
            )

        def forward(self, x):
            return self.layers(x)

## When to ignore it
In a recipe that was tuned with it (Wide ResNet), and on inputs without spatial correlation. A rate for whole channels
is best chosen lower: 0 to 0.1.

## References
- Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015, section 3.2
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.dropouts import before, behind, dropouts
from auditor.static.facts.spelling import spelled
from auditor.static.flow import Op
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="DRP004",
    category=Category.TRAINABILITY,
    severity=Severity.INFO,
    summary="dropout of single pixels on feature maps",
    triggers=("Conv2d", "Conv3d"),
)

WIDEST = 5  # a larger kernel may take in the whole map: a linear layer on the flattened map
CONVS = ("torch.nn.Conv2d", "torch.nn.Conv3d")


@rule.static
def on_maps(source: Source) -> Iterator[Finding]:
    """An elementwise dropout every use of which stands between two convolutions, one of which is wider than 1 × 1."""
    for dropout in dropouts(source):
        if not dropout.is_elementwise:
            continue
        ranks = {_rank_of_maps(source, op) for op in dropout.uses}
        if len(ranks) == 1 and (rank := ranks.pop()):
            yield rule.finding(dropout.call, _message(rank), rank=rank)


def _rank_of_maps(source: Source, op: Op) -> int:
    """2 or 3 where the dropout surely acts on maps of that many axes; 0 otherwise."""
    maker, user = before(op, "activation", "norm"), behind(op, "activation", "norm")
    if maker is None or user is None or maker.layer_kind not in CONVS or user.layer_kind != maker.layer_kind:
        return 0
    wide = _sees_neighbours(source, maker) and _sees_neighbours(source, user, WIDEST)
    return int(maker.layer_kind[-2]) if wide else 0


def _sees_neighbours(source: Source, op: Op, most: int = 1000) -> bool:
    """Whether the kernel surely is larger than 1 × 1 (and no larger than `most`)."""
    size = source.constant(source.argument(op.layer, "kernel_size", 2)) if op.layer is not None else None
    sizes = size if isinstance(size, tuple) else (size,)
    return all(isinstance(item, int) and 1 < item <= most for item in sizes)


def _message(rank: int) -> str:
    return f"drops single pixels of feature maps, which their neighbours give away; `Dropout{rank}d` drops channels"


@rule.dynamic
def on_maps_in_the_run(capture: Capture) -> Iterator[Finding]:
    """A call on maps of more than one pixel, between two convolutions wider than 1 × 1."""
    from auditor.dynamic.dropouts import ACTIVE, before, behind, live_dropouts

    through = ACTIVE | {"batch_norm", "group_norm", "instance_norm"}
    for dropout in live_dropouts(capture):
        node, shape = dropout.node, dropout.node.shape or ()
        maker, user = before(node, through), behind(node, through)
        if not dropout.is_elementwise or len(shape) not in (4, 5) or maker is None or user is None:
            continue
        kernels = [call.inputs[1].shape or () for call in (maker, user) if call.operation in ("conv2d", "conv3d")]
        local = len(kernels) == 2 and all(min(kernel[2:], default=1) > 1 for kernel in kernels)
        if local and min(shape[2:]) > 1 and max((user.shape or ())[2:], default=1) > 1:
            rank = len(shape) - 2
            yield rule.finding(dropout.location, _message(rank), modules=[dropout.module], rank=rank)


@rule.fix("drop whole channels", applicability="unsafe", keeps=[parameters(), outputs(mode="eval")])
def exchange(source: Source, finding: Finding) -> list[Edit] | None:
    call = source.node_at(finding.location, ast.Call)
    dropout = next((item for item in dropouts(source) if item.call is call), None)
    if dropout is None or not dropout.is_elementwise or dropout.kind == "torch.dropout":
        return None
    form = f"{finding.facts['rank']}d"
    wanted = f"torch.nn.Dropout{form}" if dropout.is_layer else f"torch.nn.functional.dropout{form}"
    name, edits = spelled(source, wanted, source.function_of(dropout.call) or dropout.call)
    return [replace(dropout.call.func, name), *edits]


@rule.rewrite
def exchange_layers(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.exchange_dropout(path, f"Dropout{finding.facts['rank']}d")
