"""Constructs a model under recorders: which line made each layer, which last wrote each parameter, what none wrote."""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from auditor.dynamic.deferred import Deferral
from auditor.dynamic.lines import is_user_file, user_location
from auditor.dynamic.state import RandomState, Switches, seed_all
from auditor.finding import Location

INIT_FILE = str(Path(torch.nn.init.__file__))

# What a fresh uninitialised tensor is filled with. The floats are quiet NaNs whose payload no computation produces
# (a NaN that is computed has payload 0), so a model that legitimately holds NaN is never taken for an uninitialised
# one. Types with too few bits for a safe signature are left alone.
SIGNATURES: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.float16: (torch.int16, 0x7F5B),
    torch.bfloat16: (torch.int16, 0x7FEB),
    torch.float32: (torch.int32, 0x7FEB6D5B),
    torch.float64: (torch.int64, 0x7FFD6DAB60000000),
    torch.int32: (torch.int32, 0x5AD17ED5),
    torch.int64: (torch.int64, 0x5AD17ED50FC0FFEE),
}
UNINITIALISED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


@dataclass(frozen=True, slots=True)
class Write:
    """The last write to a tensor: the user's line, and the operation (`"zeros_"`, `"xavier_uniform_"`, `"copy_"`).

    A tensor never written in place names the operation that created it (`"zeros"`, `"randn"`, `"empty"`).
    """

    location: Location | None
    operation: str


@dataclass(slots=True)
class BuildLog:
    """What was seen while a model was constructed. Keys are `id`s of the model's live modules and parameters.

    `uninitialised` are the names of parameters holding at least one element that nothing ever wrote (such elements
    have since been replaced by small seeded values, so that the rest of the model can be audited). `reason` says why
    something could not be recorded.
    """

    modules: dict[int, Location] = field(default_factory=dict)
    parameters: dict[int, Write] = field(default_factory=dict)
    uninitialised: tuple[str, ...] = ()
    uninitialised_buffers: tuple[str, ...] = ()
    reason: str = ""

    def location_of(self, module: nn.Module) -> Location | None:
        """The user's line that constructed `module`, if one did."""
        return self.modules.get(id(module))

    def write_to(self, parameter: torch.Tensor) -> Write | None:
        """The last write to a parameter or buffer during construction."""
        return self.parameters.get(id(parameter))


def build(factory: Callable[[], Any], seed: int = 0, *, path: str = "") -> tuple[nn.Module, BuildLog]:
    """Call `factory` under a seed and recorders. `path` is the target's file, always taken for the user's code.

    Global state (random generators, default dtype, deterministic flags, grad mode) is as before afterwards. Whatever
    the factory raises is raised; TypeError if it returns no module.
    """
    reasons = []
    for fill in (True, False):
        try:
            model, log = _recorded(factory, seed, path, fill)
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
        else:
            if not fill:
                log.reason = f"uninitialised parameters could not be looked for ({reasons[0]})"
            return model, log
    return construct(factory, seed), BuildLog(reason=f"the construction could not be recorded ({reasons[-1]})")


def construct(factory: Callable[[], Any], seed: int = 0) -> nn.Module:
    """Call `factory` under a seed with no recorder, global state restored; TypeError if it returns no module."""
    with _global_state(seed):
        model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"it returned {type(model).__name__}, not a torch.nn.Module")
    return model


class TooLarge(BaseException):
    """The parameters of a model under construction need more memory than allowed. User code cannot catch it by
    `except Exception`."""


@contextmanager
def limited(limit: float) -> Iterator[None]:
    """Raise TooLarge as soon as modules hold parameters of more than `limit` bytes; nothing has filled the last yet."""
    original, held = nn.Module.register_parameter, 0

    def counted(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        nonlocal held
        original(module, name, param)
        if isinstance(param, torch.Tensor) and not param.is_meta and not nn.parameter.is_lazy(param):
            held += param.numel() * param.element_size()
            if held > limit:
                raise TooLarge(f"its parameters need more than {limit / 2**30:.1f} GB")

    setattr(nn.Module, "register_parameter", counted)  # noqa: B010 - a method, to the type checker
    try:
        yield
    finally:
        setattr(nn.Module, "register_parameter", original)  # noqa: B010


def build_deferred(
    factory: Callable[[], Any], seed: int = 0, *, path: str = ""
) -> tuple[nn.Module, BuildLog, Deferral]:
    """As `build`, with large tensors on the meta device and the log of what would have filled them.

    A parameter is uninitialised here if nothing wrote any part of it. Raises what the factory raises, and what torch
    raises where a constructor looks at values that are not there.
    """
    recorder, deferral = _Recorder(path, None), Deferral()
    with recorder, deferral:
        model = construct(factory, seed)
    log = recorder.log(model)
    fills = {name: deferral.fill_of(parameter) for name, parameter in model.named_parameters()}
    log.uninitialised = tuple(name for name, fill in fills.items() if fill is not None and fill.kind == "empty")
    return model, log, deferral


def _recorded(factory: Callable[[], Any], seed: int, path: str, fill: bool) -> tuple[nn.Module, BuildLog]:
    recorder = _Recorder(path, _signature if fill else None)
    with recorder:
        model = construct(factory, seed)
    log = recorder.log(model)
    if fill:
        _find_uninitialised(model, log, factory, seed)
    return model, log


@contextmanager
def _global_state(seed: int) -> Iterator[None]:
    """Seed every generator; put generators and torch's global switches back afterwards."""
    generators, switches = RandomState.now(), Switches.now()
    try:
        seed_all(seed)
        yield
    finally:
        generators.restore()
        switches.restore()


# Lines ---------------------------------------------------------------------------------------------------------------


def constructor_caller(frame: types.FrameType | None, module: nn.Module) -> types.FrameType | None:
    """The first frame from `frame` outwards that is not constructing `module` itself."""
    outermost = frame
    while frame is not None:
        code = frame.f_code
        constructing = code.co_name in ("__init__", "__new__", "__call__") and code.co_argcount > 0
        if constructing and frame.f_locals.get(code.co_varnames[0]) is module:
            outermost = frame.f_back
        frame = frame.f_back
    return outermost


# Recorders -----------------------------------------------------------------------------------------------------------


class _Recorder:
    """Records, while active, where modules are constructed and where storages are written."""

    def __init__(self, path: str, fill: Callable[[torch.Tensor], None] | None) -> None:
        self.path = path
        self.fill = fill
        self.modules: dict[int, tuple[nn.Module, Location | None]] = {}
        # By address of the storage. The weak reference keeps the address from being reused by another storage.
        self.writes: dict[int, tuple[StorageWeakRef, Write]] = {}
        self.stack = ExitStack()

    def __enter__(self) -> _Recorder:
        recorder, original_init = self, nn.Module.__init__

        @functools.wraps(original_init)
        def recorded_init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            caller = constructor_caller(sys._getframe(1), module)
            recorder.modules[id(module)] = module, user_location(caller, recorder.path)
            original_init(module, *args, **kwargs)

        def recorded_deepcopy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
            duplicate = _copy_object(module, memo)
            recorder.inherit(module, duplicate)
            return duplicate

        setattr(nn.Module, "__init__", recorded_init)  # noqa: B010 - a method, to the type checker
        self.stack.callback(setattr, nn.Module, "__init__", original_init)
        nn.Module.__deepcopy__ = recorded_deepcopy  # type: ignore[attr-defined]
        self.stack.callback(delattr, nn.Module, "__deepcopy__")
        self.stack.enter_context(_Assignments(self))
        self.stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def inherit(self, original: nn.Module, duplicate: nn.Module) -> None:
        """A copied module, and its tensors, come from where the original came from."""
        if id(original) in self.modules:
            self.modules[id(duplicate)] = duplicate, self.modules[id(original)][1]
        for name in ("_parameters", "_buffers"):
            for key, tensor in getattr(original, name).items():
                twin = getattr(duplicate, name).get(key)
                write = self.write_to(tensor)
                if write is not None and isinstance(twin, torch.Tensor):
                    self.record(twin, write)

    def record(self, tensor: torch.Tensor, write: Write) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self.writes[storage._cdata] = StorageWeakRef(storage), write  # type: ignore[no-untyped-call]

    def write_to(self, tensor: object) -> Write | None:
        storage = _storage(tensor)
        entry = self.writes.get(storage._cdata) if storage is not None else None
        return entry[1] if entry is not None and not entry[0].expired() else None  # type: ignore[no-untyped-call]

    def log(self, model: nn.Module) -> BuildLog:
        log = BuildLog()
        for module in model.modules():
            _, location = self.modules.get(id(module), (None, None))
            if location is not None:
                log.modules[id(module)] = location
        for tensor in (*model.parameters(), *model.buffers()):
            write = self.write_to(tensor)
            if write is not None:
                log.parameters[id(tensor)] = write
        return log


def _copy_object(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `copy.deepcopy` does for an object with no `__deepcopy__` of its own."""
    recipe: Any = module.__reduce_ex__(4)
    make, arguments, state, *_ = recipe
    duplicate: Any = make(*arguments)
    memo[id(module)] = duplicate
    duplicate.__setstate__(copy.deepcopy(state, memo))
    return cast(nn.Module, duplicate)


class _Assignments(TorchFunctionMode):
    """Sees `parameter.data = value`, which is no operation of the dispatcher."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "__set__" and getattr(function, "__self__", None) is torch.Tensor.data:
            self.recorder.record(args[0], Write(user_location(sys._getframe(1), self.recorder.path), "data"))
        return result


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: fills what is created uninitialised, records what is created or written in place."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        numel = args[0].numel() if name == "resize_" else 0
        result = function(*args, **kwargs)
        if self.recorder.fill is not None:
            if name in UNINITIALISED:
                self.recorder.fill(result)
            elif name == "resize_" and result.numel() > numel and result.is_contiguous():
                self.recorder.fill(result.view(-1)[numel:])
        written = list(_written(function, args, kwargs)) if function._schema.is_mutable else []
        for tensor in written or _created(result, args, kwargs):
            self.note(name, tensor, created=not written)
        return result

    def note(self, name: str, tensor: torch.Tensor, created: bool) -> None:
        """Record the write, unless it covers little of a tensor that was filled before (a padding row)."""
        before = self.recorder.write_to(tensor)
        storage = _storage(tensor)
        if storage is None:
            return
        partial = tensor.numel() * tensor.element_size() * 2 < storage.nbytes()
        if before is not None and before.operation not in UNINITIALISED and partial and not created:
            return
        frame = sys._getframe(2)
        operation = _initialiser(frame) or name
        self.recorder.record(tensor, Write(user_location(frame, self.recorder.path), operation))


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name, args[position] if position < len(args) else None)
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _created(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.Tensor) and _address(leaf) not in given:
            yield leaf


def _storage(tensor: object) -> torch.UntypedStorage | None:
    if not isinstance(tensor, torch.Tensor) or nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # wrapper subclasses have none
        return None


def _address(tensor: torch.Tensor) -> int | None:
    storage = _storage(tensor)
    return storage._cdata if storage is not None else None


def _initialiser(frame: types.FrameType | None) -> str:
    """The function of torch.nn.init that the user's code called, if one is running."""
    name = ""
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if frame.f_code.co_filename == INIT_FILE and not frame.f_code.co_name.startswith("_"):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


# Uninitialised memory ------------------------------------------------------------------------------------------------


def _bits(tensor: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """The tensor's bits as integers and the signature to compare with; None for types without one."""
    if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer) or tensor.is_meta or _storage(tensor) is None:
        return None
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype not in SIGNATURES:
        return None
    integer, signature = SIGNATURES[tensor.dtype]
    return tensor.view(integer), signature


def _signature(tensor: torch.Tensor) -> None:
    """Fill `tensor` with the signature of uninitialised memory."""
    found = _bits(tensor)
    if found is not None:
        found[0].fill_(found[1])


def _ones(tensor: torch.Tensor) -> None:
    if _bits(tensor) is not None:
        tensor.detach().fill_(1)


def _unwritten(tensor: torch.Tensor) -> torch.Tensor | None:
    """Mask of the elements that still hold the signature; None if there are none."""
    found = _bits(tensor)
    if found is None:
        return None
    mask = found[0] == found[1]
    if tensor.is_complex():
        mask = mask.any(dim=-1)
    return mask if bool(mask.any()) else None


def _find_uninitialised(model: nn.Module, log: BuildLog, factory: Callable[[], Any], seed: int) -> None:
    """Name the tensors that hold uninitialised memory and replace these elements by small seeded values."""
    parameters = {name: tensor for name, tensor in model.named_parameters() if _storage(tensor) is not None}
    buffers = {name: tensor for name, tensor in model.named_buffers() if _storage(tensor) is not None}
    masks = {name: _unwritten(tensor) for name, tensor in {**parameters, **buffers}.items()}
    suspects = {
        name: tensor
        for name, tensor in {**parameters, **buffers}.items()
        if masks[name] is None and tensor.is_floating_point() and not tensor.is_meta and bool(tensor.isnan().any())
    }
    if suspects:  # a NaN, but not ours: computed by the user, or ours after a conversion that dropped the payload
        masks.update(_nan_from_memory(suspects, factory, seed))
    log.uninitialised = tuple(name for name in parameters if masks[name] is not None)
    log.uninitialised_buffers = tuple(name for name in buffers if masks[name] is not None)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in {**parameters, **buffers}.items():
        mask = masks[name]
        if mask is not None:
            _replace(tensor, mask, generator)


def _nan_from_memory(
    suspects: dict[str, torch.Tensor], factory: Callable[[], Any], seed: int
) -> dict[str, torch.Tensor | None]:
    """Which suspects owe their NaN to uninitialised memory: those that have none when it is filled with ones."""
    with _Recorder("", _ones):
        again = construct(factory, seed)
    tensors = {**dict(again.named_parameters()), **dict(again.named_buffers())}
    return {
        name: tensor.detach().isnan()
        for name, tensor in suspects.items()
        if name in tensors and not bool(tensors[name].isnan().any())
    }


@torch.no_grad()
def _replace(tensor: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> None:
    """Uniform in ±1/sqrt(fan-in), torch's own default for weights; zeros in integers."""
    count = int(mask.sum())
    if not tensor.is_floating_point():
        tensor[mask] = torch.zeros(count, dtype=tensor.dtype, device=tensor.device)
        return
    fan_in = tensor[0].numel() if tensor.dim() > 1 else tensor.numel()
    values = (torch.rand(count, generator=generator) * 2 - 1) / max(fan_in, 1) ** 0.5
    tensor[mask] = values.to(tensor.device, tensor.dtype)
