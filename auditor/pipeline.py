"""Both pipelines, top to bottom.

    paths  → Source  → rule.static  → Finding ┐
                                              ├→ rule.fix → Edit → validate → Certificate → Report
    target → Capture → rule.dynamic → Finding ┘
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Problem
from auditor.report import Report
from auditor.settings import Settings
from auditor.static import check, files
from auditor.static.check import FileResult

if TYPE_CHECKING:
    from auditor.rule import Rule


@dataclass(frozen=True, slots=True)
class FixMode:
    """What to do with fixes: nothing, show them (`diff`), or `write` them; `unsafe` ones too or only safe ones.
    `text_edits`: compute each finding's fix as text edits, for machine-readable reports."""

    write: bool = False
    diff: bool = False
    unsafe: bool = False
    text_edits: bool = False

    @property
    def wanted(self) -> bool:
        return self.write or self.diff


def check_paths(paths: Sequence[str], settings: Settings | None = None, mode: FixMode = FixMode()) -> Report:
    """Check files and folders without running anything: the Python API is `auditor.check`."""
    settings = settings or Settings()
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    found, problems = files.discover(paths, settings)
    report = Report(problems=problems, files=len(found))
    for result in check.check_files(found, settings):
        _collect(report, result, settings, mode)
    report.sort()
    return report


def check_stdin(content: bytes, name: str, settings: Settings, mode: FixMode) -> tuple[Report, bytes]:
    """Check text that is no file yet; also returns it with the fixes made."""
    report = Report(files=1)
    try:
        text = files.decode(content)
    except (ValueError, SyntaxError, LookupError) as error:
        report.problems.append(Problem(name, f"cannot be decoded: {error}"))
        return report, content
    from auditor.fix.engine import fix_text, offer

    rules = check.chosen_rules(settings)
    result = check.check_text(name, text, rules)
    if mode.wanted:
        outcome = fix_text(name, text, rules, unsafe=mode.unsafe)
        result, report.fixed = outcome.result, outcome.fixed
        if mode.diff:
            report.diffs += _diff(name, text, outcome.text)
        text = outcome.text
    result.findings = offer(result.findings, text, rules, name, mode.text_edits)
    _add(report, result)
    report.sort()
    return report, text.encode() if report.fixed else content


def _collect(report: Report, result: FileResult, settings: Settings, mode: FixMode) -> None:
    if result.findings:
        from auditor.fix.engine import fix_text, offer
        from auditor.fix.write import replace_file

        rules = check.chosen_rules(settings)
        path = result.path
        content = files.read(path)
        text = files.decode(content)
        if mode.wanted:
            outcome = fix_text(path, text, rules, unsafe=mode.unsafe)
            if outcome.text != text:
                if mode.diff:
                    report.diffs += _diff(path, text, outcome.text)
                else:
                    replace_file(path, content, outcome.text)
                    result = outcome.result
                    report.fixed += outcome.fixed
                    text = outcome.text
        result.findings = offer(result.findings, text, rules, path, mode.text_edits)
    _add(report, result)


def _add(report: Report, result: FileResult) -> None:
    report.findings += result.findings
    report.silenced += result.silenced
    report.problems += result.problems


def _diff(path: str, before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    return ["".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)]
