"""Findings in notebooks, said as their readers know them: by cell and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from auditor.finding import Finding, Location, Problem
from auditor.report.texts import Texts
from auditor.static import files
from auditor.static.notebook import Notebook, place

MACHINES = ("sarif", "github", "gitlab", "junit")
"""Formats whose readers look for lines of files: they get that of the notebook's file; the message names the cell."""


def by_cell(finding: Finding, texts: Texts, name: str) -> Finding:
    """The finding with its places in the words of the format called `name`."""
    if not any(files.is_notebook(item.path) for item in (finding.location, *[note.location for note in finding.notes])):
        return finding
    if name in MACHINES:
        cell, row = place(texts[finding.location.path], finding.location.row)
        said = f"cell {cell}:{row}:{finding.location.column}: {finding.message}"
        convert, fix = _in_file, finding.fix and finding.fix._replace(text_edits=())
    else:
        said, convert, fix = finding.message, _in_cell, finding.fix
        if fix is not None:
            lines = texts[finding.location.path]
            fix = fix._replace(text_edits=tuple(_edit(edit, lines) for edit in fix.text_edits))
    notes = tuple(replace(note, location=convert(note.location, texts)) for note in finding.notes)
    return replace(finding, location=convert(finding.location, texts), notes=notes, message=said, fix=fix)


def problem_by_cell(problem: Problem, texts: Texts) -> Problem:
    """A syntax error named by cell."""
    if not problem.row or not files.is_notebook(problem.path):
        return problem
    cell, row = place(texts[problem.path], problem.row)
    return replace(problem, path=f"{problem.path}:cell {cell}", row=row)


def _in_cell(location: Location, texts: Texts) -> Location:
    if not files.is_notebook(location.path):
        return location
    lines = texts[location.path]
    cell, row = place(lines, location.row)
    last, end_row = place(lines, location.end_row) if location.end_row else (cell, 0)
    return replace(location, path=f"{location.path}:cell {cell}", row=row, end_row=end_row if last == cell else row)


def _in_file(location: Location, texts: Texts) -> Location:
    """The row of the file alone: columns count in JSON there."""
    if not files.is_notebook(location.path):
        return location
    cell, row = place(texts[location.path], location.row)
    try:
        row = Notebook(files.read(location.path)).file_row(cell, row)
    except (OSError, ValueError):
        row = 1  # standard input, or gone since
    return Location(location.path, row)


def _edit(edit: Mapping[str, Any], lines: list[str]) -> Mapping[str, Any]:
    moved = dict(edit)
    for end in ("location", "end_location"):
        moved[end] = {**edit[end], "row": place(lines, edit[end]["row"])[1]}
    return moved
