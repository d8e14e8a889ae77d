"""The output formats by name; a format's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from auditor.report import Report


class Format(NamedTuple):
    """Where a format is written, whether it shows fixes as text edits, which cost a rewrite each, and the facts of the
    models, which cost a few runs."""

    module: str
    text_edits: bool = False
    facts: bool = False


FORMATS = {
    "text": Format("auditor.report.text"),
    "concise": Format("auditor.report.concise"),
    "json": Format("auditor.report.json", text_edits=True),
    "json-lines": Format("auditor.report.json_lines", text_edits=True),
    "sarif": Format("auditor.report.sarif", text_edits=True),
    "github": Format("auditor.report.github"),
    "gitlab": Format("auditor.report.gitlab"),
    "junit": Format("auditor.report.junit"),
    "markdown": Format("auditor.report.markdown"),
    "html": Format("auditor.report.html", text_edits=True, facts=True),
}

ENDINGS = {
    ".json": "json",
    ".jsonl": "json-lines",
    ".sarif": "sarif",
    ".xml": "junit",
    ".md": "markdown",
    ".html": "html",
    ".txt": "text",
}
"""The format of a report file, by the ending of its name."""


@dataclass(frozen=True, slots=True)
class Style:
    """How the formats for people are written; those for machines always say everything. `width`: characters in a
    line of the terminal, None where nobody's screen is meant."""

    verbose: bool = False
    quiet: bool = False
    statistics: bool = False
    width: int | None = None


def render(report: Report, name: str, style: Style) -> Iterator[str]:
    """The lines of `report` in the format called `name`, columns counted in characters."""
    from auditor.report.texts import Texts
    from auditor.static.files import is_notebook

    texts = Texts(report.texts)
    shown = in_characters(report)
    if any(is_notebook(path) for path in report.sources):
        from auditor.report.cells import by_cell, problem_by_cell

        shown.findings = [by_cell(finding, texts, name) for finding in shown.findings]
        shown.problems = [problem_by_cell(problem, texts) for problem in report.problems]
    if name == "text" or style.statistics:
        from auditor.report import text

        yield from text.render(
            shown, verbose=style.verbose, statistics=style.statistics, quiet=style.quiet, width=style.width
        )
    elif name == "concise":
        from auditor.report import concise

        yield from concise.render(shown, quiet=style.quiet)
    else:
        from importlib import import_module

        rendered: str = import_module(FORMATS[name].module).render(shown)
        if rendered:  # no line at all, rather than an empty one
            yield rendered


def in_characters(report: Report) -> Report:
    """The report with columns counted in characters."""
    from auditor.report.texts import Texts

    texts = Texts(report.texts)
    return replace(report, findings=[texts.in_characters(finding) for finding in report.findings])
