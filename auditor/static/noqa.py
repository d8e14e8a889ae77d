"""Where a comment that silences a finding can stand, and how the line reads with it."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator

from auditor.finding import Finding

_CODES = re.compile(r"(?i)\bnoqa\s*:\s*[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*")


def silenced_line(text: str, finding: Finding) -> tuple[int, str] | None:
    """The row of one of the finding's lines, and that line with `# noqa: CODE` (a list of codes is extended).

    The first line of the finding, or its last one where no comment can follow the first: inside a string, or before a
    line that a backslash continues. None where neither takes a comment, and for text that is no Python.
    """
    lines = text.split("\n")
    try:
        closed = set(_closed(text))
    except (tokenize.TokenError, SyntaxError):
        return None
    first, last = max(finding.location.row, 1), finding.location.end_row
    for row in (first, last):
        if 0 < row <= len(lines) and row not in closed:
            return row, _with_code(lines[row - 1], finding.code)
    return None


def _closed(text: str) -> Iterator[int]:
    """The rows that no comment can follow."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        yield from range(token.start[0], token.end[0])  # a string over several lines
    for row, line in enumerate(text.split("\n"), 1):
        if line.endswith("\\"):
            yield row


def _with_code(line: str, code: str) -> str:
    if match := _CODES.search(line):
        return f"{line[: match.end()]}, {code}{line[match.end() :]}"
    return f"{line.rstrip()}  # noqa: {code}"
