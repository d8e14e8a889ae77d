"""A small twin of a model that is too large to be run: the same classes, constructed with smaller sizes.

The arguments that the model's class really got are looked at, whoever passed them; whole numbers in them, and in
configuration objects among them, shrink to what `arguments.py` would have guessed for a parameter of that name.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from auditor.dynamic.arguments import small_integer

if TYPE_CHECKING:
    from auditor.dynamic.target import Target

DEPTH = 3  # configurations inside configurations


def twin_of(target: Target) -> tuple[Target | None, str]:
    """The twin as a target of its own, or why there is none. Constructs the model once more without memory."""
    from auditor.dynamic.load import summary

    try:
        cls, given = _constructed(target)
        small = {name: shrunk(value, name) for name, value in given.items()}
        if not _differs(given, small):
            return None, f"{cls.__name__} takes no sizes that could be made smaller"
        make = functools.partial(_make, cls, small)
        built = make()
    except Exception as error:  # whatever the user's constructor makes of smaller sizes
        return None, f"a smaller one could not be built: {summary(error)}"
    if any(parameter.is_meta for parameter in built.parameters()):
        return None, "what could be made smaller is still too large"
    text = ", ".join(f"{name}={_shown(value)}" for name, value in small.items())
    twin = replace(target, name=f"{target.name} (small twin)", arguments=text, arguments_from="reduced", factory=make)
    return replace(twin, large=False, input=()), ""


def _make(cls: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    return cls(**{name: copy.deepcopy(value) for name, value in arguments.items()})


def _constructed(target: Target) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of the model and the arguments of its construction, by name; ValueError if they have no names."""
    seen: list[tuple[nn.Module, Any, Any]] = []
    model, _, _ = target.build_deferred()
    cls = type(model)
    original: Any = cls.__init__

    @functools.wraps(original)
    def noted(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        seen.append((module, copy.deepcopy(args), copy.deepcopy(kwargs)))
        original(module, *args, **kwargs)

    setattr(cls, "__init__", noted)  # noqa: B010 - a method, to the type checker
    try:
        model, _, _ = target.build_deferred()
    finally:
        setattr(cls, "__init__", original)  # noqa: B010
    args, kwargs = next((args, kwargs) for module, args, kwargs in seen if module is model)
    bound = inspect.signature(original).bind(model, *args, **kwargs)
    given = dict(list(bound.arguments.items())[1:])
    variadic = {p.name: p.kind for p in inspect.signature(original).parameters.values()}
    if any(variadic[name] is inspect.Parameter.VAR_POSITIONAL for name in given):
        raise ValueError("its constructor takes arguments without names")
    for name in [name for name in given if variadic[name] is inspect.Parameter.VAR_KEYWORD]:
        given |= given.pop(name)
    if not given:  # sizes that are all defaults
        parameters = list(inspect.signature(original).parameters.values())[1:]
        given = {p.name: p.default for p in parameters if p.default is not p.empty}
    return cls, given


def shrunk(value: Any, name: str, depth: int = DEPTH) -> Any:
    """`value` with smaller sizes; a copy where it is an object."""
    if type(value) is int:
        return min(value, small_integer(name)) if value > 1 else value
    if depth == 0 or isinstance(value, (str, bytes, float, type, nn.Module)) or value is None:
        return value
    if isinstance(value, dict):
        return {key: shrunk(part, str(key), depth - 1) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: shrunk(getattr(value, f.name), f.name, depth - 1) for f in dataclasses.fields(value) if f.init}
        return replace(value, **own)
    if hasattr(value, "__dict__") and not callable(value):
        duplicate = copy.copy(value)
        for key, part in vars(value).items():
            setattr(duplicate, key, shrunk(part, key, depth - 1))
        return duplicate
    return value


def _differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return any(_shown(before[name]) != _shown(after[name]) for name in before)


def _shown(value: Any) -> str:
    if dataclasses.is_dataclass(value) or isinstance(value, (int, float, str, dict, list, tuple, type(None))):
        return repr(value)
    held = sorted(vars(value).items()) if hasattr(value, "__dict__") else []
    return f"{type(value).__name__}({', '.join(f'{key}={part!r}' for key, part in held if key[0] != '_')})"
