"""Workflow commands of GitHub Actions: findings become annotations of the changed files.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from auditor.finding import Finding, Problem, Severity
from auditor.report import Report
from auditor.report.paths import in_project

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def render(report: Report) -> str:
    lines = [_finding(finding) for finding in report.findings]
    return "\n".join([*lines, *[_problem(problem) for problem in report.problems]])


def _finding(finding: Finding) -> str:
    location = finding.location
    properties: dict[str, str | int] = {
        "title": f"auditor {finding.code} {finding.name}",
        "file": in_project(location.path),
        "line": max(location.row, 1),
    }
    if location.end_row:
        properties["endLine"] = location.end_row
        if location.end_row == location.row:  # GitHub takes columns only within one line
            properties |= {"col": location.column, "endColumn": location.end_column}
    lines = [finding.message]
    if finding.modules:
        lines.append("layers: " + ", ".join(name or "(the model itself)" for name in finding.modules))
    if finding.fix:
        lines.append(f"fix ({finding.fix.applicability}): {finding.fix.title}")
    return _command(_COMMANDS[finding.severity], properties, "\n".join(lines))


def _problem(problem: Problem) -> str:
    properties: dict[str, str | int] = {
        "title": "auditor could not check this",
        "file": in_project(problem.path),
        "line": max(problem.row, 1),
    }
    return _command("error", properties, problem.message + (f"\n{problem.remedy}" if problem.remedy else ""))


def _command(name: str, properties: dict[str, str | int], message: str) -> str:
    listed = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in properties.items())
    return f"::{name} {listed}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:  # the percent sign first
        text = text.replace(character, f"%{ord(character):02X}")
    return text
