"""auditor's plain data as the protocol's types: rows count from 1 here and from 0 there; columns are UTF-8 bytes here
and there the units that the editor asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.workspace import PositionCodec

from auditor.finding import Finding, Location, Severity
from auditor.report.catalogue import url
from auditor.report.texts import Texts
from auditor.rule import Rule

SOURCE = "auditor"
_SEVERITIES = {
    Severity.ERROR: types.DiagnosticSeverity.Error,
    Severity.WARNING: types.DiagnosticSeverity.Warning,
    Severity.INFO: types.DiagnosticSeverity.Information,
}


def diagnostic(
    finding: Finding, text: str, uri: str, rules: Mapping[str, Rule], codec: PositionCodec
) -> types.Diagnostic:
    """One finding, with the steps that led to it and a link to its rule's page."""
    shown = Texts({finding.location.path: text}).in_characters(finding)
    lines = text.split("\n")
    rule = rules.get(finding.code)
    link = url(rule) if rule else ""
    notes = [
        types.DiagnosticRelatedInformation(
            location=types.Location(
                uri if note.location.path == shown.location.path else Path(note.location.path).absolute().as_uri(),
                span(note.location, lines if note.location.path == shown.location.path else (), codec),
            ),
            message=note.message,
        )
        for note in shown.notes
    ]
    return types.Diagnostic(
        range=span(shown.location, lines, codec),
        message=shown.message,
        severity=_SEVERITIES[shown.severity],
        code=shown.code,
        code_description=types.CodeDescription(href=link) if link else None,
        source=SOURCE,
        related_information=notes or None,
    )


def span(location: Location, lines: Sequence[str], codec: PositionCodec) -> types.Range:
    """A location, its columns in characters, as a range; a location without an end reaches to the end of its line."""
    row = max(location.row, 1) - 1
    end_row = max(location.end_row, 1) - 1 if location.end_row else row
    line = lines[end_row] if end_row < len(lines) else ""
    end_column = location.end_column - 1 if location.end_row else len(line)
    found = types.Range(types.Position(row, location.column - 1), types.Position(end_row, max(end_column, 0)))
    return codec.range_to_client_units(lines, found) if lines else found


def text_edits(before: str, after: str, newline: str, codec: PositionCodec) -> list[types.TextEdit]:
    """The least edits that make `after` of `before`, with the newlines that the document has."""
    from auditor.fix import rewrite

    lines = before.split("\n")

    def position(place: Mapping[str, Any]) -> types.Position:
        return codec.position_to_client_units(lines, types.Position(place["row"] - 1, place["column"] - 1))

    return [
        types.TextEdit(
            range=types.Range(position(edit["location"]), position(edit["end_location"])),
            new_text=edit["content"].replace("\n", newline),
        )
        for edit in rewrite.text_edits(before, after)
    ]


def overlap(one: types.Range, other: types.Range) -> bool:
    """Whether two ranges have a position in common."""

    def key(position: types.Position) -> tuple[int, int]:
        return position.line, position.character

    return key(one.start) <= key(other.end) and key(other.start) <= key(one.end)


def word_at(line: str, column: int) -> str:
    """The code or rule name around a column of a line."""
    words = (match for match in re.finditer(r"[A-Za-z][\w-]*", line))
    return next((match[0] for match in words if match.start() <= column <= match.end()), "")
