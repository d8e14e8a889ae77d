"""Python source as HTML: code frames with the place marked, and diffs, both with the words of the language coloured."""

from __future__ import annotations

import difflib
import io
import itertools
import keyword
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from auditor.finding import Location

CONTEXT = 2
MOST_ROWS = 4  # of a marked range that are shown
LONG_FILE = 10_000  # lines above which code is not coloured

_CLASSES = {tokenize.STRING: "s", tokenize.COMMENT: "c", tokenize.NUMBER: "n"}
_F_STRING = {
    getattr(tokenize, name) for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END") if hasattr(tokenize, name)
}

Span = tuple[int, int, str]  # first and last character, class


class Row(NamedTuple):
    """One line of a frame or a diff. `kind`: "" (context), "at" (of the marked range), "add", "del" or "gap"."""

    number: str
    kind: str
    code: Markup


class Code:
    """A text, coloured line by line."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = [line.rstrip("\r\n") for line in lines]
        self.spans: dict[int, list[Span]] = {}
        if len(self.lines) <= LONG_FILE:
            self.spans = _spans(self.lines)

    def line(self, row: int, marked: tuple[int, int] | None = None) -> Markup:
        """Line `row` (from 1) as HTML, the characters of `marked` in a `<mark>`."""
        text = self.lines[row - 1]
        cuts = {0, len(text), *(marked or ())}
        for start, end, _ in self.spans.get(row, ()):
            cuts |= {min(start, len(text)), min(end, len(text))}
        places = sorted(cuts)
        parts: list[Markup] = []
        for start, end in itertools.pairwise(places):
            part = escape(text[start:end])
            kind = next((kind for first, last, kind in self.spans.get(row, ()) if first <= start and end <= last), "")
            part = Markup('<span class="{}">{}</span>').format(kind, part) if kind else part
            inside = marked is not None and marked[0] <= start and end <= marked[1]
            parts.append(Markup("<mark>{}</mark>").format(part) if inside else part)
        return Markup("").join(parts).replace(Markup("</mark><mark>"), Markup(""))

    def frame(self, location: Location) -> list[Row]:
        """The lines around a location; empty where the text has no such line."""
        if not 0 < location.row <= len(self.lines):
            return []
        end = max(location.row, min(location.end_row, location.row + MOST_ROWS - 1, len(self.lines)))
        shown = range(max(1, location.row - CONTEXT), min(len(self.lines), end + CONTEXT) + 1)
        around = [row for row in shown if self.lines[row - 1].strip() or location.row <= row <= end]
        return [self._row(row, end, location) for row in range(around[0], around[-1] + 1)]

    def _row(self, row: int, end: int, location: Location) -> Row:
        """One line of a frame; the very characters are marked where the range is on one line."""
        if not location.row <= row <= end:
            return Row(str(row), "", self.line(row))
        text = self.lines[row - 1]
        start, stop = len(text) - len(text.lstrip()), len(text.rstrip())
        if location.end_row == location.row:
            start, stop = min(location.column - 1, len(text)), min(location.end_column - 1, len(text))
        marked = (start, max(start, stop)) if location.end_row <= location.row else None
        return Row(str(row), "at", self.line(row, marked))


def _spans(lines: Sequence[str]) -> dict[int, list[Span]]:
    found: dict[int, list[Span]] = {}
    name_follows = False
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
            kind = _CLASSES.get(token.type, "s" if token.type in _F_STRING else "")
            if token.type == tokenize.NAME:
                kind = "d" if name_follows else "k" if keyword.iskeyword(token.string) else ""
                name_follows = token.string in ("def", "class")
            if kind:
                for row in range(token.start[0], token.end[0] + 1):
                    start = token.start[1] if row == token.start[0] else 0
                    end = token.end[1] if row == token.end[0] else 10**9
                    found.setdefault(row, []).append((start, end, kind))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        pass  # what came before the error is coloured
    return found


# Diffs ----------------------------------------------------------------------------------------------------------------


def edited(lines: Sequence[str], edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a text after `edits` in the shape of ruff's JSON (rows and columns from 1, in characters)."""
    text = "\n".join(lines)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)

    def offset(place: Mapping[str, int]) -> int:
        row = min(place["row"], len(lines) + 1)
        return min(starts[row - 1] + place["column"] - 1, len(text))

    for edit in sorted(edits, key=lambda edit: (edit["location"]["row"], edit["location"]["column"]), reverse=True):
        start, end = offset(edit["location"]), offset(edit["end_location"])
        text = text[:start] + edit["content"] + text[end:]
    return text.split("\n")


def diff(before: Sequence[str], after: Sequence[str]) -> list[Row]:
    """What changes between two texts, with two lines around."""
    old, new = Code(before), Code(after)
    rows: list[Row] = []
    for number, group in enumerate(difflib.SequenceMatcher(None, old.lines, new.lines).get_grouped_opcodes(CONTEXT)):
        rows += [Row("", "gap", Markup("⋯"))] if number else []
        for kind, first, last, start, end in group:
            if kind == "equal":
                rows += [Row(str(row + 1), "", old.line(row + 1)) for row in range(first, last)]
            else:
                rows += [Row(str(row + 1), "del", old.line(row + 1)) for row in range(first, last)]
                rows += [Row(str(row + 1), "add", new.line(row + 1)) for row in range(start, end)]
    full = [index for index, row in enumerate(rows) if row.kind or row.code.strip()]
    return rows[full[0] : full[-1] + 1] if full else []


def parsed(unified: str) -> list[tuple[str, list[Row]]]:
    """(path, rows) of every file of a unified diff."""
    files: list[tuple[str, list[Row]]] = []
    old = new = 0
    for line in unified.split("\n"):
        if line.startswith("+++ "):
            files.append((line[4:].removeprefix("b/"), []))
        elif (hunk := re.match(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@", line)) and files:
            old, new = int(hunk[1]), int(hunk[2])
            files[-1][1].extend([Row("", "gap", Markup("⋯"))] if files[-1][1] else [])
        elif files and line[:1] in (" ", "+", "-") and not line.startswith("--- "):
            sign, code = line[0], Code([line[1:]]).line(1)
            kind = {" ": "", "+": "add", "-": "del"}[sign]
            files[-1][1].append(Row(str(new if sign == "+" else old), kind, code))
            old, new = old + (sign != "+"), new + (sign != "-")
    return files
