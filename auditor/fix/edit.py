"""An edit of a user's file, as plain data anchored to a range of the source. `fix/rewrite.py` carries edits out.

Rules build edits from `ast` nodes through the functions below; nothing here imports libcst, so that a rule which only
reports costs nothing.
"""

from __future__ import annotations

import ast
import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from auditor.fix.claims import Claim


class Applicability(enum.StrEnum):
    """Whether `--fix` writes a fix (safe), only with `--unsafe-fixes` (unsafe), or never (display-only)."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    DISPLAY_ONLY = "display-only"


class Edit(NamedTuple):
    """One change. `op` says what is done to the node at rows/columns `start`…`end` (as in `ast`: row from 1, column
    from 0 in UTF-8 bytes), `code` is the new source text, `name` an argument's name."""

    op: str
    start: tuple[int, int]
    end: tuple[int, int]
    code: str = ""
    name: str = ""


class Fix(NamedTuple):
    """Edits with what they must leave unchanged (`keeps`) and what they must improve (`gains`)."""

    title: str
    edits: tuple[Edit, ...]
    applicability: Applicability = Applicability.SAFE
    keeps: Sequence[Claim] = ()
    gains: Sequence[Claim] = ()
    text_edits: tuple[Mapping[str, Any], ...] = ()
    """The edits as text ranges in the shape of ruff's JSON, where a report asked for them."""


Node = ast.expr | ast.stmt | ast.arg | ast.keyword


def _edit(op: str, node: Node, code: str = "", name: str = "") -> Edit:
    end = (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)
    return Edit(op, (node.lineno, node.col_offset), end, code, name)


def replace(node: ast.expr | ast.stmt, code: str) -> Edit:
    """Put `code` (an expression for an expression, statements for a statement) in place of `node`."""
    return _edit("replace", node, code)


def set_argument(call: ast.Call, name: str, code: str) -> Edit:
    """Pass `name=code` in `call`, replacing the keyword argument of that name if there is one."""
    return _edit("set_argument", call, code, name)


def remove_argument(call: ast.Call, name: str) -> Edit:
    """Drop the keyword argument `name` of `call`."""
    return _edit("remove_argument", call, "", name)


def prepend_argument(call: ast.Call, code: str) -> Edit:
    """Pass `code` as the first positional argument of `call`, before the others."""
    return _edit("prepend_argument", call, code)


def name_argument(call: ast.Call, position: int, name: str) -> Edit:
    """Pass the positional argument at `position` of `call` by the keyword `name`; those after it must follow suit."""
    return _edit("name_argument", call, str(position), name)


def insert_before(statement: ast.stmt, code: str) -> Edit:
    """Insert the statements `code` on the lines before `statement`, at its indentation."""
    return _edit("insert_before", statement, code)


def insert_after(statement: ast.stmt, code: str) -> Edit:
    """Insert the statements `code` on the lines after `statement` (after its body, for a compound statement)."""
    return _edit("insert_after", statement, code)


def remove(statement: ast.stmt) -> Edit:
    """Delete `statement`; a body left empty gets `pass`."""
    return _edit("remove", statement)


def replace_text(row: int, start: int, end: int, code: str) -> Edit:
    """Put `code` in place of the characters `start` to `end` (from 0) of a line: for comments, which are no nodes. A
    line of which nothing is left goes away. Such edits are made apart from all others."""
    return Edit("text", (row, start), (row, end), code)


def add_import(module: str, name: str = "") -> Edit:
    """Make sure that the file has `import module`, or `from module import name`."""
    return Edit("import", (0, 0), (0, 0), module, name)
