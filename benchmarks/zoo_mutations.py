"""Seeded mistakes of initialisation: each takes a healthy model and spoils the weights of its layers, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

Mutation = Callable[[nn.Module], None]


def _layers(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Linear, _ConvNd)
    return [m for m in model.modules() if isinstance(m, kinds) and m.weight.requires_grad and m.weight.numel()]


def _weights(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from (layer.weight.data for layer in _layers(model))


def _each(change: Callable[[torch.Tensor], object]) -> Mutation:
    def mutate(model: nn.Module) -> None:
        for weight in _weights(model):
            change(weight)

    return mutate


def _middle_zero(model: nn.Module) -> None:
    layers = _layers(model)
    layers[len(layers) // 2].weight.data.zero_()


def _negative_biases(model: nn.Module) -> None:
    for layer in _layers(model):
        if layer.bias is not None:
            layer.bias.data.fill_(-5.0)


def _cloned(model: nn.Module) -> None:
    first: dict[tuple[int, ...], torch.Tensor] = {}
    for weight in _weights(model):
        weight.copy_(first.setdefault(tuple(weight.shape), weight))


def _large_head(model: nn.Module) -> None:
    _layers(model)[-1].weight.data.mul_(30.0)


MUTATIONS: dict[str, Mutation] = {
    "reference": lambda model: None,
    "zeros": _each(lambda weight: weight.zero_()),
    "const": _each(lambda weight: weight.fill_(0.05)),
    "identical rows": _each(lambda weight: weight.copy_(weight[:1].clone().expand_as(weight))),
    "N(0, 0.01)": _each(lambda weight: weight.normal_(0, 0.01)),
    "x0.1": _each(lambda weight: weight.mul_(0.1)),
    "N(0, 1)": _each(lambda weight: weight.normal_(0, 1)),
    "x10": _each(lambda weight: weight.mul_(10)),
    "x3": _each(lambda weight: weight.mul_(3)),
    "U(0, 1)": _each(lambda weight: weight.uniform_(0, 1)),
    "NaN": _each(lambda weight: weight.view(-1)[:1].fill_(float("nan"))),
    "zero one middle layer": _middle_zero,
    "bias -5": _negative_biases,
    "clone layers": _cloned,
    "head x30": _large_head,
}
