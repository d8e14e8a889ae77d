"""How many samples a dataset has, where its construction fixes it."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from auditor.static.facts.batches import whole_number
from auditor.static.facts.values import held

if TYPE_CHECKING:
    from auditor.static.source import Source

_TENSORS = tuple(f"torch.{name}" for name in ("randn", "rand", "zeros", "ones", "empty"))
# Lengths of the training sets that torchvision brings.
_TRAINING_SETS = {"MNIST": 60000, "FashionMNIST": 60000, "KMNIST": 60000, "CIFAR10": 50000, "CIFAR100": 50000}


def dataset_length(source: Source, dataset: object) -> int | None:
    """The number of samples of a dataset whose construction fixes it."""
    built = held(source, dataset) if isinstance(dataset, ast.expr) else []
    if len(built) != 1:
        return None
    call = built[0]
    name = next(iter(source.resolve(call.func)), "")
    if name == "torch.utils.data.TensorDataset" and call.args:
        return _rows(source, call.args[0])
    if name == "torch.utils.data.Subset" and len(call.args) == 2:
        return _range(source, call.args[1])
    family, _, kind = name.rpartition(".")
    if family == "torchvision.datasets" and kind in _TRAINING_SETS:
        train = source.argument(call, "train", 1)
        trains = train is None or (isinstance(train, ast.Constant) and train.value is True)
        return _TRAINING_SETS[kind] if trains else None
    return None


def _rows(source: Source, tensor: ast.expr) -> int | None:
    built = held(source, tensor)
    if len(built) != 1 or not source.is_any(built[0].func, *_TENSORS) or not built[0].args:
        return None
    first = built[0].args[0]
    return whole_number(source, first.elts[0] if isinstance(first, (ast.Tuple, ast.List)) and first.elts else first)


def _range(source: Source, indices: ast.expr) -> int | None:
    match indices:
        case ast.Call(func=ast.Name(id="range"), args=[stop]):
            return whole_number(source, stop)
        case ast.Call(func=ast.Name(id="list"), args=[inner]):
            return _range(source, inner)
    return None
