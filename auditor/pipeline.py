"""Both pipelines, top to bottom.

paths  → Source  → rule.static  → Finding ┐
                                          ├→ rule.fix → Edit → validate → Certificate → Report
target → Capture → rule.dynamic → Finding ┘
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from auditor.finding import Finding, Problem, finding_from_json, merge, problem_from_json
from auditor.report import Report
from auditor.scope import Scope
from auditor.settings import Nearest, Settings
from auditor.static import check, files, suppress
from auditor.static.check import FileResult

if TYPE_CHECKING:
    from auditor.dynamic.service import Audit
    from auditor.dynamic.worker import Worker
    from auditor.fix.engine import Verdict

Progress = Callable[[str], None]


class FixMode(NamedTuple):
    """What to do with fixes: nothing, show them (`diff`), or `write` them; `unsafe` ones too or only safe ones.
    `text_edits`: compute each finding's fix as text edits, for machine-readable reports."""

    write: bool = False
    diff: bool = False
    unsafe: bool = False
    text_edits: bool = False

    @property
    def wanted(self) -> bool:
        return self.write or self.diff


NO_FIXES = FixMode()


def check_paths(
    paths: str | Sequence[str],
    settings: Settings | None = None,
    mode: FixMode = NO_FIXES,
    progress: Progress | None = None,
    changed_since: str = "",
    nearest: Nearest | None = None,
) -> Report:
    """Check files and folders without running anything: the Python API is `auditor.check`.

    `changed_since`: a git revision; only findings on lines changed since then are shown. `nearest`: the settings of
    each file, where they are not the same for all.
    """
    settings = settings or Settings()
    nearest = nearest or Nearest(settings)
    scope = Scope(settings, changed_since, nearest)
    found, problems = files.discover([paths] if isinstance(paths, str) else [str(path) for path in paths], nearest)
    found = scope.files(found)
    report = Report(problems=problems, files=len(found), rules=check.chosen_rules(settings))
    report.problems += check.rule_problems(settings)
    for own, of_group in nearest.groups(found):
        if own.rules != settings.rules:
            report.problems += check.rule_problems(own)
        if mode.wanted:
            results = check.check_files(of_group, own, progress)
            for result in results:
                _mend_file(result, report, own, mode)
        else:  # the fixes offered are kept with the findings
            offer = partial(_offer, settings=own, mode=mode)
            results = check.check_files(of_group, own, progress, offer, f"with fixes {mode.text_edits}")
        for result in results:
            _note(result, report)
    report.sort()
    scope.narrow(report)
    return report


def check_text(path: str, text: str, settings: Settings) -> Report:
    """Check the text of `path` as an editor has it, which need not be what the file holds."""
    rules = check.rules_for(path, settings, check.chosen_rules(settings))
    report = Report(files=1, rules=rules, problems=check.rule_problems(settings), texts={path: text})
    _note(check.check_text(path, text, rules), report)
    report.sort()
    Scope(settings).narrow(report)
    return report


def check_stdin(content: bytes, name: str, settings: Settings, mode: FixMode) -> tuple[Report, bytes]:
    """Check text that is no file yet; also returns it with the fixes made."""
    rules = check.rules_for(name, settings, check.chosen_rules(settings))
    report = Report(files=1, rules=rules, problems=check.rule_problems(settings))
    try:
        text = files.text_of(name, content)
    except (ValueError, SyntaxError, LookupError) as error:
        report.problems.append(Problem(name, f"cannot be decoded: {error}"))
        return report, content
    result = check.check_text(name, text, rules)
    mended = _mend(result, None, text, [], report, settings, mode)
    _note(result, report)
    report.texts[name] = mended
    report.sort()
    Scope(settings).narrow(report)
    if mended == text:
        return report, content
    from auditor.fix.write import encode

    return report, encode(content, files.content_of(name, content, mended))


def audit_targets(
    specs: Sequence[str],
    settings: Settings | None = None,
    mode: FixMode = NO_FIXES,
    inputs: Sequence[str] = (),
    progress: Progress | None = None,
    changed_since: str = "",
    nearest: Nearest | None = None,
    facts: bool = False,
) -> Report:
    """Check the files of `specs` and audit the models in them, each run in a child process.

    A spec is `file.py`, `file.py::Name` or `package.module:Name`; `inputs` are input specifications for all of them;
    with `changed_since`, only findings on lines changed since that git revision are shown; `nearest`: the settings of
    each file, where they are not the same for all. With `facts`, the records of the models have what an HTML report
    shows of them.
    """
    from auditor.dynamic.worker import Worker

    settings = settings or Settings()
    nearest = nearest or Nearest(settings)
    scope = Scope(settings, changed_since)
    report = Report(rules=check.chosen_rules(settings), problems=check.rule_problems(settings))
    with Worker(timeout=settings.timeout, memory=settings.memory, progress=progress) as worker:
        for spec in specs:
            own = nearest.of(spec.partition("::")[0])
            if own.rules != settings.rules:
                report.problems += check.rule_problems(own)
            _audit_spec(worker, spec, own, mode, list(inputs), report, facts)
    report.findings = merge(report.findings)
    report.sort()
    scope.narrow(report)
    return report


def audit_model(
    model: Any,
    inputs: Any,
    settings: Settings | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    facts: bool = True,
) -> Report:
    """Audit a live model in this process: the Python API is `auditor.audit(model, inputs)`.

    `inputs`: a tensor, a tuple of arguments or a dict of keyword arguments. The model, its gradients, modes and hooks,
    and all random generators are left as they were. `facts`: also measure what a notebook shows of the layers (a few
    more forwards). Raises ImportError if torch is not installed.
    """
    from auditor.dynamic.service import audit_live

    settings = (settings or Settings()).override(device=device, dtype=dtype)
    rules = check.chosen_rules(settings)
    return report_of(audit_live(model, inputs, rules, settings, facts), settings)


def report_of(found: Audit, settings: Settings) -> Report:
    """The report of models audited in this process: what a comment or the settings silence set apart, with the fixes
    that the rules have for the rest."""
    from auditor.fix.engine import offer

    rules = check.chosen_rules(settings)
    report = Report(problems=[*check.rule_problems(settings), *found.problems], audits=found.records, rules=rules)
    texts = {path: _text_of(path) for path in sorted({finding.location.path for finding in found.findings})}
    stand, report.silenced = _standing(found.findings, texts, settings)
    for path, text in texts.items():
        here = [finding for finding in stand if finding.location.path == path]
        report.findings += offer(here, text, rules, path, text_edits=True) if text else here
        if text and not os.path.isfile(path):
            report.texts[path] = text
    report.sort()
    return report


def _note(result: FileResult, report: Report) -> None:
    report.checked.append(result.path)
    report.findings += result.findings
    report.silenced += result.silenced
    report.problems += result.problems


def _offer(result: FileResult, settings: Settings, mode: FixMode) -> None:
    """Show the fixes of one file; what goes wrong with them is a problem of the result."""
    aside = Report()
    _mend_file(result, aside, settings, mode)
    result.problems += aside.problems


def _mend_file(result: FileResult, report: Report, settings: Settings, mode: FixMode) -> None:
    if result.findings:
        content = files.read(result.path)
        _mend(result, content, files.text_of(result.path, content), [], report, settings, mode)


def _mend(
    result: FileResult,
    content: bytes | None,
    text: str,
    seen: Sequence[Finding],
    report: Report,
    settings: Settings,
    mode: FixMode,
    judge: Callable[[str, str, Sequence[Finding]], Verdict] | None = None,
) -> str:
    """Show or make the fixes of one file; its findings, those `seen` in a run and fixes offered included, end in
    `result`. `content`: the file's bytes (None: no file to write). Returns the text as it is then."""
    from auditor.fix.engine import fix_text, offer, unified_diff

    rules = check.chosen_rules(settings)
    found = check.drop_symptoms(merge([*result.findings, *seen]), rules)
    mended = text
    if mode.wanted and found:
        outcome = fix_text(result.path, text, rules, unsafe=mode.unsafe, judge=judge, seen=seen)
        report.refused += outcome.refused
        if outcome.text != text:
            report.changes.append(unified_diff(result.path, *map(files.shown, (text, outcome.text))))
        if outcome.text != text and mode.diff:
            report.diffs.append(report.changes[-1])
        elif outcome.text != text:
            if content is not None:
                from auditor.fix.write import WriteError, replace_file

                try:
                    replace_file(result.path, content, files.content_of(result.path, content, outcome.text))
                except (WriteError, ValueError) as error:
                    report.changes.pop()
                    report.problems.append(Problem(result.path, str(error)))
                    result.findings = offer(found, text, rules, result.path, mode.text_edits, report.problems)
                    return text
            mended, found = outcome.text, outcome.found
            report.fixed += outcome.fixed
    result.findings = offer(found, mended, rules, result.path, mode.text_edits, report.problems)
    return mended


@dataclass(slots=True)
class _Seen:
    """What running the models of one spec showed."""

    findings: list[Finding] = field(default_factory=list)
    silenced: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


def _audit_spec(
    worker: Worker, spec: str, settings: Settings, mode: FixMode, inputs: list[str], report: Report, facts: bool
) -> None:
    """Add what one target gives to `report`: its file read, its models run, its fixes proven and made."""
    place = spec.partition("::")[0]
    if files.is_notebook(place):
        remedy = (
            "`auditor check` reads notebooks; to run its models, `jupyter nbconvert --to script` makes a module of it"
        )
        report.problems.append(Problem(files.display(place), "a notebook is no module that could be run", remedy))
        return
    seen = _run(worker, spec, settings, inputs, facts=facts)
    report.problems += seen.problems
    report.silenced += seen.silenced
    report.audits += seen.records
    path = next((record["path"] for record in seen.records), files.display(spec.partition("::")[0]))
    if not os.path.isfile(path):
        report.findings += seen.findings
        return
    result = check.check_file(path, settings, check.chosen_rules(settings))
    report.files += 1
    here = [finding for finding in seen.findings if finding.location.path == result.path]
    report.findings += [finding for finding in seen.findings if finding.location.path != result.path]
    if result.problems:
        result.problems = [] if seen.problems else result.problems  # the run has said so already
    elif result.findings or here:
        from auditor.fix.proof import Prover

        prover = Prover(worker.request, result.path, seen.records, settings, inputs)

        def judge(before: str, after: str, group: Sequence[Finding]) -> Verdict:
            verdict = prover.judge(before, after, group)
            if verdict.refusal:
                return verdict
            again = _run(worker, spec, settings, inputs, {path: after}, facts)
            verdict.findings = [finding for finding in again.findings if finding.location.path == result.path]
            broken = [problem.message for problem in again.problems if problem not in seen.problems]
            verdict.refusal = broken[0] if broken else ""
            if not verdict.refusal:
                _note_after(seen.records, again.records)
            return verdict

        content = files.read(path)
        _mend(result, content, files.text_of(path, content), here, report, settings, mode, judge)
        report.certificates += prover.certificates
        report.refused_certificates += prover.refusals
    _note(result, report)


def _note_after(records: list[dict[str, Any]], again: list[dict[str, Any]]) -> None:
    """Put the facts of the mended models beside those of the models as they were."""
    mended = {record["name"]: record["facts"] for record in again if "facts" in record}
    for record in records:
        if record["name"] in mended:
            record["facts_after"] = mended[record["name"]]


def _run(
    worker: Worker,
    spec: str,
    settings: Settings,
    inputs: list[str],
    texts: dict[str, str] | None = None,
    facts: bool = False,
) -> _Seen:
    """Run the models in the child; findings that a comment or the settings silence are set apart. `texts` stand in
    for the texts of files."""
    from auditor.dynamic.worker import WorkerError

    try:
        answer = worker.request(
            "audit", spec=spec, settings=settings.to_json(), inputs=inputs, texts=texts, facts=facts
        )
    except WorkerError as error:
        return _Seen(problems=[Problem(files.display(spec.partition("::")[0]), str(error))])
    seen = _Seen(problems=[problem_from_json(item) for item in answer["problems"]], records=answer["records"])
    findings = [finding_from_json(item) for item in answer["findings"]]
    given = {path: (texts or {}).get(path) or _text_of(path) for path in {f.location.path for f in findings}}
    seen.findings, seen.silenced = _standing(findings, given, settings)
    return seen


def _standing(
    findings: Sequence[Finding], texts: Mapping[str, str], settings: Settings
) -> tuple[list[Finding], list[Finding]]:
    """(findings that stand, findings that a comment silences); those that the settings silence are in neither."""
    stand: list[Finding] = []
    silenced: list[Finding] = []
    rules = check.chosen_rules(settings)
    for path in sorted(texts):
        kept, dropped = suppress.split([finding for finding in findings if finding.location.path == path], texts[path])
        active = {rule.code for rule in rules if not check.ignored_here(rule, path, settings)}
        stand += [finding for finding in kept if finding.code in active]
        silenced += dropped
    return stand, silenced


def _text_of(path: str) -> str:
    try:
        return files.text_of(path, files.read(path))
    except (OSError, ValueError, SyntaxError, LookupError):
        import linecache  # knows the cells of a notebook

        return "".join(linecache.getlines(path))  # what has no text has no comment to silence a finding
