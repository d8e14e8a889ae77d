"""The child's side of a proof: load a file as it was and as the fix leaves it, and check the fix's claims."""

from __future__ import annotations

import math
import platform
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from auditor.dynamic.capture import reason_of
from auditor.dynamic.inputs import Inputs
from auditor.dynamic.service import unusable
from auditor.dynamic.target import Target, find_targets
from auditor.fix.certificate import ClaimResult
from auditor.fix.claims import Claim
from auditor.fix.trial import Subject, run

TIMED_RUNS = 3


def validate(payload: Mapping[str, Any], progress: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """Check `claims` on the model `target` of `path`, whose text is `before` and becomes `after`.

    Both get the same inputs: those of `input`, else those found for the model before, or, where the fix claims to make
    a model run that did not, for the model after. Other keys of `payload`:
    `configured` (settings of the targets), `device`, `dtype`, `seed`, `compile` (compare under torch.compile too),
    `moved` (old to new names of moved parameters).
    The result has `results` (one per claim, see ClaimResult) and, where the models ran, `inputs`, `versions`,
    `seconds_before`, `seconds_after`, `memory_before`, `memory_after`.
    """
    from auditor.fix.validate import validate as check

    claims = [Claim.from_json(claim) for claim in payload["claims"]]
    old, reason = _target(payload, "before")
    if old is None:
        return _unanimous(claims, None, f"the model before the fix cannot be built: {reason}")
    new, reason = _target(payload, "after")
    if new is None:
        return _unanimous(claims, False, f"the model after the fix cannot be built: {reason}")
    options: dict[str, Any] = {
        "device": payload.get("device", "cpu"),
        "dtype": payload.get("dtype", "float32"),
        "compiled": bool(payload.get("compile", False)),
    }
    seed = int(payload.get("seed", 0))
    try:
        inputs = _inputs(old, new, payload.get("input") or (), seed, claims)
    except Exception as error:  # whatever user code raises, or a specification that does not fit
        return _unanimous(claims, None, f"no inputs for the model before the fix: {reason_of(error)}")
    before, after = (
        Subject(_builder(target), inputs, seed=seed, batch_axis=inputs.batch_axis or 0, **options)
        for target in (old, new)
    )
    results = check(before, after, claims, moved=payload.get("moved"), progress=progress)
    return {
        "results": [asdict(result) for result in results],
        "inputs": inputs.description,
        "versions": versions(),
        **costs(before, "before"),
        **costs(after, "after"),
    }


def _target(payload: Mapping[str, Any], side: str) -> tuple[Target | None, str]:
    """The target on one side, or why there is none."""
    name = str(payload.get("target") or "")
    spec = f"{payload['path']}::{name}" if name else str(payload["path"])
    targets, problems = find_targets(spec, payload.get("configured"), payload[side], payload.get("limit", math.inf))
    if targets and targets[0].large:
        return None, "it is too large to be run here"
    if targets:
        return targets[0], ""
    return None, "; ".join(problem.message for problem in problems) or "the file offers no model"


def _inputs(old: Target, new: Target, given: Sequence[str], seed: int, claims: Sequence[Claim]) -> Inputs:
    try:
        return old.inputs(old.build(seed)[0], given, seed=seed)
    except Exception:
        if not any(claim.kind == "runs" for claim in claims):
            raise
    return new.inputs(new.build(seed)[0], given, seed=seed)


def _builder(target: Target) -> Callable[[int], Any]:
    return lambda seed: target.factory()  # the subject seeds before it builds


def devices(payload: Mapping[str, Any], progress: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """The devices that `--device all` stands for: the CPU, and every kind of accelerator torch can use here."""
    return {"devices": available_devices()}


def available_devices() -> list[str]:
    """ "cpu", and "cuda" and "mps" where they work."""
    return ["cpu", *(device for device in ("cuda", "mps") if not unusable(device))]


def _unanimous(claims: Sequence[Claim], holds: bool | None, detail: str) -> dict[str, Any]:
    return {"results": [asdict(ClaimResult.of(claim, holds, detail=detail)) for claim in claims]}


def versions() -> dict[str, str]:
    """What the figures depend on besides the device."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
    }


# Cost ----------------------------------------------------------------------------------------------------------------


def costs(subject: Subject, side: str) -> dict[str, Any]:
    """Seconds (the fastest of three) and peak bytes of tensors in one training forward and backward, if it runs."""
    try:
        model = subject.make()
        with _Memory((*model.parameters(), *model.buffers())) as memory:
            run(model, subject.arguments(), mode="train", gradients=True)
        times = []
        for _ in range(TIMED_RUNS):
            arguments = subject.arguments()
            _synchronise(subject.device)
            start = time.perf_counter()
            run(model, arguments, mode="train", gradients=True)
            _synchronise(subject.device)
            times.append(time.perf_counter() - start)
    except Exception:  # a model that does not train has no such cost; its claims say that it fails
        return {f"seconds_{side}": None, f"memory_{side}": None}
    return {f"seconds_{side}": min(times), f"memory_{side}": memory.peak}


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Peak bytes of the storages made while it is active and still alive, the same on every device.

    Those of `known` tensors were there before.
    """

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)
