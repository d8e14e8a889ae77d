"""`--add-noqa`: comments that silence what is found today, so that from now on only what is new is shown."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Sequence

from auditor.finding import Finding, Problem
from auditor.fix.write import WriteError, replace_file
from auditor.static import files

_CODES = re.compile(r"(?i)\bnoqa\s*:\s*(?P<codes>[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*)")


def add_comments(text: str, findings: Sequence[Finding]) -> tuple[str, list[Finding]]:
    """`text` with `# noqa: CODE` for each finding on the first line of its range that can take a comment, and the
    findings for which neither the first nor the last line can (inside a string, before a backslash).

    Codes are added to a noqa that is there and names some; a line gets each code once, in order.
    """
    lines = text.split("\n")
    free = _rows_for_comments(text)
    wanted: dict[int, set[str]] = {}
    left = []
    for finding in findings:
        rows = (finding.location.row, finding.location.end_row or finding.location.row)
        row = next((row for row in rows if row in free), 0)
        if row:
            wanted.setdefault(row, set()).add(finding.code)
        else:
            left.append(finding)
    for row, codes in wanted.items():
        lines[row - 1] = _with_codes(lines[row - 1], codes, free[row])
    return "\n".join(lines), left


def _rows_for_comments(text: str) -> dict[int, int]:
    """The rows at whose end a comment can stand, each with the column of the comment it has (or its length)."""
    rows: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            rows[token.start[0]] = token.start[1]
        elif token.type in (tokenize.NEWLINE, tokenize.NL):
            rows.setdefault(token.start[0], token.start[1])
    return rows


def _with_codes(line: str, codes: set[str], column: int) -> str:
    match = _CODES.search(line, column)
    if match is None:
        return f"{line.rstrip()}  # noqa: {', '.join(sorted(codes))}"
    there = re.split(r"[,\s]+", match["codes"])
    new = sorted(codes - {code.upper() for code in there})
    return line[: match.end("codes")] + "".join(f", {code}" for code in new) + line[match.end("codes") :]


def silence(findings: Sequence[Finding]) -> tuple[list[Finding], list[Finding], list[Problem]]:
    """Write the comments into the files of `findings`: those silenced, those for which a line has no place for one, and
    what kept a file from being written."""
    done: list[Finding] = []
    left: list[Finding] = []
    problems: list[Problem] = []
    for path in sorted({finding.location.path for finding in findings}):
        own = [finding for finding in findings if finding.location.path == path]
        content = files.read(path)
        text, skipped = add_comments(files.text_of(path, content), own)
        try:
            replace_file(path, content, files.content_of(path, content, text))
        except (WriteError, ValueError) as error:
            problems.append(Problem(path, str(error)))
            continue
        left += skipped
        done += [finding for finding in own if finding not in skipped]
    return done, left, problems
