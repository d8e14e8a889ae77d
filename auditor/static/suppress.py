"""Comments that silence findings: `# noqa: CODE`, `# auditor: ignore[name]`, `# auditor: ignore-file`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from auditor.finding import Finding

# Either marker alone silences the line; with a list, only what it names. Codes and names are both understood.
_NOQA = r"(?i)#.*?\bnoqa\b(?::\s*(?P<codes>[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*))?"
_IGNORE = r"(?i)#.*?\bauditor:\s*ignore(?!-file)(?:\[(?P<codes>[^\]]*)\])?"
_FILE = r"(?im)^\s*#\s*auditor:\s*ignore-file(?:\[(?P<codes>[^\]]*)\])?\s*$"


def split(findings: Iterable[Finding], text: str) -> tuple[list[Finding], list[Finding]]:
    """(findings that stand, findings that a comment silences). A comment counts on the first and the last line of
    the finding's range."""
    findings = list(findings)
    if not findings or ("noqa" not in text.lower() and "auditor:" not in text.lower()):
        return findings, []
    lines = text.split("\n")
    whole_file = [match["codes"] for match in re.finditer(_FILE, text)]
    stand: list[Finding] = []
    silenced: list[Finding] = []
    for finding in findings:
        rows = {finding.location.row, finding.location.end_row or finding.location.row}
        comments = [lines[row - 1] for row in sorted(rows) if 0 < row <= len(lines)]
        hit = any(_names(finding, codes) for codes in whole_file) or any(_silences(c, finding) for c in comments)
        (silenced if hit else stand).append(finding)
    return stand, silenced


def _silences(line: str, finding: Finding) -> bool:
    return any(_names(finding, match["codes"]) for pattern in (_NOQA, _IGNORE) for match in re.finditer(pattern, line))


def _names(finding: Finding, codes: str | None) -> bool:
    if codes is None:
        return True
    wanted = {code.strip().lower() for code in re.split(r"[,\s]+", codes)}
    return finding.code.lower() in wanted or finding.name in wanted


# The comments themselves ---------------------------------------------------------------------------------------------


class Suppression(NamedTuple):
    """One comment that silences what it names. `codes`: each with the columns, in characters, where it stands."""

    row: int
    start: int
    end: int
    codes: tuple[tuple[str, int, int], ...]
    whole_file: bool
    ours: bool
    """Whether only auditor reads it: `# auditor: …`, not `# noqa`."""


def names_any(text: str, known: Collection[str]) -> bool:
    """Whether a line that looks like such a comment has one of these words, in small letters: a first, quick look."""
    lines = re.findall(r"(?i)(?:noqa|auditor)\s*:.*", text)
    return any(word in known for line in lines for word in re.findall(r"[\w-]+", line.lower()))


def comments(text: str) -> list[Suppression]:
    """The comments of `text` that name what they silence, in order; what looks like one inside a string is none."""
    found = []
    for row, column, comment in _tokens(text):
        for pattern, whole_file, ours in ((_FILE, True, True), (_IGNORE, False, True), (_NOQA, False, False)):
            match = re.search(pattern, comment)
            if match is None or not match["codes"]:
                continue
            base = column + match.start("codes")
            codes = tuple(
                (word[0], base + word.start(), base + word.end()) for word in re.finditer(r"[\w-]+", match["codes"])
            )
            start = column + comment.rindex("#", 0, match.start("codes"))
            found.append(Suppression(row, start, column + match.end(), codes, whole_file, ours))
            break
    return found


def _tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """(row, column in characters, text) of every comment."""
    import io
    import tokenize

    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.start[1], token.string
    except (tokenize.TokenError, SyntaxError):
        return  # such a file is a problem of its own


def silences(suppression: Suppression, code: str, finding: Finding) -> bool:
    """Whether this comment, by this code or name, silences the finding."""
    rows = (finding.location.row, finding.location.end_row or finding.location.row)
    return _names(finding, code) and (suppression.whole_file or suppression.row in rows)
