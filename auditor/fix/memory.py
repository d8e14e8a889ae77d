"""`auditor.rewrite`: mends a model in memory, on a copy, and proves every change before it stays.

    model → Capture → rule.dynamic → Finding → rule.rewrite, or the methods that rule.fix edits → validate → Certificate

A change is a function of a model, so that the model before and the model after can be made as often as the proof needs
them, in any precision and with any weights.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import linecache
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from auditor.dynamic.build import BuildLog, build, construct
from auditor.dynamic.capture import Capture, as_inputs, capture, class_location, reason_of
from auditor.dynamic.service import run_checks, unusable
from auditor.dynamic.state import RandomState
from auditor.finding import RUN, Finding, merge
from auditor.fix.certificate import Certificate, failed_claim, verdict
from auditor.fix.claims import Claim
from auditor.fix.edit import Edit, Fix
from auditor.fix.engine import Refusal, is_allowed, tries
from auditor.fix.methods import edit_methods
from auditor.fix.service import available_devices, costs, versions
from auditor.fix.surgery import Surgery
from auditor.fix.trial import Subject, dtype_of
from auditor.fix.validate import validate
from auditor.rule import Rule
from auditor.settings import ALL, Settings
from auditor.static.check import check_text, chosen_rules, drop_symptoms
from auditor.static.files import display

ROUNDS = 20

Change = Callable[[nn.Module], list[str]]
"""Mends a model in place and says in words what it did."""


class RewriteError(ValueError):
    """The model cannot be rewritten at all; the message says why, and what would help."""


class Rewriting(NamedTuple):
    """What `rewrite` returns: the new model, and one certificate for every finding that it tried to mend."""

    model: nn.Module
    certificates: list[Certificate]


class Step(NamedTuple):
    """A way to mend one finding: what it claims, and the change; or, if it is a source fix, its edits of a file."""

    finding: Finding
    fix: Fix
    change: Change | None = None
    path: str = ""
    edits: tuple[Edit, ...] = ()


def rewrite(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    *,
    select: str | Sequence[str] = ("ALL",),
    ignore: str | Sequence[str] = (),
    unsafe: bool = True,
    device: str = "",
    dtype: str = "",
    seed: int = 0,
    compile: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Rewriting:
    """A copy of `model` in which the layers and initial weights that rules object to are those of the reference.

    `model`: a module, which is left as it is, or a function that builds one (then also parameters that nothing
    initialises are known). `inputs`: a tensor, a tuple of arguments or a dict of keyword arguments, whose batch size is
    taken for that of training. `select`, `ignore`: codes or names of rules, as on the command line. `unsafe=False`
    leaves out what may change what was meant (another normalisation, other initial weights, another rate).

    Every change is validated by running the model before and after it on `device` ("all": on the CPU and every kind of
    accelerator there is) in `dtype` ("float32", "bfloat16", …; by default those of the model), in float64 first, and
    with `compile` also under `torch.compile`. What breaks a
    claim is not made; its certificate says which claim, and by how much. The copy has the device, dtype and mode of
    the original. Problems of single rules are warnings.

    Raises RewriteError for a model that cannot be copied or run (scripted, compiled, on the meta device), ValueError
    for a rule or device that does not exist.
    """
    settings = Settings(
        select=(select,) if isinstance(select, str) else tuple(select),
        ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
        seed=seed,
    )
    rules, generators = chosen_rules(settings), RandomState.now()
    try:
        make, log = _source(model, as_inputs(inputs), seed)
        first = make(seed)
        settings = settings.override(dtype=dtype or _dtype_name(first), compile=compile)
        devices = available_devices() if device == ALL else [device or _device_of(first)]
        if not isinstance(getattr(torch, settings.dtype, None), torch.dtype):
            raise ValueError(f"unknown dtype {settings.dtype!r}: float64, float32, bfloat16 or float16")
        for place in devices:
            if reason := unusable(place):
                raise ValueError(reason)
        settings = settings.override(device=devices[0])
        work = _Work(make, log, as_inputs(inputs), rules, settings, devices, unsafe, progress)
        work.run()
        return Rewriting(work.build(seed), [*work.certificates, *work.refusals])
    finally:
        generators.restore()


class _Work:
    """The rewriting of one model: changes accepted so far, and what is still found."""

    def __init__(
        self,
        make: Callable[[int], nn.Module],
        log: BuildLog | None,
        inputs: Any,
        rules: Sequence[Rule],
        settings: Settings,
        devices: Sequence[str],
        unsafe: bool,
        progress: Callable[[str], None],
    ) -> None:
        self.make, self.log, self.inputs, self.rules, self.settings = make, log, inputs, rules, settings
        self.devices, self.unsafe, self.progress = devices, unsafe, progress
        self.by_code = {rule.code: rule for rule in rules}
        self.name = type(make(settings.seed)).__name__
        self.steps: list[Step] = []
        self.certificates: list[Certificate] = []
        self.refusals: list[Certificate] = []
        self.texts: dict[str, str] = {}

    def build(self, seed: int, further: Sequence[Step] = ()) -> nn.Module:
        """A new model with all accepted changes, and these further ones."""
        model = self.make(seed)
        self.apply(model, (*self.steps, *further))
        return model

    def apply(self, model: nn.Module, steps: Sequence[Step], earlier: Sequence[Step] = ()) -> list[list[str]]:
        """Make these changes, in order, on a model that has the `earlier` ones; what each of them did, in words."""
        edits: dict[str, list[Edit]] = {}
        for step in earlier:
            edits.setdefault(step.path, []).extend(step.edits)
        done = []
        for step in steps:
            if step.change is not None:
                done.append(step.change(model))
                continue
            edits.setdefault(step.path, []).extend(step.edits)  # one compiled method carries all edits so far
            text = self.texts[step.path]
            done.append(edit_methods(model, step.path, text, _with_edits(text, tuple(edits[step.path]))))
        return done

    def run(self) -> None:
        self.progress("running the model")
        captured, found = self.look()
        if captured.rungs["train"].name == captured.rungs["eval"].name == "none":
            raise RewriteError(f"the model cannot be run: {captured.rungs['eval'].reason}")
        for _ in range(ROUNDS):
            steps, self.refusals = self.plan(captured, found)
            refused: list[Refusal] = []
            for group in tries([step.finding for step in steps], refused):
                chosen = [step for step in steps if step.finding in group]
                outcome = self.attempt(found, chosen)
                if isinstance(outcome, str):
                    refused += [Refusal(step.finding, outcome, outcome) for step in chosen]
                    continue
                captured, found = outcome
                break
            else:
                return

    def look(self, further: Sequence[Step] = ()) -> tuple[Capture, list[Finding]]:
        """A run of the model as it is now, and what the rules find in it, with their source fixes."""
        settings = self.settings
        # The log of the construction knows the modules of the first model by identity: only they have their lines.
        model, log = (self.build(settings.seed, further), None) if self.log is None else self._logged(further)
        captured = capture(
            model,
            self.inputs,
            build_log=log,
            device=settings.device,
            dtype=settings.dtype,
            seed=settings.seed,
            in_memory=True,
        )
        findings, problems = run_checks(captured, self.rules, display(captured.target.path))
        for problem in problems:
            warnings.warn(problem.message, stacklevel=2)
        for path in _files_of(model):
            text = self.texts.setdefault(path, "".join(linecache.getlines(path)))
            read = check_text(display(path), text, self.rules)
            findings += [finding for finding in read.findings if finding.code in self.by_code]
        found = [finding for finding in drop_symptoms(merge(findings), self.rules) if RUN in finding.seen]
        return captured, found

    def _logged(self, further: Sequence[Step]) -> tuple[nn.Module, BuildLog]:
        return build(lambda: self.build(self.settings.seed, further), self.settings.seed)

    # Planning --------------------------------------------------------------------------------------------------------

    def plan(self, captured: Capture, found: Sequence[Finding]) -> tuple[list[Step], list[Certificate]]:
        """A step for every finding that a rule knows how to mend, and why it cannot be done for the others."""
        steps: list[Step] = []
        refused: list[Certificate] = []
        for finding in found:
            try:
                step = self._step(captured, finding)
            except ValueError as error:
                fix = Fix(self.by_code[finding.code].loaded().title, ())
                refused.append(self._certificate(finding, fix, (), "refused", str(error)))
                continue
            if step is not None and (self.unsafe or is_allowed(step.fix, unsafe=False)):
                steps.append(step)
        return steps, refused

    def _step(self, captured: Capture, finding: Finding) -> Step | None:
        """By the rule's `rewrite`, or by the edits of its fix where that has nothing to do or cannot."""
        try:
            step = self._operated(captured, finding)
        except ValueError:
            with contextlib.suppress(ValueError):  # the first reason says more
                if (step := self._edited(finding)) is not None:
                    return step
            raise
        return step or self._edited(finding)

    def _operated(self, captured: Capture, finding: Finding) -> Step | None:
        """The step by the rule's own `rewrite`; None if it has none. Tried out on a model of its own."""
        rule, seed = self.by_code[finding.code], self.settings.seed

        def change(model: nn.Module) -> list[str]:
            surgery = Surgery(model, captured, seed)
            rule.operate(surgery, finding)
            return surgery.changes

        surgery = Surgery(self.build(seed), captured, seed)
        fix = rule.operate(surgery, finding)
        return Step(finding, fix, change) if fix is not None and surgery.changes else None

    def _edited(self, finding: Finding) -> Step | None:
        """The step that makes the edits of the rule's source fix on the classes of the model; None if it has none."""
        from auditor.static.source import opened

        path = next((path for path in self.texts if display(path) == finding.location.path), "")
        if not path or not self.by_code[finding.code].fixes:
            return None
        text = self.texts[path]
        fix = self.by_code[finding.code].mend(opened(display(path), text), finding)
        if fix is None:
            return None
        step = Step(finding, fix, path=path, edits=fix.edits)
        self.build(self.settings.seed, [step])  # ValueError where this cannot be done in memory
        return step

    # Proving ---------------------------------------------------------------------------------------------------------

    def attempt(self, found: Sequence[Finding], steps: Sequence[Step]) -> tuple[Capture, list[Finding]] | str:
        """What a run shows after these steps, made together and accepted; or why they are refused."""
        self.progress("proving " + ", ".join(dict.fromkeys(step.finding.code for step in steps)))
        try:
            made = [certificate for device in self.devices for certificate in self._prove(steps, device)]
        except ValueError as error:  # changes that can be made alone, but not together
            return str(error)
        refused = next((certificate for certificate in made if not certificate.accepted), None)
        if refused is not None:
            self.refusals += made
            return f"{failed_claim(refused.claims)}: {refused.reason}"
        captured, after = self.look(steps)
        reason = _not_gone(found, steps, after)
        if reason:
            self.refusals += [replace(one, verdict="refused", reason=reason) for one in made]
            return reason
        self.steps += steps
        self.certificates += made
        mended = {(step.finding.code, step.finding.location) for step in steps}
        self.refusals = [one for one in self.refusals if (one.code, one.row) not in {(c, at.row) for c, at in mended}]
        return captured, after

    def _prove(self, steps: Sequence[Step], device: str) -> list[Certificate]:
        settings = self.settings
        axis = getattr(self.inputs, "batch_axis", None) or 0
        options: dict[str, Any] = {
            "device": device, "dtype": settings.dtype, "seed": settings.seed, "batch_axis": axis,
            "compiled": settings.compile,
        }  # fmt: skip

        before = Subject(self.build, self.inputs, **options)
        after = Subject(
            lambda seed: self.build(seed, steps),
            self.inputs,
            derive=lambda model: self.apply(model, steps, self.steps),
            **options,
        )
        claims = list(dict.fromkeys(claim for step in steps for claim in _claims(step.fix)))
        results = validate(before, after, claims)
        measured = {"versions": versions(), "device": device, **costs(before, "before"), **costs(after, "after")}
        changes = self.apply(self.build(settings.seed), steps, self.steps)
        made = []
        for step, done in zip(steps, changes, strict=True):
            wanted = {claim.text for claim in _claims(step.fix)}
            own = [result for result in results if result.claim in wanted]
            made.append(self._certificate(step.finding, step.fix, done, *verdict(own), claims=tuple(own), **measured))
        return made

    def _certificate(
        self,
        finding: Finding,
        fix: Fix,
        changes: Sequence[str],
        decided: str,
        reason: str,
        **further: Any,
    ) -> Certificate:
        further.setdefault("device", self.settings.device)
        return Certificate(
            how="memory",
            modules=finding.modules,
            compiled=self.settings.compile,
            code=finding.code,
            name=finding.name,
            path=finding.location.path,
            row=finding.location.row,
            title=fix.title,
            diff="".join(f"{change}\n" for change in changes),
            target=self.name,
            inputs=getattr(self.inputs, "description", ""),
            dtype=self.settings.dtype,
            seed=self.settings.seed,
            verdict=decided,
            reason=reason,
            **further,
        )


def _claims(fix: Fix) -> tuple[Claim, ...]:
    return (*fix.keeps, *fix.gains)


@functools.lru_cache(maxsize=256)
def _with_edits(text: str, edits: tuple[Edit, ...]) -> str:
    from auditor.fix import rewrite as codemod

    try:
        return codemod.apply(text, edits)
    except codemod.EditError as error:
        raise ValueError(f"the edits cannot be made: {error}") from error


def _not_gone(before: Sequence[Finding], steps: Sequence[Step], after: Sequence[Finding]) -> str:
    """Why the steps do not mend what they should: their findings stand, or there are new ones; empty if they do."""
    had, gone = Counter(f.code for f in before), Counter(step.finding.code for step in steps)
    has = Counter(finding.code for finding in after)
    for code in sorted(had | has):
        if has[code] > had[code] - gone[code]:
            return f"{code} is {'still' if gone[code] else 'newly'} found in the result"
    return ""


# The model given -----------------------------------------------------------------------------------------------------


def _source(
    model: nn.Module | Callable[[], nn.Module], inputs: Any, seed: int
) -> tuple[Callable[[int], nn.Module], BuildLog | None]:
    """A function that gives fresh copies of the model, and the log of its construction if it can be built."""
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise TypeError(f"give a torch.nn.Module or a function that builds one, not {type(model).__name__}")
        factory = model
        first, log = build(factory, seed)
        _refuse(first)
        return functools.partial(construct, factory), log
    _refuse(model)
    original = _copy(model)
    if any(is_lazy(parameter) for parameter in original.parameters()):
        _materialise(original, inputs)
    return (lambda _seed: _copy(original)), None


def _refuse(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise RewriteError("a ScriptModule is compiled code: rewrite the model it was made from")
    if hasattr(model, "_orig_mod"):
        raise RewriteError("the model is compiled: rewrite it first, then call torch.compile")
    if isinstance(model, torch.fx.GraphModule):
        raise RewriteError("a GraphModule has no layers of its own: rewrite the model it was traced from")
    meta = next((name for name, tensor in model.named_parameters() if tensor.is_meta), None)
    if meta is not None:
        raise RewriteError(f"`{meta}` is on the meta device and has no values: materialise the model first")


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # graph-holding tensors, locks, files, …
        if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            raise RewriteError("the model has lazy layers that torch cannot copy: call it once on an input") from error
        raise RewriteError(f"the model cannot be copied: {reason_of(error)}") from error


@torch.no_grad()
def _materialise(model: nn.Module, inputs: Any) -> None:
    training = model.training
    args, kwargs = copy.deepcopy((tuple(inputs.args), dict(inputs.kwargs)))
    try:
        model.eval()(*args, **kwargs)
    except Exception as error:  # whatever user code raises
        raise RewriteError(f"the model is lazy and cannot be run: {reason_of(error)}") from error
    model.train(training)


def _device_of(model: nn.Module) -> str:
    return str(next((t.device for t in (*model.parameters(), *model.buffers())), "cpu"))


def _dtype_name(model: nn.Module) -> str:
    return str(dtype_of(model)).removeprefix("torch.")


def _files_of(model: nn.Module) -> Mapping[str, None]:
    """The user's files that define classes of the model, in order."""
    paths = (class_location(base).path for module in model.modules() for base in type(module).__mro__)
    return dict.fromkeys(path for path in paths if path)
