"""One line per finding, as compilers print them: editors and `grep` know what to do with it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from auditor.report import Report
from auditor.report.text import COLOURS, summary


def render(report: Report, *, quiet: bool = False) -> Iterator[str]:
    """`path:row:column: CODE message`; `[*]` marks what `--fix` can mend."""
    for finding in report.findings:
        location = finding.location
        code = click.style(finding.code, fg=COLOURS[finding.severity], bold=True)
        mark = click.style(" [*]", fg="cyan") if finding.fix else ""
        where = click.style(location.path, bold=True) + f":{max(location.row, 1)}:{location.column}"
        yield f"{where}: {code}{mark} {' '.join(finding.message.split())}"
    for problem in report.problems:
        yield f"{click.style(problem.path, bold=True)}:{problem.row or 1}:1: could not be checked: {problem.message}"
    if not quiet:
        yield summary(report)
