"""The child's side of an audit: build each model of a file, feed it, capture it, run the dynamic checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Location, Problem, merge, to_json
from auditor.rule import Rule
from auditor.settings import ALL, Settings
from auditor.static.check import chosen_rules, drop_symptoms
from auditor.static.files import display

if TYPE_CHECKING:
    from types import ModuleType

    from auditor.dynamic.capture import Capture
    from auditor.dynamic.target import Target

Progress = Callable[[str], None]

# Of the memory limit, what parameters may take for a model to be run: an audit holds a copy of them for restoring,
# their gradients, and activations.
SHARE = 1 / 4
INITIALISATION = "INI"  # the family of rules that judge how a model starts


@dataclass(slots=True)
class Audit:
    """What auditing models gave; `records` says of each how it was built, fed and captured."""

    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


def audit(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The operation `audit` of the child process: arguments and result as JSON data."""
    from auditor.dynamic.state import process_restored

    settings = Settings.from_json(payload["settings"])
    rules = chosen_rules(settings)
    with process_restored():
        found = audit_file(
            payload["spec"],
            rules,
            settings,
            text=payload["texts"],
            inputs=payload["inputs"],
            facts=payload["facts"],
            progress=progress,
        )
    return {
        "findings": [to_json(finding) for finding in found.findings],
        "problems": [to_json(problem) for problem in found.problems],
        "records": found.records,
    }


def audit_file(
    spec: str,
    rules: Sequence[Rule],
    settings: Settings,
    *,
    text: str | Mapping[str, str] | None = None,
    inputs: Sequence[str] = (),
    facts: bool = False,
    progress: Progress = lambda message: None,
) -> Audit:
    """Audit every model that `spec` (`file.py`, `file.py::Name`, `package.module:Name`) offers, in this process.

    `text` stands in for the file's text (or, by path, for the texts of several). What cannot be built, fed or run is a
    problem of the result. With `facts`, each record has what a report shows of the model (see `facts_record`).
    """
    from auditor.dynamic.target import find_targets

    settings = settings.override(device="cpu") if settings.device == ALL else settings
    if reason := unusable(settings.device):
        return Audit(problems=[Problem(display(spec.partition("::")[0]), reason, "name another one with `--device`")])
    if settings.weights:  # trained weights are no initialisation
        rules = [rule for rule in rules if not rule.code.startswith(INITIALISATION)]
    progress(f"importing {spec}")
    targets, problems = find_targets(spec, settings.targets, text, settings.memory * 2**30 * SHARE)
    return _audit_all(targets, problems, rules, settings, inputs, facts, progress)


def audit_module(
    module: ModuleType, rules: Sequence[Rule], settings: Settings, *, inputs: Sequence[str] = (), facts: bool = False
) -> Audit:
    """Audit every model that the classes of a module in memory offer (see `targets_of`), in this process."""
    from auditor.dynamic.target import targets_of

    targets, problems = targets_of(module, settings.targets)
    return _audit_all(targets, problems, rules, settings, inputs, facts, lambda message: None)


def _audit_all(
    targets: Sequence[Target],
    problems: Sequence[Problem],
    rules: Sequence[Rule],
    settings: Settings,
    inputs: Sequence[str],
    facts: bool,
    progress: Progress,
) -> Audit:
    found = Audit(problems=[replace(problem, path=display(problem.path)) for problem in problems])
    for number, target in enumerate(targets, 1):
        progress(f"auditing {target.name} ({number} of {len(targets)})")
        audit_one = _audit_large if target.large else _audit_target
        audit_one(target, rules, settings, inputs, facts, found)
    found.findings = drop_symptoms(merge(found.findings), rules)
    return found


def unusable(device: str) -> str:
    """Why torch cannot run anything on `device` here; empty if it can."""
    import torch

    try:
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of them for some device
        return f"the device {device!r} cannot be used here: {str(error).partition(chr(10))[0]}"
    return ""


def _audit_target(
    target: Target, rules: Sequence[Rule], settings: Settings, inputs: Sequence[str], facts: bool, found: Audit
) -> None:
    from auditor.dynamic.capture import LiveInputs, capture, reason_of

    path, record = _record_of(target, found)
    try:
        model, log = target.build(settings.seed)
    except Exception as error:  # whatever the user's constructor raises
        remedy = "the first construction worked and the second did not: does it depend on global state?"
        found.problems.append(
            Problem(path, f"{target.name} could not be built again: {reason_of(error)}", remedy, target.row)
        )
        return
    if settings.weights and not _loaded(target, model, settings.weights, record, found):
        return
    given = _inputs_of(target, model, settings, inputs, record, found)
    options: Any = {"device": settings.device, "dtype": settings.dtype, "seed": settings.seed}
    captured = capture(model, given, target=target, build_log=log, batch_size=settings.batch_size, **options)
    captured.weights = settings.weights
    findings, problems = run_checks(captured, rules, path)
    explained = any(finding.facts.get("raises") for finding in findings)
    if not isinstance(given, LiveInputs) and not explained:
        problems += _not_run(captured, path)
    found.findings += findings
    found.problems += problems
    record |= _how(captured, facts)


def _loaded(target: Target, model: Any, file: str, record: dict[str, Any], found: Audit) -> bool:
    """Load `file` into the model. What does not fit is a problem; False if nothing of it does."""
    from auditor.dynamic.weights import WeightsError, load_into, read

    path = display(target.path)
    try:
        fit = load_into(model, read(file))
    except WeightsError as error:
        found.problems.append(Problem(path, f"{target.name}: {error}", error.remedy, target.row))
        return False
    record |= {"weights": file, "weights_loaded": len(fit.loaded)}
    found.problems += [
        Problem(path, f"{target.name}: {message}", remedy, target.row) for message, remedy in fit.complaints(file)
    ]
    return bool(fit.loaded)


def _record_of(target: Target, found: Audit) -> tuple[str, dict[str, Any]]:
    """The target's path as shown, and its new record."""
    path = display(target.path)
    record = {"name": target.name, "path": path, "arguments": target.arguments, "arguments_from": target.arguments_from}
    found.records.append(record)
    return path, record


def _inputs_of(
    target: Target, model: Any, settings: Settings, inputs: Sequence[str], record: dict[str, Any], found: Audit
) -> Any:
    """What to call the model with; a problem, and no inputs, where nothing was found."""
    from auditor.dynamic.capture import LiveInputs
    from auditor.dynamic.inputs import InputError

    try:
        given = target.inputs(
            model,
            list(inputs),
            seed=settings.seed,
            dtype=settings.dtype,
            device=settings.device,
            batch_size=settings.batch_size,
        )
    except (InputError, ValueError) as error:
        remedy = f"say what it is called with: `--input 2x3x32x32`, or `input` in [tool.auditor.targets.{target.name}]"
        found.problems.append(Problem(display(target.path), f"{target.name}: {error}", remedy, target.row))
        return LiveInputs()
    record |= {"input": given.description, "input_from": given.source}
    return given


def _audit_large(
    target: Target, rules: Sequence[Rule], settings: Settings, inputs: Sequence[str], facts: bool, found: Audit
) -> None:
    """Audit a model too large to be run by its initialisers and shapes, and a small twin of it, if one can be built, by
    running it. The record says which rules had to do without a run."""
    from auditor.dynamic.capture import reason_of
    from auditor.dynamic.large import Unseen, capture_large
    from auditor.dynamic.twin import twin_of

    path, record = _record_of(target, found)
    if settings.weights:
        remedy = "raise the limit with `--memory`, if this machine has more"
        problem = f"{target.name} is too large for the memory limit: its weights cannot be loaded"
        found.problems.append(Problem(path, problem, remedy, target.row))
        return
    try:
        model, log, deferral = target.build_deferred(settings.seed)
        given = _inputs_of(target, model, settings, inputs, record, found)
        captured = capture_large(model, log, deferral, given, target=target, dtype=settings.dtype, seed=settings.seed)
    except Exception as error:  # whatever the user's constructor raises
        remedy = "raise the limit with `--memory`, if this machine has more"
        problem = f"{target.name} is too large for the memory limit, and cannot be built without memory for its weights"
        found.problems.append(Problem(path, f"{problem}: {reason_of(error)}", remedy, target.row))
        return
    skipped = []
    for rule in rules:
        try:
            found.findings += [_shown(finding, captured) for finding in rule.run(captured)]
        except Unseen:
            skipped.append(rule.code)
        except Exception as error:
            name = f"{rule.code} {rule.name}"
            found.problems.append(Problem(path, f"{name} could not be checked on {target.name}: {reason_of(error)}"))
    record |= _how(captured, False)
    twin, reason = twin_of(target)
    record |= {"large": True, "not_run": skipped, "twin": twin.arguments if twin is not None else "", "no_twin": reason}
    if twin is not None:
        _audit_target(twin, rules, settings, (), facts, found)


def audit_live(model: Any, inputs: Any, rules: Sequence[Rule], settings: Settings, facts: bool = False) -> Audit:
    """Audit a model object, which is left as it was, in this process."""
    from auditor.dynamic.capture import capture
    from auditor.dynamic.state import preserved

    with preserved(model):
        captured = capture(model, inputs, device=settings.device, dtype=settings.dtype, seed=settings.seed)
        path = display(captured.target.path)
        findings, problems = run_checks(captured, rules, path)
        if not any(finding.facts.get("raises") for finding in findings):
            problems += _not_run(captured, path)
        record = {"name": captured.target.name, "path": path, **_how(captured, facts)}
    return Audit(drop_symptoms(merge(findings), rules), problems, [record])


def run_checks(captured: Capture, rules: Iterable[Rule], path: str) -> tuple[list[Finding], list[Problem]]:
    """The findings of all dynamic checks on one captured model. A check that fails is a problem, not a crash."""
    from auditor.dynamic.capture import reason_of

    findings: list[Finding] = []
    problems: list[Problem] = []
    for rule in rules:
        try:
            findings += [_shown(finding, captured) for finding in rule.run(captured)]
        except Exception as error:  # the user's model may raise anywhere a check runs it
            name = captured.target.name
            problems.append(
                Problem(path, f"{rule.code} {rule.name} could not be checked on {name}: {reason_of(error)}")
            )
    return findings, problems


def _shown(finding: Finding, captured: Capture) -> Finding:
    """The finding with paths as reports show them; one that knows no line points at the model's own."""

    def shown(location: Location) -> Location:
        return replace(location, path=display(location.path))

    where = finding.location if finding.location.path else captured.modules[""].location
    notes = tuple(replace(note, location=shown(note.location)) for note in finding.notes)
    return replace(finding, location=shown(where), notes=notes, models=(captured.target.name,))


def _not_run(captured: Capture, path: str) -> list[Problem]:
    """One problem for every mode in which the model could not be run at all."""
    reasons: dict[str, list[str]] = {}
    for mode, rung in captured.rungs.items():
        if rung.name == "none":
            reasons.setdefault(rung.reason, []).append(mode)
    remedy = "if the input is to blame, give one with `--input`"
    name, row = captured.target.name, captured.modules[""].location.row
    return [
        Problem(path, f"{name} cannot be run in {' and '.join(modes)} mode: {reason}", remedy, row)
        for reason, modes in reasons.items()
    ]


def _how(captured: Capture, facts: bool) -> dict[str, Any]:
    """How the model was captured, what was not seen, and the facts of its layers if they are asked for."""
    probe = vars(captured).get("probe")  # only if a rule asked for it
    shown = {}
    if facts:
        from auditor.dynamic.facts_record import facts_record

        shown = {"facts": facts_record(captured)}
    return {
        "device": captured.device,
        "dtype": captured.dtype,
        "seed": captured.seed,
        "capture": {mode: {"rung": rung.name, "reason": rung.reason} for mode, rung in captured.rungs.items()},
        "opaque": sorted({part for rung in captured.rungs.values() for part in rung.opaque}),
        "probe": "" if probe is None else probe.failure,
        "parameters": sum(parameter.numel() for parameter in captured.model.parameters()),
        "modules": len(captured.modules),
        "classes": sorted({type(module).__name__ for module in captured.model.modules()}),
        **shown,
    }
