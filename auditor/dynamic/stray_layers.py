"""Layers that ran in eval mode without being registered: made during the forward, or kept where torch does not look."""

from __future__ import annotations

import ast
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from auditor.dynamic.build import constructor_caller
from auditor.dynamic.intent import source_at
from auditor.dynamic.lines import user_location
from auditor.dynamic.names import class_name
from auditor.dynamic.record import ModuleWatch, cloned, eager
from auditor.dynamic.state import preserved, seed_all
from auditor.finding import Location
from auditor.static.facts.stateful import State
from auditor.static.facts.stray_layers import use_of

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

DEPTH = 3  # nesting of plain containers that is searched
_NEUTRAL = (nn.PReLU, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def state_of(module: nn.Module) -> State:
    """What a live layer and its parts carry from one forward to the next."""
    states = [State.NONE]
    for part in module.modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if own:
            states.append(State.NEUTRAL if isinstance(part, (_BatchNorm, *_NEUTRAL)) else State.WEIGHTS)
        elif isinstance(part, _DropoutNd):
            states.append(State.MODE if part.p > 0 and part.training else State.NONE)
        elif isinstance(part, (nn.RReLU, _BatchNorm)):
            states.append(State.MODE)
    return max(states)


# Built in forward --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class BuiltLayer:
    """A layer made during the forward and gone after it. `location`: the user's line that constructed it, `parent`:
    path of the module that called it, `parameters`: its number of tensors, `calls`: layers that the line made."""

    kind: str
    location: Location
    parent: str
    state: State
    parameters: int
    calls: int = 1


class _BuildWatch(ModuleWatch):
    """Also notes where each module that is constructed meanwhile comes from, and which of them are called."""

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__(model)
        self.user_path = path
        self.made: weakref.WeakKeyDictionary[nn.Module, Location | None] = weakref.WeakKeyDictionary()
        self.called: dict[int, tuple[weakref.ref[nn.Module], BuiltLayer]] = {}
        self.parts: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def enter_module(self, module: nn.Module, args: Any) -> None:
        location = self.made.get(module)
        if location is not None and module not in self.parts:
            self.parts.update(part for part in module.modules() if part is not module)
            count = sum(1 for _ in module.parameters())
            layer = BuiltLayer(class_name(type(module)), location, self.path, state_of(module), count)
            self.called[len(self.called)] = weakref.ref(module), layer
            self.made[module] = None  # noted
        super().enter_module(module, args)

    @contextmanager
    def constructions(self) -> Iterator[None]:
        original, watch = nn.Module.__init__, self

        def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            caller = constructor_caller(sys._getframe(1), module)
            original(module, *args, **kwargs)
            watch.made[module] = user_location(caller, watch.user_path)

        nn.Module.__init__ = recorded  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.__init__ = original  # type: ignore[method-assign]


def built_in_eval(capture: Capture) -> list[BuiltLayer]:
    """The layers with a state that a forward in eval mode makes, calls and forgets, one for each line of the user's."""
    if not any(stray.built_in_forward for stray in capture.strays.get("eval", ())):
        return []
    watch = _BuildWatch(capture.model, capture.target.path)
    with watch.constructions():
        _run(capture, watch)
    found: dict[Location, BuiltLayer] = {}
    for reference, layer in watch.called.values():
        if reference() is None and layer.state and not _is_used_otherwise(layer.location):
            if layer.location in found:
                found[layer.location].calls += 1
            else:
                found[layer.location] = layer
    return list(found.values())


def _is_used_otherwise(location: Location) -> bool:
    """Whether the source does more with the layer than calling it: gives it weights, hands it on."""
    source = source_at(location)
    call = source.node_at(location, ast.Call) if source is not None else None
    function = source.function_of(call) if source is not None and call is not None else None
    if source is None or not isinstance(call, ast.Call) or function is None:
        return False
    return bool(source.layer_kind(call)) and use_of(source, call, function) is None


def _run(capture: Capture, watch: ModuleWatch) -> None:
    """One forward in eval mode, watched; the model is left as it was."""
    with preserved(capture.model), torch.no_grad(), eager(), watch:
        capture.model.eval()
        seed_all(capture.seed)
        args, kwargs = cloned((tuple(capture.inputs.args), dict(capture.inputs.kwargs)))
        capture.model(*args, **kwargs)


# Kept out of torch's sight -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeptLayers:
    """Layers that the module at `owner` holds as `attribute`, in a container or object that is no Module, and calls.

    `location`: the line that first sets the attribute.
    """

    owner: str
    attribute: str
    holder: str
    location: Location
    layers: tuple[nn.Module, ...]
    state: State


class _CallWatch(ModuleWatch):
    """Also keeps which modules were called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.called: set[int] = set()

    def enter_module(self, module: nn.Module, args: Any) -> None:
        self.called.add(id(module))
        super().enter_module(module, args)


def kept_unregistered(capture: Capture) -> list[KeptLayers]:
    """Layers with a state that run in eval mode, are reached through a plain attribute of a registered module, and are
    registered nowhere. One layer alone in a container, and frozen layers, are taken for hidden on purpose."""
    if not capture.strays.get("eval"):
        return []
    registered = {id(module) for module in capture.model.modules()}
    held = [
        (facts.path, facts.module, name, value, _modules_in(value, DEPTH))
        for facts in capture.modules.values()
        for name, value in vars(facts.module).items()
        if name not in _OWN
    ]
    hidden = [item for item in held if any(id(module) not in registered for module in item[-1])]
    if not hidden:
        return []
    watch = _CallWatch(capture.model)
    _run(capture, watch)
    found = []
    for path, module, name, value, inside in hidden:
        ran = [
            layer for layer in inside if id(layer) not in registered and _ran(layer, watch.called) and state_of(layer)
        ]
        if ran and not (len(inside) == 1 and _is_container(value)) and not _frozen(ran):
            holder = type(value).__name__
            location = attribute_line(type(module), name) or capture.modules[path].location
            found.append(KeptLayers(path, name, holder, location, tuple(ran), max(map(state_of, ran))))
    return found


_OWN = frozenset(vars(nn.Module()))


def _is_container(value: object) -> bool:
    return isinstance(value, (list, tuple, dict, set))


def _modules_in(value: object, depth: int) -> list[nn.Module]:
    """The modules in nested plain containers, or among the attributes of an object of the user's."""
    if isinstance(value, nn.Module):
        return [value]
    if depth == 0 or isinstance(value, (str, int, float, torch.Tensor, type, type(None))):
        return []
    items: Any = ()
    if isinstance(value, dict):
        items = value.values()
    elif isinstance(value, (list, tuple, set)):
        items = value
    elif depth == DEPTH and type(value).__module__ not in sys.stdlib_module_names and hasattr(value, "__dict__"):
        items = vars(value).values()
    return [module for item in list(items) for module in _modules_in(item, depth - 1)]


def _ran(layer: nn.Module, called: set[int]) -> bool:
    return any(id(part) in called for part in layer.modules())


def _frozen(layers: list[nn.Module]) -> bool:
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def attribute_line(cls: type, attribute: str) -> Location | None:
    """The statement of the user's classes that first sets `self.<attribute>`."""
    from auditor.dynamic.capture import class_location

    for owner in cls.__mro__:
        location = class_location(owner)
        source = source_at(location) if location.path else None
        facts = source.module_class(owner.__name__) if source is not None else None
        assigned = facts.own_attributes.get(attribute) if facts is not None else None
        if assigned:
            return Location(location.path, assigned[0].statement.lineno)
    return None
