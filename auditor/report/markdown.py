"""Markdown for the summary of a CI job or a comment on a pull request."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from auditor.finding import Finding, Problem
from auditor.report import Report
from auditor.report.paths import in_project
from auditor.report.text import summary
from auditor.report.texts import Texts


def render(report: Report) -> str:
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield "## auditor"
    yield ""
    yield _escaped(summary(report))
    if report.findings:
        yield from ("", "| Severity | Where | Rule | Finding |", "| --- | --- | --- | --- |")
        texts = Texts(report.texts)
        for finding in report.findings:
            yield _row(finding, texts)
    if report.problems:
        yield from ("", "### Could not be checked", "")
        yield from (_problem(problem) for problem in report.problems)
    if report.refused:
        yield from ("", "### Fixes not made", "")
        for refusal in report.refused:
            where = refusal.finding.location
            yield f"- {_place(where.path, where.row)} {refusal.finding.code}: {_escaped(refusal.reason)}"
    if report.certificates:
        yield from ("", "### Fixes proven", "")
        for certificate in report.certificates:
            yield from _certificate(certificate)


def _row(finding: Finding, texts: Texts) -> str:
    location = finding.location
    parts = [_escaped(finding.message)]
    if line := texts.line(location.path, location.row).strip():
        parts.append(_code(line))
    if finding.modules:
        parts.append("layers: " + ", ".join(_code(name or "(the model itself)") for name in finding.modules))
    if finding.fix:
        parts.append(f"fix ({finding.fix.applicability}): {_escaped(finding.fix.title)}")
    where = _place(location.path, location.row)
    return f"| {finding.severity} | {where} | {_code(finding.code)} {finding.name} | {'<br>'.join(parts)} |"


def _problem(problem: Problem) -> str:
    remedy = f" ({_escaped(problem.remedy)})" if problem.remedy else ""
    return f"- {_place(problem.path, problem.row)}: {_escaped(problem.message)}{remedy}"


def _certificate(certificate: Any) -> Iterator[str]:
    place = _place(certificate.path, certificate.row)
    yield f"- {place} {certificate.code}: {_escaped(certificate.title)} ({certificate.device}, {certificate.dtype})"
    for result in certificate.claims:
        yield f"  - {_escaped(result.claim)}"


def _place(path: str, row: int) -> str:
    """`path:row`, linked to the line of the commit where the CI system says which one it is."""
    shown = _code(f"{path}:{row}" if row else path)
    server, repository, commit = (os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "SHA"))
    if not (server and repository and commit):
        return shown
    anchor = f"#L{row}" if row else ""
    return f"[{shown}]({server}/{repository}/blob/{commit}/{quote(in_project(path))}{anchor})"


def _escaped(text: str) -> str:
    """Text in which only code between backticks keeps a meaning in Markdown, in one line of a table."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(
        _code(part[1:-1]) if number % 2 else re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def _code(text: str) -> str:
    """A code span; a table cell ends at every bar that is not escaped, in code too."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return fence + pad + text.replace("|", "\\|") + pad + fence
