"""A Code Quality report of GitLab CI: findings are shown in the merge request.

https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from auditor.finding import Problem, Severity
from auditor.report import Report
from auditor.report.fingerprint import fingerprints
from auditor.report.paths import in_project
from auditor.report.texts import Texts

_SEVERITIES = {Severity.ERROR: "major", Severity.WARNING: "minor", Severity.INFO: "info"}


def render(report: Report) -> str:
    """GitLab takes two issues of one fingerprint for the same one, so that the path is part of it here."""
    marks = fingerprints(report.findings, Texts(report.texts))
    items = [
        _issue(
            finding.code,
            f"{finding.code} {finding.message}",
            (finding.location.path, finding.location.row),
            mark.digest,
            _SEVERITIES[finding.severity],
        )
        for finding, mark in zip(report.findings, marks, strict=True)
    ]
    items += [_problem(problem) for problem in report.problems]
    return json.dumps(items, indent=2, ensure_ascii=False)


def _problem(problem: Problem) -> dict[str, Any]:
    text = f"could not be checked: {problem.message}"
    return _issue("could-not-be-checked", text, (problem.path, problem.row), text, "critical")


def _issue(check: str, description: str, place: tuple[str, int], mark: str, severity: str) -> dict[str, Any]:
    path = in_project(place[0])
    return {
        "type": "issue",
        "check_name": check,
        "description": description,
        "categories": ["Bug Risk"],
        "severity": severity,
        "fingerprint": hashlib.sha256(f"{path}\0{mark}".encode("utf-8", "surrogatepass")).hexdigest()[:32],
        "location": {"path": path, "lines": {"begin": max(place[1], 1)}},
    }
