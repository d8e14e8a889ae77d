"""Run a model once and write down every torch call it makes, as a `torch.fx.Graph` that can be run again.

Unlike a symbolic trace this sees real values, so it works for any model that runs, and shapes, dtypes and figures come
with it. It records one path: branches not taken are not in the graph. Tensors are known by object while they live
(weakly held); an in-place call moves the name on to its result.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import sys
import sysconfig
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode

from auditor.dynamic.names import class_name, function_name
from auditor.dynamic.state import RandomState, held_parts, modules_of
from auditor.finding import Location

TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "grad", "real", "imag"})
NO_TENSOR = frozenset(
    {"size", "dim", "__len__", "numel", "stride", "is_floating_point", "is_contiguous", "data_ptr", "item"}
)
PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size, slice})  # hold no tensor
MAX_DEPTH = 8  # nesting of containers searched for tensors

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
TORCH = os.path.dirname(torch.__file__) + os.sep
STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
TENSOR_HELPERS = frozenset({"einops", "einx", "jaxtyping", "beartype", "typeguard", "opt_einsum"})

Shape = tuple[int, ...]


# Figures --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one floating-point tensor. `zeros`: share of entries that are exactly 0. NaN and Inf propagate."""

    rms: float
    mean: float
    std: float
    zeros: float


def stats_of(tensor: torch.Tensor) -> Stats | None:
    """Figures of a real floating-point tensor with values, else None. Half precisions are summed in float32."""
    if not tensor.is_floating_point() or not has_values(tensor) or tensor.numel() == 0:
        return None
    tensor = tensor.detach()
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    rms = float(torch.linalg.vector_norm(tensor, dtype=wide)) / tensor.numel() ** 0.5
    mean = float(tensor.mean(dtype=wide))
    variance = rms * rms - mean * mean
    if variance < 1e-4 * mean * mean:  # the difference has lost its digits
        variance = float(tensor.to(wide).var(correction=0))
    zeros = 1 - int(torch.count_nonzero(tensor)) / tensor.numel()
    return Stats(rms, mean, variance**0.5, zeros)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether its numbers can be read: not a meta, fake, sparse or quantised tensor, nor one inside `vmap`."""
    plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return plain and not hasattr(tensor, "fake_mode") and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def tensors_in(tree: Any, depth: int = 0) -> list[torch.Tensor]:
    """All tensors in nested containers, dataclasses and model-output objects, in order, each as often as it occurs."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    kind = type(tree)
    if depth > MAX_DEPTH or kind in PLAIN or isinstance(tree, (str, int, float, type, torch.nn.Module)):
        return []
    items: Any = ()
    step = 1
    if kind is tuple or kind is list:  # before the slow test for mappings
        items = tree
    elif isinstance(tree, Mapping):
        items = tree.values()
    elif isinstance(tree, (list, tuple, set)):
        items = tree
    elif hasattr(tree, "__dict__") and not callable(tree):
        items, step = vars(tree).values(), 3  # what objects refer to may be the whole program
    return [tensor for item in items for tensor in tensors_in(item, depth + step)]


def moved(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The same containers with tensors on `device` and floating-point ones in `dtype`."""
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype), tree
    )


def cloned(tree: Any) -> Any:
    """The same containers with copies of the tensors, since a forward may write to its inputs."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), tree)


# The user's code ------------------------------------------------------------------------------------------------------


@functools.cache
def is_user_file(path: str) -> bool:
    """Whether code in this file is somebody's model: not torch, the standard library, einops and the like, or ours."""
    if path.startswith("<"):
        return path.startswith("<ipython")
    if path.startswith((PACKAGE, TORCH)) or not TENSOR_HELPERS.isdisjoint(path.split(os.sep)):
        return False
    return "site-packages" in path or not path.startswith(STANDARD_LIBRARY)


def user_location() -> Location:
    """The innermost line of the running model that is the user's; `Location("")` if all of it is torch's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):  # beyond is whoever called us
        if is_user_file(frame.f_code.co_filename):
            return Location(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return Location("")


def reason_of(error: BaseException) -> str:
    """An exception as one line, with the user's innermost line it came through."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_file(frame.filename)]
    where = f" ({lines[-1].filename}:{lines[-1].lineno})" if lines else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{where}"


# Modules --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stray:
    """A layer called in a forward although the model does not know it: it has no path.

    `built_in_forward`: made during the forward and gone after it; otherwise it is held where torch does not look
    (a list, a closure). `parameters`: how many it has. `parent`: path of the module that called it.
    """

    kind: str
    parent: str
    location: Location
    parameters: int
    built_in_forward: bool


class ModuleWatch:
    """While active: which module is running, how often each was called, and with what shapes.

    `calls` and `shapes` (first tensor in, first tensor out, of the first call) are keyed by module path.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, tuple[Shape | None, Shape | None]] = {}
        self.strays: tuple[Stray, ...] = ()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._stack: list[tuple[int, str]] = []
        self._foreign: list[tuple[weakref.ref[torch.nn.Module], Stray]] = []

    @property
    def path(self) -> str:
        """Path of the innermost running module that has one."""
        return self._stack[-1][1] if self._stack else ""

    def path_of(self, module: torch.nn.Module) -> str | None:
        return self._paths.get(id(module))

    def __enter__(self) -> ModuleWatch:
        self._hooks = [
            nn_module.register_module_forward_pre_hook(self.enter_module),
            nn_module.register_module_forward_hook(self.leave_module, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()
        registered = {id(module) for module in self.model.modules()}  # a layer built lazily and kept is no stray
        strays = []
        for reference, stray in self._foreign:
            module = reference()
            if module is None:
                strays.append(Stray(stray.kind, stray.parent, stray.location, stray.parameters, True))
            elif id(module) not in registered:
                strays.append(stray)
        self.strays = tuple(strays)
        self._foreign = []

    def enter_module(self, module: torch.nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if path is None:
            path = self.path
            parameters = sum(1 for _ in module.parameters())
            stray = Stray(class_name(type(module)), path, user_location(), parameters, False)
            self._foreign.append((weakref.ref(module), stray))
        else:
            self.calls[path] += 1
        self._stack.append((id(module), path))

    def leave_module(self, module: torch.nn.Module, *event: Any) -> None:
        """Called as (module, args, kwargs, output), and without kwargs where the forward raised."""
        while self._stack and self._stack.pop()[0] != id(module):
            pass
        path = self._paths.get(id(module))
        if path is not None and path not in self.shapes:
            self.shapes[path] = _first_shape(event[:-1]), _first_shape(((event[-1],),))


def _first_shape(tree: Sequence[Sequence[Any] | dict[str, Any]]) -> Shape | None:
    """Shape of the first tensor in (args, kwargs) or in ((output,),)."""
    parts = (part for group in tree for part in (group.values() if isinstance(group, dict) else group))
    return next((tuple(tensor.shape) for part in parts for tensor in tensors_in(part)), None)


def eager() -> contextlib.AbstractContextManager[Any]:
    """`torch.compile`d parts run as the plain Python they were compiled from, so that they can be seen."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return contextlib.nullcontext()


# The recorder ---------------------------------------------------------------------------------------------------------


def get_item(value: Any, key: Any) -> Any:
    """One part of a result that has several."""
    return value[key]


def set_item(tensor: torch.Tensor, key: Any, value: Any) -> torch.Tensor:
    """`tensor[key] = value`, returning the tensor so that the graph carries the data on."""
    tensor[key] = value
    return tensor


def set_attribute(tensor: torch.Tensor, name: str, value: Any) -> torch.Tensor:
    """`tensor.name = value`, returning the tensor."""
    setattr(tensor, name, value)
    return tensor


@dataclass
class Recording:
    """One run. `constants`: tensors nobody registered, by node target. `opaque`: what could not be looked into.

    `moved`: generators the run drew from (some of "torch", "python", "numpy").
    """

    graph: fx.Graph
    watch: ModuleWatch
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    opaque: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()


class Recorder(TorchFunctionMode):
    """Writes each torch call made while active into `graph`. Use `record` unless you need the parts."""

    def __init__(self, model: torch.nn.Module, inputs: Any, watch: ModuleWatch) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.watch = watch
        self.constants: dict[str, torch.Tensor] = {}
        self.opaque: dict[str, None] = {}
        self._nodes: dict[int, tuple[weakref.ref[torch.Tensor], fx.Node]] = {}
        self._quiet = 0
        self._held = {id(part) for module in modules_of(model) for part in held_parts(module)}
        self._names: dict[int, str] = {}
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        for name, tensor in named:
            self._names.setdefault(id(tensor), name)  # tied tensors: the first name stands for all
        for index, tensor in enumerate(tensors_in(inputs)):
            node = self.graph.placeholder(f"input_{index}")
            self._bind(tensor, node)
            node.meta["stats"] = stats_of(tensor)

    # Entering and leaving ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(_patched_apply(self._custom_function))
        scripted = nn_module.register_module_forward_hook(self._leave_scripted, with_kwargs=True)
        self._undo.callback(scripted.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._undo.close()

    # What is intercepted ----------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._quiet or name in NO_TENSOR:
            return func(*args, **kwargs)
        if name == "__get__" and func.__self__.__name__ not in TENSOR_PROPERTIES:  # type: ignore[attr-defined]
            return func(*args, **kwargs)
        versions = [(tensor, _version(tensor)) for tensor in tensors_in((args, kwargs))]
        before = _generator_state()
        out = func(*args, **kwargs)
        drew = _drew(before) or any(isinstance(value, torch.Generator) for value in kwargs.values())
        if name == "__setitem__":
            self._record(func, set_item, args, {}, args[0], drew)
        elif name == "__set__":
            self._record(func, set_attribute, (args[0], func.__self__.__name__, args[1]), {}, args[0], drew)  # type: ignore[attr-defined]
        elif tensors_in(out):
            out = _distinct(out, versions, name)
            if name == "__get__":
                self._record(func, getattr, (args[0], func.__self__.__name__), {}, out, drew)  # type: ignore[attr-defined]
            else:
                self._record(func, func, args, kwargs, out, drew)
        return out

    def _custom_function(self, apply: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A user's `autograd.Function`: one node, since its backward is not that of the calls in its forward."""
        if self._quiet:
            return apply(*args, **kwargs)
        with self._silenced():
            before = _generator_state()
            out = apply(*args, **kwargs)
            if tensors_in(out):
                self._record(apply, apply, args, kwargs, out, _drew(before))
        return out

    def _leave_scripted(self, module: torch.nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        path = self.watch.path_of(module)
        if path is None or not isinstance(module, torch.jit.ScriptModule):
            return
        self.opaque.setdefault(f"{path or 'the model'} is scripted: its inside was not seen")
        with self._silenced():
            node = self.graph.call_module(path, self._map(tuple(args)), self._map(dict(kwargs)))
            self._describe(node, class_name(type(module)), path, out, args, False)

    @contextlib.contextmanager
    def _silenced(self) -> Iterator[None]:
        """Calls made here are not recorded: those inside an opaque part, and our own."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    # Writing nodes ----------------------------------------------------------------------------------------------------

    def _record(
        self,
        func: Callable[..., Any],
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Any,
        drew: bool,
    ) -> None:
        node = self.graph.call_function(target, self._map(tuple(args)), self._map(dict(kwargs)))
        self._describe(node, function_name(func), self.watch.path, out, (args, kwargs), drew)

    def _describe(self, node: fx.Node, function: str, path: str, out: Any, inputs: Any, drew: bool) -> None:
        location = user_location()
        node.meta.update(
            function=function, fqn=path, line=(location.path, location.row), location=location, random=drew
        )
        self._bind_result(node, out, tensors_in(inputs))

    def _bind_result(self, node: fx.Node, out: Any, inputs: list[torch.Tensor]) -> None:
        if isinstance(out, torch.Tensor):
            node.meta["stats"] = self._stats(out, inputs)
            self._bind(out, node)
            return
        parts = out.items() if isinstance(out, Mapping) else enumerate(out) if isinstance(out, (tuple, list)) else ()
        for key, part in parts:
            if tensors_in(part):
                child = self.graph.call_function(get_item, (node, key))
                child.meta.update({**node.meta, "function": "operator.getitem", "random": False})
                self._bind_result(child, part, inputs)

    def _bind(self, tensor: torch.Tensor, node: fx.Node) -> None:
        key, nodes = id(tensor), self._nodes

        def forget(reference: weakref.ref[torch.Tensor]) -> None:
            if key in nodes and nodes[key][0] is reference:
                del nodes[key]

        nodes[key] = (weakref.ref(tensor, forget), node)
        node.meta["shape"], node.meta["dtype"] = tuple(tensor.shape), tensor.dtype

    def _stats(self, tensor: torch.Tensor, inputs: list[torch.Tensor]) -> Stats | None:
        """Figures of a result; a rearrangement of an input has the input's."""
        for given in inputs:
            if given is not tensor and given.numel() == tensor.numel() and _same_memory(given, tensor):
                known = self._nodes.get(id(given))
                if known is not None and "stats" in known[1].meta:
                    stats: Stats | None = known[1].meta["stats"]
                    return stats
        return stats_of(tensor)

    # Reading arguments ------------------------------------------------------------------------------------------------

    def _map(self, value: Any) -> Any:
        """`value` with every tensor replaced by its node."""
        if isinstance(value, torch.Tensor):
            return self._node_of(value)
        if isinstance(value, tuple):
            parts = [self._map(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if isinstance(value, list):
            return [self._map(part) for part in value]
        if isinstance(value, dict):
            return {key: self._map(part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(self._map(value.start), self._map(value.stop), self._map(value.step))
        return value

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        known = self._nodes.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        name = self._names.get(id(tensor))
        if name is None:
            alias = self._alias(tensor)
            if alias is not None:
                self._bind(tensor, alias)
                return alias
            name = f"_unregistered_{len(self.constants)}"
            self.constants[name] = tensor.detach()
            if id(tensor) not in self._held and not isinstance(tensor, torch.nn.Parameter):
                self.opaque.setdefault("what made a tensor: code that torch functions do not see (scripted, NumPy)")
        node = self.graph.create_node("get_attr", name)
        node.meta.update(function="", fqn=name.rpartition(".")[0], random=False, stats=None)
        self._bind(tensor, node)
        return node

    def _alias(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of a living tensor that is the same numbers under another object (autograd re-wraps some)."""
        for reference, node in self._nodes.values():
            other = reference()
            if other is None or other.dtype != tensor.dtype or not _same_memory(other, tensor):
                continue
            if other.shape == tensor.shape and other.stride() == tensor.stride():
                return node
        return None

    def finish(self, outputs: Any) -> Recording:
        """Close the graph with the tensors of `outputs` and hand it over."""
        self.graph.output(tuple(self._node_of(tensor) for tensor in tensors_in(outputs)))
        return Recording(self.graph, self.watch, self.constants, tuple(self.opaque))


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return has_values(a) and has_values(b) and a.numel() > 0 and a.device == b.device and a.data_ptr() == b.data_ptr()


def _distinct(out: Any, versions: list[tuple[torch.Tensor, int]], name: str) -> Any:
    """A result that is its own unchanged argument (`contiguous`, dropout in eval) under a new object.

    Otherwise the graph could not tell what passed through the call from what went around it.
    """
    if type(out) not in (torch.Tensor, torch.nn.Parameter) or name.endswith("_"):
        return out
    if any(given is out and _version(out) == version for given, version in versions):
        return torch.ops.aten.alias.default(out)
    return out


def _generator_state() -> tuple[Any, ...]:
    offsets = [generator.get_offset() for generator in torch.cuda.default_generators] if _cuda() else []
    return torch.default_generator.get_state(), offsets


def _drew(before: tuple[Any, ...]) -> bool:
    state, offsets = _generator_state()
    return offsets != before[1] or not torch.equal(state, before[0])


def _cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _patched_apply(record: Callable[..., Any]) -> Iterator[None]:
    """Route `UserFunction.apply(…)` through `record`; torch's own functions (checkpointing) stay transparent."""
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(None, cls)
        return bound(*args, **kwargs) if cls.__module__.startswith("torch.") else record(bound, args, kwargs)

    function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        function.apply = original  # type: ignore[method-assign]


def record(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Recording:
    """Run `model(*args, **kwargs)` once, in the mode, gradient mode and random state it is in, and record it.

    Raises what the model raises. The outputs are dropped: the recording holds facts, and no tensors but `constants`.
    """
    before = RandomState.now()
    watch = ModuleWatch(model)
    recorder = Recorder(model, (args, kwargs), watch)
    with eager(), watch, recorder:
        outputs = model(*args, **kwargs)
    recording = recorder.finish(outputs)
    recording.moved = before.changed()
    return recording


class Replay(fx.Interpreter):
    """Runs a recorded graph again on `model`. `run(*inputs)` takes the input tensors in order, returns a tuple."""

    def __init__(self, model: torch.nn.Module, recording: Recording) -> None:
        super().__init__(model, graph=recording.graph)
        self.constants = recording.constants

    def fetch_attr(self, target: str) -> Any:
        if target in self.constants:
            return self.constants[target]
        return operator.attrgetter(target)(self.module) if target else self.module
