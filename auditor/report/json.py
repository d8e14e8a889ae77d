"""Findings as JSON in the shape of ruff's, with our own keys beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from auditor.finding import Finding, Location, Problem
from auditor.report import Report
from auditor.report.catalogue import url
from auditor.report.texts import notebook_cell


def render(report: Report) -> str:
    """A list of findings, then problems, each an object; sorted keys, so that two runs compare byte for byte."""
    return json.dumps(records(report), indent=2, sort_keys=True, ensure_ascii=False, default=str)


def records(report: Report) -> list[dict[str, Any]]:
    """The findings, then the problems, as plain JSON data."""
    urls = {rule.code: url(rule) for rule in report.rules}
    findings = [finding_record(finding, urls.get(finding.code, "")) for finding in report.findings]
    return [*findings, *map(_problem_record, report.problems)]


def _problem_record(problem: Problem) -> dict[str, Any]:
    return {
        "code": None,
        "message": problem.message,
        **_place(problem.path),
        "location": {"row": problem.row or 1, "column": 1},
        "end_location": {"row": problem.row or 1, "column": 1},
        "severity": "error",
        "remedy": problem.remedy,
        "fix": None,
    }


def finding_record(finding: Finding, url: str = "") -> dict[str, Any]:
    """One finding as plain JSON data; `url`: its rule's page."""
    location = finding.location
    fix = finding.fix
    return {
        "code": finding.code,
        "name": finding.name,
        "message": finding.message,
        **_place(location.path),
        **_range(location),
        "severity": str(finding.severity),
        "url": url or None,
        "seen": list(finding.seen),
        "modules": list(finding.modules),
        "models": list(finding.models),
        "notes": [
            {"message": note.message, **_place(note.location.path), **_range(note.location)} for note in finding.notes
        ],
        "facts": figures(finding.facts),
        "fix": fix
        and {
            "applicability": str(fix.applicability),
            "message": fix.title,
            "edits": [dict(edit) for edit in fix.text_edits],
            "keeps": [claim.text for claim in fix.keeps],
            "gains": [claim.text for claim in fix.gains],
        },
    }


def _place(path: str) -> dict[str, Any]:
    """The file; in a notebook, the cell too."""
    file, cell = notebook_cell(path)
    return {"filename": file, "cell": cell} if cell else {"filename": file}


def figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a finding; JSON has no infinity and no NaN, they become text."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }


def _range(location: Location) -> dict[str, Any]:
    return {
        "location": {"row": max(location.row, 1), "column": location.column},
        "end_location": {
            "row": location.end_row or max(location.row, 1),
            "column": location.end_column or location.column,
        },
    }
