"""Runs of a model for a proof: the same weights, inputs and random numbers before and after a fix."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.utils._pytree import tree_map_only

from auditor.dynamic.build import construct
from auditor.dynamic.capture import HasInputs
from auditor.dynamic.probe import NoDropout, silence_dropout
from auditor.dynamic.state import REGISTRIES, seed_all


@dataclass(frozen=True)
class Subject:
    """One side of a comparison: `build` makes the model from a seed, `inputs` is what it is called with.

    `batch_axis`: the axis of the inputs that samples lie on. `derive`: makes this side from a model of the other one,
    in place, where the fix is one of models rather than of source. `compiled`: compare under torch.compile too.
    """

    build: Callable[[int], nn.Module]
    inputs: HasInputs
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    batch_axis: int = 0
    derive: Callable[[nn.Module], Any] | None = None
    compiled: bool = False

    def make(self, dtype: str = "", device: str = "") -> nn.Module:
        """The model in its initial state, in train mode, on `device` in `dtype` (default: those asked for)."""
        model = construct(lambda: self.build(self.seed), self.seed)
        convert(model, torch.device(device or self.device), getattr(torch, dtype or self.dtype))
        model.train()
        if any(isinstance(parameter, UninitializedTensorMixin) for parameter in model.parameters()):
            with torch.no_grad(), _default_dtype(getattr(torch, dtype or self.dtype)):  # lazy layers take their shapes
                seed_all(self.seed)
                args, kwargs = self.arguments(dtype, device)
                model.eval()(*args, **kwargs)
                model.train()
        return model

    def arguments(self, dtype: str = "", device: str = "") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the inputs on `device`, floating-point tensors in `dtype`."""
        place, precision = torch.device(device or self.device), getattr(torch, dtype or self.dtype)
        args, kwargs = tree_map_only(
            torch.Tensor,
            lambda x: x.detach().to(place, precision if x.is_floating_point() else x.dtype, copy=True),
            (tuple(self.inputs.args), dict(self.inputs.kwargs)),
        )
        return args, kwargs


class Trial:
    """A prepared model, handed out in the same state again and again."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self.model = make()

    def fresh(self) -> nn.Module:
        """A copy of its own: a run may change statistics, caches, or layers that hide in plain lists."""
        try:
            return copy.deepcopy(self.model)
        except Exception:  # graph-holding tensors, locks, … cannot be copied; making it again always works
            return self._make()


@dataclass
class Run:
    """What one forward (and backward) gave: outputs and layer outputs by path, gradients and buffers by name."""

    outputs: dict[str, Any]
    gradients: dict[str, torch.Tensor | None] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)


def run(
    model: nn.Module,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    mode: str,
    seed: int = 0,
    gradients: bool = False,
    layers: bool = False,
    random: bool = True,
    compiled: bool = False,
) -> Run:
    """One forward of `model` (which it may change) in `mode`, random operations seeded.

    Gradients are those of the outputs contracted with fixed N(0, 1) cotangents, with respect to parameters (by name)
    and inputs (`"inputs.0"`). `random=False` switches dropout off. `compiled` runs it through torch.compile, random
    numbers those of eager code. Raises what the model raises.
    """
    model.train(mode == "train")
    if not random:
        silence_dropout(model)
    args, kwargs = arguments
    inputs = {name: leaf for name, leaf in flatten((args, kwargs), "inputs") if isinstance(leaf, torch.Tensor)}
    sources = {name: x for name, x in inputs.items() if x.is_floating_point()} if gradients else {}
    for x in sources.values():
        x.requires_grad_()
    # What a layer does in place to its input is allowed, but not on a leaf that requires gradients.
    passed = tree_map_only(torch.Tensor, lambda x: x.clone() if x.requires_grad else x, (args, kwargs))
    seen: dict[str, Any] = {}
    seed_all(seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(_default_dtype(dtype_of(model)))
        if layers:
            stack.enter_context(_layer_hooks(model, seen))
        if not random:
            stack.enter_context(NoDropout())
        call = stack.enter_context(_compiled(model)) if compiled else model
        outputs = dict(flatten(call(*passed[0], **passed[1]), "output"))
    found: dict[str, torch.Tensor | None] = {}
    if gradients:
        found = _backward(model, sources, outputs)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    return Run({name: _detached(value) for name, value in outputs.items()}, found, seen, buffers)


@contextlib.contextmanager
def _compiled(model: nn.Module) -> Iterator[Any]:
    import torch._inductor.config as inductor

    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    with inductor.patch(fallback_random=True), torch.compiler.set_stance("default"):
        yield torch.compile(model)


def _backward(
    model: nn.Module, sources: Mapping[str, torch.Tensor], outputs: Mapping[str, Any]
) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    total: torch.Tensor | None = None
    for value in outputs.values():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            cotangent = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            part = (value * cotangent.to(value.device, value.dtype)).sum()
            part = part.real if part.is_complex() else part
            total = part if total is None else total + part
    tensors = {**dict(model.named_parameters()), **sources}
    for tensor in tensors.values():
        tensor.grad = None
    if total is not None:
        torch.autograd.backward(total)
    return {name: tensor.grad for name, tensor in tensors.items()}


def flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values of a model's outputs with their paths: dicts, lists, dataclasses, objects."""
    if isinstance(value, (torch.Tensor, bool, int, float, str)) or value is None:
        yield path, value
    elif isinstance(value, Mapping):
        for key in value:
            yield from flatten(value[key], f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}.{index}")
    elif dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            yield from flatten(getattr(value, entry.name), f"{path}.{entry.name}")
    elif hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield from flatten(item, f"{path}.{name}")


def floats(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The floating-point tensors among outputs."""
    return {k: v for k, v in outputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point parameters and buffers, or the default one."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors a forward creates itself follow the precision of the run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _layer_hooks(model: nn.Module, seen: dict[str, Any]) -> Iterator[None]:
    calls: Counter[str] = Counter()

    def watch(path: str, module: nn.Module) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[path] += 1
            for name, leaf in flatten(output, f"{path or 'model'} (call {calls[path]})"):
                seen[name] = _detached(leaf)

        return module.register_forward_hook(keep)

    hookable = ((path, m) for path, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule))
    handles = [watch(path, module) for path, module in hookable]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Weights -------------------------------------------------------------------------------------------------------------


def convert(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model, also the layers and tensors it keeps where `Module.to` does not look (lists, plain attributes)."""
    model.to(device, dtype)
    for tensor in _hidden_tensors(model):
        if not isinstance(tensor, UninitializedTensorMixin):
            tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def _hidden_tensors(model: nn.Module) -> list[torch.Tensor]:
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.Tensor] = {}
    visited: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if id(value) not in known:
                found[id(value)] = value
            return
        if id(value) in visited or not isinstance(value, (nn.Module, list, tuple, set, Mapping)):
            return
        visited.add(id(value))
        if isinstance(value, nn.Module):
            for name, item in vars(value).items():
                for part in item.values() if name in REGISTRIES else (item,):
                    visit(part)
            return
        for item in value.values() if isinstance(value, Mapping) else value:
            visit(item)

    visit(model)
    return list(found.values())


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Give every parameter and running statistic a value that is not its default, in place and repeatably.

    Otherwise a lost scale of 1 or shift of 0 would not be noticed. The noise is drawn by name, in float64.
    """
    done: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
        if id(tensor) in done or not tensor.is_floating_point() or not (isinstance(tensor, nn.Parameter) or statistic):
            continue
        done.add(id(tensor))
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
        values = tensor.double().cpu().nan_to_num(0.0, 0.0, 0.0)
        if name.endswith("running_var"):
            values = values * torch.exp(0.3 * noise)
        else:
            scale = values.square().mean().sqrt().item() if values.numel() else 0.0
            values = values + noise * (0.3 * scale if scale > 0 else 0.1)
        tensor.copy_(values)


@torch.no_grad()
def transplant(before: nn.Module, after: nn.Module, moved: Mapping[str, str]) -> None:
    """Copy parameters and buffers of `before` into `after` by name; `moved` gives new names of those that moved.

    A tensor whose name or number of elements is not found in `after` is left out: comparing outputs shows the loss.
    """
    targets = dict((*after.named_parameters(remove_duplicate=False), *after.named_buffers(remove_duplicate=False)))
    sources = (*before.named_parameters(remove_duplicate=False), *before.named_buffers(remove_duplicate=False))
    for name, tensor in sources:
        target = targets.get(moved.get(name, name))
        if target is not None and target.numel() == tensor.numel() and (name in moved or target.shape == tensor.shape):
            target.copy_(tensor.reshape(target.shape))
