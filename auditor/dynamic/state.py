"""Runs leave no trace: everything a forward, a backward or a test step may change is put back bit for bit."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

REGISTRIES = ("_parameters", "_buffers", "_modules")
PLAIN = (dict, OrderedDict, defaultdict, list, set)


@dataclass(frozen=True)
class RandomState:
    """The states of every generator a forward may draw from: torch on CPU and on the devices in use, Python, NumPy."""

    cpu: torch.Tensor
    devices: tuple[torch.Tensor, ...]
    python: object
    numpy: Any

    @classmethod
    def now(cls) -> RandomState:
        numpy = sys.modules.get("numpy")
        return cls(torch.get_rng_state(), _device_states(), random.getstate(), numpy and _numpy_state(numpy))

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.devices:
            torch.cuda.set_rng_state_all(list(self.devices))
        random.setstate(self.python)  # type: ignore[arg-type]
        numpy = sys.modules.get("numpy")
        if numpy is not None and self.numpy is not None:
            numpy.random.set_state(self.numpy)

    def changed(self) -> tuple[str, ...]:
        """Which generators have moved since: some of "torch", "python", "numpy"."""
        now = RandomState.now()
        moved = []
        if not _same(self.cpu, now.cpu) or not all(map(_same, self.devices, now.devices)):
            moved.append("torch")
        if self.python != now.python:
            moved.append("python")
        if self.numpy is not None and not _same_numpy(self.numpy, now.numpy):
            moved.append("numpy")
        return tuple(moved)


def _device_states() -> tuple[torch.Tensor, ...]:
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return tuple(torch.cuda.get_rng_state_all()) if started else ()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def _numpy_state(numpy: Any) -> Any:
    return numpy.random.get_state()


def _same_numpy(a: Any, b: Any) -> bool:
    return a[0] == b[0] and bool((a[1] == b[1]).all()) and a[2:] == b[2:]


@dataclass(frozen=True)
class Switches:
    """Torch's settings for the whole process that user code may turn, and that change what the next model computes."""

    dtype: torch.dtype
    gradients: bool
    deterministic: bool
    warn_only: bool
    anomaly: bool
    threads: int
    precision: str
    benchmark: bool

    @classmethod
    def now(cls) -> Switches:
        return cls(
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.is_anomaly_enabled(),
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
        )

    def restore(self) -> None:
        if self == Switches.now():
            return
        torch.set_default_dtype(self.dtype)
        torch.set_grad_enabled(self.gradients)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.autograd.set_detect_anomaly(self.anomaly)
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        torch.backends.cudnn.benchmark = self.benchmark


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Put back what the code of one target may change for the next: torch's switches, generators, the working folder,
    the environment, the search path of modules and the filters of warnings."""
    switches, generators = Switches.now(), RandomState.now()
    folder, environment, searched = os.getcwd(), dict(os.environ), sys.path[:]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        switches.restore()
        generators.restore()
        os.chdir(folder)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        sys.path[:] = searched


def seed_all(seed: int) -> None:
    """Seed torch (all devices), Python's `random` and, where it is imported, NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


@contextlib.contextmanager
def preserved(model: torch.nn.Module) -> Iterator[None]:
    """Restore `model` and the process's random and gradient state on leaving, also after an exception.

    Covered: values, dtype, device, `requires_grad` and gradients of parameters and buffers; tensors held as plain
    attributes or in lists and dicts that are; every module's attributes (training flags, rates, caches, hooks: rebound
    ones are bound back, new ones removed), also of layers kept in a list; generators; torch's switches (`Switches`).
    Not covered: the inside of other objects. Memory: one copy of the parameters and buffers.
    """
    modules = modules_of(model)
    attributes = [(module, dict(vars(module))) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    containers = [_ContainerState(value) for _, held in attributes for value in held.values() if type(value) in PLAIN]
    flags = [(module, module.training) for module in modules]
    tensors = [_TensorState(tensor) for tensor in _tensors_of(modules)]
    generators, switches = RandomState.now(), Switches.now()
    try:
        yield
    finally:
        for module, held in attributes:
            vars(module).clear()
            vars(module).update(held)
        for container in containers:
            container.restore()
        for module, training in flags:
            module.training = training  # scripted modules keep it outside their attributes
        switches.restore()
        generators.restore()
        for state in tensors:
            state.restore()


def modules_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's modules and those that they keep in plain lists, tuples and dicts."""
    queue, found = [model], dict[int, torch.nn.Module]()
    for root in queue:
        for module in root.modules():
            if id(module) not in found:
                found[id(module)] = module
                queue += [part for part in held_parts(module) if isinstance(part, torch.nn.Module)]
    return list(found.values())


def _tensors_of(modules: list[torch.nn.Module]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for module in modules:
        registered = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        for part in (*registered, *held_parts(module)):
            if isinstance(part, torch.Tensor):
                found[id(part)] = part
    return list(found.values())


def held_parts(module: torch.nn.Module) -> Iterator[Any]:
    """Values of plain attributes, and of lists, tuples and dicts among them."""
    for name, value in vars(module).items():
        if isinstance(value, dict):
            yield from () if name in REGISTRIES else value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


class _ContainerState:
    """A list, set or dict and what was in it."""

    def __init__(self, container: Any) -> None:
        self.container, self.held = container, container.copy()

    def restore(self) -> None:
        self.container.clear()
        (self.container.extend if isinstance(self.container, list) else self.container.update)(self.held)


class _TensorState:
    """One tensor: its storage, a copy of its values, its gradient."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.leaf = tensor.is_leaf
        self.requires_grad = tensor.requires_grad
        self.gradient = _TensorState(tensor.grad) if self.leaf and tensor.grad is not None else None
        self.lazy = bool(is_lazy(tensor))
        self.data = None if self.lazy else tensor.data  # unlike detach(), leaves the version counter alone
        self.values = None if self.data is None else self.data.clone()

    def restore(self) -> None:
        if self.data is None or self.values is None:
            return  # a lazy parameter has no values to go back to
        if self.leaf:
            self.tensor.grad = None  # its dtype would have to agree with the tensor's at every moment
        with torch.no_grad():
            if self.leaf and self._moved():
                self.tensor.data = self.data
            self.data.copy_(self.values)
        if self.leaf and self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.gradient is not None:
            self.gradient.restore()
            self.tensor.grad = self.gradient.tensor

    def _moved(self) -> bool:
        """Whether the tensor now has another storage, shape or dtype (`.float()`, `.data = …`, `resize_`)."""
        now, then = self.tensor, self.data
        assert then is not None
        if then.layout != torch.strided:
            return now.layout != then.layout
        return (
            now.dtype != then.dtype
            or now.device != then.device
            or now.shape != then.shape
            or now.data_ptr() != then.data_ptr()
            or now.stride() != then.stride()
        )
