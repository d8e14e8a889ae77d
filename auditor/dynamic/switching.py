"""Tries the `train` and `eval` that a user's modules override, and says what they leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from auditor.dynamic.capture import class_location
from auditor.dynamic.intent import source_at
from auditor.dynamic.state import preserved
from auditor.finding import Location
from auditor.static.facts.mode_overrides import keeps_its_mode, overrides

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture


@dataclass(frozen=True, slots=True)
class TriedSwitch:
    """`call` on the module at `path` went wrong: it `raises`, leaves the layers `unchanged` (paths below the module,
    "" for itself) in the other mode, or returned something else than the module. `location`: the override."""

    path: str
    call: str
    location: Location
    raises: str = ""
    unchanged: tuple[str, ...] = ()
    returned: str = ""


def tried_switches(capture: Capture) -> Iterator[TriedSwitch]:
    """The first thing that goes wrong in each of the user's overrides of `train` and `eval`; the model is left as it
    was. Layers that a module holds back in eval mode are no fault."""
    seen: set[Location] = set()
    for path, facts in capture.modules.items():
        for name in ("train", "eval"):
            location, sound = _override(type(facts.module), name)
            if location is None or location in seen:
                continue
            seen.add(location)
            with preserved(capture.model):
                tried = _try(facts.module, path, name, location)
            held_back = tried is not None and "" not in tried.unchanged and bool(tried.unchanged) and sound
            if tried is not None and not held_back:
                yield tried


def _override(cls: type, name: str) -> tuple[Location | None, bool]:
    """Where a user's class defines `name` itself, other than to keep its mode for good, and whether it reads as sound:
    the layers that a sound one leaves in the other mode are held there on purpose."""
    owner = next(item for item in cls.__mro__ if name in vars(item))
    location = class_location(owner)
    source = source_at(location) if owner is not nn.Module and location.path else None
    facts = source.module_class(owner.__name__) if source is not None else None
    method = facts.methods.get(name) if facts is not None else None
    if source is None or method is None or keeps_its_mode(method):
        return None, True
    sound = all(found.method is not method for found in overrides(source))
    return Location(location.path, method.lineno), sound


def _try(module: nn.Module, path: str, name: str, location: Location) -> TriedSwitch | None:
    """`eval()` or `train(False)` on a module in train mode, then `train(True)` on one in eval mode."""
    tries = (
        [("eval()", (), True)]
        if name == "eval"
        else [("train(False)", (False,), True), ("train(True)", (True,), False)]
    )
    for text, arguments, before in tries:
        for part in module.modules():
            part.training = before
        try:
            returned = getattr(module, name)(*arguments)
        except Exception as error:  # whatever user code raises
            return TriedSwitch(path, text, location, raises=f"{type(error).__name__}: {error}")
        if before:
            unchanged = tuple(key for key, part in module.named_modules() if part.training)
            if unchanged:
                return TriedSwitch(path, text, location, unchanged=unchanged)
        if returned is not module:
            return TriedSwitch(path, text, location, returned=type(returned).__name__)
    return None
