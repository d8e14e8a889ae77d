"""One model, built and run: what a dynamic rule sees.

`capture` runs the model once in each mode, records the graphs and leaves the model as it was. What costs more (the
initialisation probe, a symbolic trace) is computed when a rule first asks for it. What could not be seen is kept with
its reason in `rungs`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import fx
from torch.nn.parameter import is_lazy

from auditor.dynamic.names import class_name, operation
from auditor.dynamic.observe import Probe, RngUse, use_of_generators
from auditor.dynamic.origins import class_location as class_location
from auditor.dynamic.origins import module_locations
from auditor.dynamic.probe import run_probe
from auditor.dynamic.record import (
    ModuleWatch,
    Recording,
    Shape,
    Stats,
    Stray,
    cloned,
    eager,
    moved,
    record,
)
from auditor.dynamic.record import reason_of as reason_of
from auditor.dynamic.state import RandomState, preserved, seed_all
from auditor.finding import Location

if TYPE_CHECKING:
    from auditor.dynamic.build import BuildLog

Mode = Literal["train", "eval"]
MODES: tuple[Mode, Mode] = ("train", "eval")


class HasInputs(Protocol):
    """What a forward is called with."""

    @property
    def args(self) -> Sequence[Any]: ...
    @property
    def kwargs(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class LiveInputs:
    """Inputs handed over as values. `batch_axis_size`: samples along `batch_axis`, where known."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    description: str = "the inputs given"
    batch_axis_size: int | None = None
    batch_axis: int | None = None
    source: str = "inferred"
    """"given" where somebody chose these inputs, and with them the batch size."""


@dataclass(frozen=True)
class LiveTarget:
    """Stands for a target where a model object was handed over instead of a file."""

    name: str
    path: str
    model_class: str


@dataclass(frozen=True)
class Rung:
    """How far capture got: "record", "hooks" (which modules ran, with what shapes) or "none"; and what stopped it.

    `symbolic` uses "symbolic" and "none". `opaque`: parts of a recorded run that could not be looked into.
    """

    name: str
    reason: str = ""
    opaque: tuple[str, ...] = ()


# Facts ----------------------------------------------------------------------------------------------------------------


@dataclass
class ModuleFacts:
    """One module. `kind`: its class, `torch.nn.Dropout`. `location`: the user's line that constructed it.

    `calls`, `in_shape`, `out_shape`: per mode; shapes of the first tensor in and out of the first call.
    `aliases`: other paths of the same module.
    """

    path: str
    module: torch.nn.Module = field(repr=False)
    kind: str
    location: Location
    parent: str
    aliases: tuple[str, ...] = ()
    calls: dict[str, int] = field(default_factory=dict)
    in_shape: dict[str, Shape | None] = field(default_factory=dict)
    out_shape: dict[str, Shape | None] = field(default_factory=dict)


@dataclass
class ParameterFacts:
    """One name of a parameter. `location`, `written_by`: the user's last write to it, or its module's construction."""

    name: str
    tensor: torch.nn.Parameter = field(repr=False)
    module: str
    location: Location
    written_by: str = ""
    initialised: bool = True


class NodeFacts:
    """One node of a recorded graph: a torch call, or (as an input of calls) a tensor given, a parameter, a buffer."""

    def __init__(self, node: fx.Node, capture: Capture) -> None:
        self.node = node
        self._capture = capture

    def __repr__(self) -> str:
        return f"<{self.name}: {self.function or self.node.op} in {self.module or 'the model'}>"

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def op(self) -> str:
        """ "call_function", "call_module" (a scripted module), "placeholder" (an input) or "get_attr"."""
        return self.node.op

    @property
    def function(self) -> str:
        """Public name of the function called: `torch.nn.functional.dropout`, `torch.Tensor.add`; "" for no call."""
        return str(self.node.meta.get("function", ""))

    @property
    def operation(self) -> str:
        """What it does, however spelled: `relu` for `torch.relu`, `F.relu`, `Tensor.relu_`."""
        return operation(self.function)

    @property
    def parameter(self) -> str:
        """Name of the parameter or buffer this is; "" for anything else."""
        return str(self.node.target) if self.node.op == "get_attr" else ""

    @property
    def module(self) -> str:
        """Path of the innermost module whose forward made the call."""
        return str(self.node.meta.get("fqn", ""))

    @property
    def location(self) -> Location:
        """The user's line; the module's own where the call is made by torch alone."""
        location: Location = self.node.meta.get("location", Location(""))
        if location.path:
            return location
        module = self._capture.modules.get(self.module)
        return module.location if module is not None else self._capture.modules[""].location

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self._wrap(argument) for argument in self.node.args)

    @property
    def kwargs(self) -> dict[str, Any]:
        return {name: self._wrap(argument) for name, argument in self.node.kwargs.items()}

    def argument(self, name: str, position: int | None = None, default: Any = None) -> Any:
        """The argument passed as `name=` or at `position` (a method's tensor is at 0)."""
        if name in self.node.kwargs:
            return self._wrap(self.node.kwargs[name])
        if position is not None and position < len(self.node.args):
            return self._wrap(self.node.args[position])
        return default

    @property
    def shape(self) -> Shape | None:
        """Shape of the result; None for a result of several tensors (see the `operator.getitem` nodes after it)."""
        return self.node.meta.get("shape")

    @property
    def dtype(self) -> torch.dtype | None:
        return self.node.meta.get("dtype")

    @property
    def stats(self) -> Stats | None:
        """Figures of a floating-point result; None for other results."""
        return self.node.meta.get("stats")

    @property
    def random(self) -> bool:
        """Whether the call drew random numbers."""
        return bool(self.node.meta.get("random", False))

    @property
    def inputs(self) -> tuple[NodeFacts, ...]:
        return tuple(self._capture.facts(node) for node in self.node.all_input_nodes)

    @property
    def users(self) -> tuple[NodeFacts, ...]:
        """Calls that take the result; the graph's output is not among them (see `is_output`)."""
        return tuple(self._capture.facts(node) for node in self.node.users if node.op != "output")

    @property
    def is_output(self) -> bool:
        """Whether the model returns it."""
        return any(node.op == "output" for node in self.node.users)

    def _wrap(self, argument: Any) -> Any:
        wrap: Any = lambda part: self._capture.facts(part) if isinstance(part, fx.Node) else part  # noqa: E731
        return fx.node.map_aggregate(argument, wrap)


# The capture ----------------------------------------------------------------------------------------------------------


@dataclass
class Capture:
    """One target, built and run. `strays`: layers that ran without being registered, per mode.

    `weights`: the file of trained weights that it was loaded with, if any. `batch_size`: samples of a training step, 0
    where no option says so.
    `in_memory`: what is found will be mended on the model itself, so that code nobody here may edit matters too.
    """

    target: Any
    model: torch.nn.Module
    inputs: Any
    device: str
    dtype: str
    seed: int
    modules: dict[str, ModuleFacts]
    parameters: dict[str, ParameterFacts]
    recordings: dict[str, Recording] = field(default_factory=dict)
    rungs: dict[str, Rung] = field(default_factory=dict)
    strays: dict[str, tuple[Stray, ...]] = field(default_factory=dict)
    moved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    batch_size: int = 0
    in_memory: bool = False
    weights: str = ""
    _reads: dict[str, dict[str, list[NodeFacts]]] = field(default_factory=dict, repr=False)
    _facts: dict[fx.Node, NodeFacts] = field(default_factory=dict, repr=False)

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """The recorded graphs, by mode; a mode is missing where recording failed (see `rungs`)."""
        return {mode: recording.graph for mode, recording in self.recordings.items()}

    def facts(self, node: fx.Node) -> NodeFacts:
        if node not in self._facts:
            self._facts[node] = NodeFacts(node, self)
        return self._facts[node]

    def nodes(self, mode: str) -> list[NodeFacts]:
        """All calls of the run in this mode, in order; empty where it was not recorded."""
        graph = self.graphs.get(mode)
        if graph is None:
            return []
        return [self.facts(node) for node in graph.nodes if node.op in ("call_function", "call_module")]

    def calls_to(self, mode: str, *functions: str) -> list[NodeFacts]:
        """Calls to any of these functions, by public name: `calls_to("eval", "torch.nn.functional.dropout")`."""
        return [node for node in self.nodes(mode) if node.function in functions]

    def reads_of(self, mode: str, name: str) -> list[NodeFacts]:
        """The nodes through which a parameter or buffer enters the graph (tied ones go by their first name)."""
        if mode not in self._reads:
            self._reads[mode] = {}
            for node in self.graphs[mode].nodes if mode in self.graphs else ():
                if node.op == "get_attr":
                    self._reads[mode].setdefault(str(node.target), []).append(self.facts(node))
        return self._reads[mode].get(name, [])

    def outputs(self, mode: str) -> tuple[NodeFacts, ...]:
        """What the model returned: the nodes of its tensors."""
        graph = self.graphs.get(mode)
        return () if graph is None else tuple(self.facts(node) for node in graph.output_node().args[0])  # type: ignore[union-attr, arg-type]

    def executed(self, path: str) -> bool:
        """Whether the module at `path` ran in either mode."""
        return any(self.modules[path].calls.values())

    @functools.cached_property
    def probe(self) -> Probe:
        """The initialisation probe (a few test steps)."""
        return run_probe(self, seed=self.seed)

    @functools.cached_property
    def eval_rng(self) -> RngUse:
        """What the model draws from random generators in eval mode."""
        return use_of_generators(self)

    @functools.cached_property
    def _symbolic(self) -> tuple[fx.GraphModule | None, Rung]:
        with preserved(self.model):
            self.model.eval()
            try:
                return fx.symbolic_trace(self.model), Rung("symbolic")
            except Exception as error:  # whatever user code raises when it is shown proxies
                return None, Rung("none", reason_of(error))

    @property
    def symbolic(self) -> Rung:
        """Whether `torch.fx.symbolic_trace` works on the model (in eval mode), and what stopped it."""
        return self._symbolic[1]

    @property
    def symbolic_graph(self) -> fx.Graph | None:
        return self._symbolic[0].graph if self._symbolic[0] is not None else None


def capture(
    model: torch.nn.Module,
    inputs: Any,
    *,
    target: Any = None,
    build_log: BuildLog | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    in_memory: bool = False,
    batch_size: int = 0,
) -> Capture:
    """Run `model` once in each mode and write down what happened; model and random state are left as they were.

    `inputs`: anything with `.args` and `.kwargs`, or a tensor, a tuple of arguments, a dict of keyword arguments.
    `build_log`: who constructed and last wrote what (`build.BuildLog`), if known. The model is moved to `device`
    and its floating-point tensors to `dtype`; nothing is raised if it cannot run: see `Capture.rungs`.
    """
    _move(model, torch.device(device), getattr(torch, dtype))
    inputs = as_inputs(inputs)
    args, kwargs = moved((tuple(inputs.args), dict(inputs.kwargs)), torch.device(device), getattr(torch, dtype))
    _materialise(model, args, kwargs, seed)
    known = is_dataclass(inputs) and not isinstance(inputs, type)
    inputs = replace(inputs, args=args, kwargs=kwargs) if known else LiveInputs(args, kwargs)
    held = described(model, inputs, target=target, build_log=build_log, device=device, dtype=dtype, seed=seed)
    held.in_memory, held.batch_size = in_memory, batch_size
    for mode in MODES:
        run_once(held, mode)
    return held


def described(
    model: torch.nn.Module, inputs: Any, *, target: Any, build_log: BuildLog | None, device: str, dtype: str, seed: int
) -> Capture:
    """What is known of a model that has not run: its modules, its parameters, and where they come from."""
    locations = module_locations(model, build_log)
    return Capture(
        target=target or _live_target(model),
        model=model,
        inputs=inputs,
        device=device,
        dtype=dtype,
        seed=seed,
        modules=_module_facts(model, locations),
        parameters=_parameter_facts(model, locations, build_log),
    )


def run_once(held: Capture, mode: Mode) -> None:
    """Record one forward; where that fails, watch one; where that fails too, keep the reason."""
    try:
        with preserved(held.model), torch.set_grad_enabled(mode == "train"):
            held.model.train(mode == "train")
            seed_all(held.seed)
            recording = record(held.model, *cloned((held.inputs.args, held.inputs.kwargs)))
        held.recordings[mode] = recording
        held.moved[mode] = recording.moved
        held.rungs[mode] = Rung("record", opaque=recording.opaque)
        _note_calls(held, mode, recording.watch)
    except Exception as error:  # whatever user code raises
        _watch(held, mode, reason_of(error))


def _watch(held: Capture, mode: Mode, reason: str) -> None:
    watch = ModuleWatch(held.model)
    rung = Rung("hooks", reason)
    try:
        with preserved(held.model), torch.set_grad_enabled(mode == "train"), eager(), watch:
            held.model.train(mode == "train")
            seed_all(held.seed)
            before = RandomState.now()
            args, kwargs = cloned((held.inputs.args, held.inputs.kwargs))
            held.model(*args, **kwargs)
            held.moved[mode] = before.changed()
    except Exception as error:  # whatever user code raises
        rung = Rung("none", reason_of(error))
    held.rungs[mode] = rung
    _note_calls(held, mode, watch)


def _note_calls(held: Capture, mode: Mode, watch: ModuleWatch) -> None:
    held.strays[mode] = watch.strays
    for path, facts in held.modules.items():
        facts.calls[mode] = watch.calls[path]
        facts.in_shape[mode], facts.out_shape[mode] = watch.shapes.get(path, (None, None))


# Inputs ---------------------------------------------------------------------------------------------------------------


def as_inputs(inputs: Any) -> Any:
    """Inputs with `.args` and `.kwargs`, from a tensor, a tuple of arguments or a dict of keyword arguments."""
    if hasattr(inputs, "args") and hasattr(inputs, "kwargs"):
        return inputs
    if isinstance(inputs, dict):
        args, kwargs = (), inputs
    else:
        args, kwargs = (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}
    tensors = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    sizes = {len(tensor) for tensor in tensors}  # no batch axis is known; a size that all share is that of the batch
    return LiveInputs(args, kwargs, batch_axis_size=sizes.pop() if len(sizes) == 1 else None, source="given")


def _move(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    if all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors):
        return
    model._apply(  # type: ignore[no-untyped-call]
        lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype)
    )


def _materialise(model: torch.nn.Module, args: Any, kwargs: Any, seed: int) -> None:
    """Lazy layers get their shapes from a first forward; nothing can be said of them before."""
    if not any(is_lazy(parameter) for parameter in model.parameters()):
        return
    generators, training = RandomState.now(), model.training
    seed_all(seed)
    try:
        with torch.no_grad():
            model.eval()(*cloned(args), **cloned(kwargs))
    except Exception:
        return  # the recorded runs meet the same error and keep its reason
    finally:
        model.train(training)
        generators.restore()


# Where things come from -----------------------------------------------------------------------------------------------


def _live_target(model: torch.nn.Module) -> LiveTarget:
    location = class_location(type(model))
    return LiveTarget(type(model).__name__, location.path, class_name(type(model)))


def _module_facts(model: torch.nn.Module, locations: Mapping[str, Location]) -> dict[str, ModuleFacts]:
    aliases: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(path)
    return {
        path: ModuleFacts(
            path=path,
            module=module,
            kind=class_name(type(module)),
            location=locations[path],
            parent=path.rpartition(".")[0],
            aliases=tuple(name for name in aliases[id(module)] if name != path),
        )
        for path, module in model.named_modules()
    }


def _parameter_facts(
    model: torch.nn.Module, locations: Mapping[str, Location], build_log: BuildLog | None
) -> dict[str, ParameterFacts]:
    bare = frozenset(build_log.uninitialised if build_log is not None else ())
    facts = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = name.rpartition(".")[0]
        write = build_log.write_to(parameter) if build_log is not None else None
        location = (write.location if write is not None else None) or locations.get(module, Location(""))
        operation = write.operation if write is not None else ""
        facts[name] = ParameterFacts(name, parameter, module, location, operation, name not in bare)
    return facts
