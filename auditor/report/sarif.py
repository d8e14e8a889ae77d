"""SARIF 2.1.0, which code scanning services and editors read.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from auditor import __version__
from auditor.finding import Finding, Location, Problem, Severity
from auditor.fix.edit import Fix
from auditor.report import Report
from auditor.report.catalogue import explain, url
from auditor.report.fingerprint import Fingerprint, fingerprints
from auditor.report.json import figures
from auditor.report.paths import in_project
from auditor.report.texts import Texts
from auditor.rule import Rule

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ROOT = "%SRCROOT%"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(report: Report) -> str:
    return json.dumps(log(report), indent=2, ensure_ascii=False, default=str)


def log(report: Report) -> dict[str, Any]:
    """The whole report as one SARIF log with one run; the rules are those that found something."""
    codes = {finding.code for finding in report.findings}
    rules = [rule for rule in report.rules if rule.code in codes]
    index = {rule.code: number for number, rule in enumerate(rules)}
    marks = fingerprints(report.findings, Texts(report.texts))
    driver = {
        "name": "auditor",
        "fullName": "torch-auditor",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(rule.loaded()) for rule in rules],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {ROOT: {"description": {"text": "The root of the repository."}}},
        "invocations": [
            {
                "executionSuccessful": not report.problems,
                "toolExecutionNotifications": [_notification(problem) for problem in report.problems],
            }
        ],
        "results": [_result(finding, mark, index) for finding, mark in zip(report.findings, marks, strict=True)],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    """A rule with its explanation, so that it can be read where the finding is shown."""
    link = re.search(r"https?://[^\s)>,]+[^\s)>,.]", rule.explanation.partition("## References")[2])
    page = url(rule) or (link[0] if link else "")
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": _sentence(rule.summary)},
        "fullDescription": {"text": rule.explanation.partition("\n")[0]},
        "help": {"text": rule.explanation, "markdown": explain(rule)},
        **({"helpUri": page} if page else {}),
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {
            "tags": [str(rule.category), rule.family, "pytorch"],
            "problem.severity": "recommendation" if rule.severity is Severity.INFO else str(rule.severity),
        },
    }


def _result(finding: Finding, mark: Fingerprint, index: Mapping[str, int]) -> dict[str, Any]:
    properties = {
        "seen": list(finding.seen),
        "modules": list(finding.modules),
        "models": list(finding.models),
        "facts": figures(finding.facts),
    }
    result: dict[str, Any] = {
        "ruleId": finding.code,
        **({"ruleIndex": index[finding.code]} if finding.code in index else {}),
        "level": _LEVELS[finding.severity],
        "message": {"text": _sentence(finding.message)},
        "locations": [_location(finding.location)],
        "partialFingerprints": {"auditor/v1": mark.digest},
        "properties": {name: value for name, value in properties.items() if value},
    }
    if finding.notes:
        steps = [_location(note.location, note.message) for note in finding.notes]
        steps.append(_location(finding.location, finding.message))
        result["codeFlows"] = [{"threadFlows": [{"locations": [{"location": step} for step in steps]}]}]
    if finding.fix and finding.fix.text_edits:
        result["fixes"] = [_fix(finding.fix, finding.location.path)]
    return result


def _notification(problem: Problem) -> dict[str, Any]:
    text = problem.message + (f" ({problem.remedy})" if problem.remedy else "")
    where = [] if problem.path.startswith("<") else [_location(Location(problem.path, problem.row))]
    return {"level": "error", "message": {"text": _sentence(text)}, "locations": where}


def _location(location: Location, message: str = "") -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": _artifact(location.path)}
    if location.row:
        region = {"startLine": location.row}
        if location.end_row:
            region |= {
                "startColumn": location.column,
                "endLine": location.end_row,
                "endColumn": max(location.end_column, 1),
            }
        physical["region"] = region
    return {"physicalLocation": physical} | ({"message": {"text": _sentence(message)}} if message else {})


def _artifact(path: str) -> dict[str, str]:
    shown = in_project(path)
    if PurePosixPath(shown).is_absolute() or re.match(r"[A-Za-z]:/", shown):
        return {"uri": "file:///" + quote(shown.lstrip("/"), safe="/:")}
    return {"uri": quote(shown), "uriBaseId": ROOT}


def _fix(fix: Fix, path: str) -> dict[str, Any]:
    return {
        "description": {"text": _sentence(f"{fix.title} ({fix.applicability})")},
        "artifactChanges": [{"artifactLocation": _artifact(path), "replacements": _replacements(fix.text_edits)}],
    }


def _replacements(edits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "deletedRegion": {
                "startLine": edit["location"]["row"],
                "startColumn": edit["location"]["column"],
                "endLine": edit["end_location"]["row"],
                "endColumn": edit["end_location"]["column"],
            },
            "insertedContent": {"text": edit["content"]},
        }
        for edit in edits
    ]


def _sentence(text: str) -> str:
    """Messages are written without a full stop, SARIF wants one."""
    return text + ("" if text.endswith((".", "!", "?")) else ".")
