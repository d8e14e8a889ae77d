"""What a finding is recognised by after its file was edited."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from auditor.finding import Finding
from auditor.report.texts import Texts


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The rule's code, the line's text without spacing and comment, the class and function around it, and which of
    several equal ones in the file it is. Moving, re-indenting and commenting lines changes none of them; neither does
    renaming the file, whose path is not part of it."""

    code: str
    context: str
    line: str
    number: int

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        parts = "\0".join((self.code, self.context, _compact(self.line), str(self.number)))
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def fingerprints(findings: Sequence[Finding], texts: Texts) -> list[Fingerprint]:
    """One fingerprint per finding, in the order of `findings`, which are sorted: equal ones are numbered from 1."""
    scopes: dict[str, list[_Scope]] = {}
    counted: Counter[tuple[str, ...]] = Counter()
    result = []
    for finding in findings:
        path, row = finding.location.path, finding.location.row
        if path not in scopes:
            scopes[path] = list(_scopes("\n".join(texts[path])))
        context = _context(scopes[path], row)
        line = _normalised(texts.line(path, row))
        key = (path, finding.code, context, _compact(line))
        counted[key] += 1
        result.append(Fingerprint(finding.code, context, line, counted[key]))
    return result


_Scope = tuple[int, int, str]  # first row, last row, qualified name


def _scopes(text: str) -> Iterator[_Scope]:
    """The classes and functions of a text, outer ones first."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # the finding is recognised by its line alone
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        parent, prefix = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.lineno, node.end_lineno or node.lineno, prefix + node.name
                waiting.append((node, f"{prefix}{node.name}."))
            elif isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)):
                waiting.append((node, prefix))


def _context(scopes: Sequence[_Scope], row: int) -> str:
    around = [(last - first, name) for first, last, name in scopes if first <= row <= last]
    return min(around)[1] if around else ""


def _normalised(line: str) -> str:
    """The line's code: no comment (where a `#` in a string is taken for one, two lines may look alike and are then
    told apart by their number), single spaces."""
    return " ".join(line.partition("#")[0].split())


def _compact(line: str) -> str:
    return line.replace(" ", "")
