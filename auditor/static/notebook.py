"""Jupyter notebooks as one Python script, and back: only the source lines that changed are written anew.

The script has a line `pass  #%% cell N` before the code of each cell; N counts all cells from 1. Lines that only
IPython understands are kept behind placeholders.
https://nbformat.readthedocs.io/en/latest/format_description.html
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_HEAD = "pass  #%% cell "  # a statement, so that what is put in before the first one of a cell comes after it
_MARK = "  #%# "  # stands between a placeholder and the line it stands for
_MAGIC = re.compile(r"\s*[%!?]|.*[\w)\]]\?{1,2}\s*$")
_ASSIGNED = re.compile(r"(?P<target>\s*[\w.,\[\] ]+=\s*)[%!]")
_PYTHON_CELLS = ("%%time", "%%timeit", "%%capture", "%%prun", "%%memit", "%%mprun", "%%lprun")


class _Cell(NamedTuple):
    """A code cell. `literals`: where the JSON strings of its source stand, one per line (`listed`) or one for all."""

    number: int
    source: str
    literals: tuple[tuple[int, int], ...]
    listed: bool


class Notebook:
    """One notebook; `text` is its script. Raises ValueError for content that is no notebook of format 4."""

    def __init__(self, content: bytes) -> None:
        self.raw = content.decode("utf-8-sig")
        try:
            document = json.loads(self.raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"no notebook: broken JSON in line {error.lineno}: {error.msg}") from error
        if not isinstance(document, dict) or not isinstance(document.get("cells"), list):
            old = isinstance(document, dict) and "worksheets" in document
            hint = "its format is older than 4; open and save it with Jupyter" if old else "it has no list of cells"
            raise ValueError(f"no notebook: {hint}")
        self.cells = list(_code_cells(self.raw)) if _is_python(document) else []
        if any(mark in cell.source for cell in self.cells for mark in (_MARK, _HEAD)):
            raise ValueError("a cell holds the marks `#%#` or `#%% cell` that stand for IPython's lines here")
        parts = [f"{_HEAD}{cell.number}\n{_without_magics(cell.source)}\n" for cell in self.cells]
        self.text = "".join(parts)

    def with_script(self, text: str) -> str:
        """The file's text with the script changed to `text`; ValueError if its cells are not those of the notebook."""
        changed = cells_of(text.split("\n"))
        if list(changed) != [cell.number for cell in self.cells]:
            raise ValueError("the changed script has other cells than the notebook")
        result, position = [], 0
        for cell in self.cells:
            source = "\n".join(changed[cell.number])
            if source != cell.source and cell.literals:
                first, last = cell.literals[0][0], cell.literals[-1][1]
                result += [self.raw[position:first], self._literals(cell, source)]
                position = last
        return "".join([*result, self.raw[position:]])

    def file_row(self, number: int, row: int) -> int:
        """The row of the file in which a row of a cell stands."""
        for cell in self.cells:
            if cell.number == number and cell.literals:
                start, _ = cell.literals[min(row, len(cell.literals)) - 1]
                return self.raw.count("\n", 0, start) + 1
        return 1

    def _literals(self, cell: _Cell, source: str) -> str:
        """The source as JSON strings in the style of the file; lines that stay are copied as they stand."""
        ascii_only = self.raw.isascii()
        if not cell.listed:
            return json.dumps(source, ensure_ascii=ascii_only)
        known = {json.loads(self.raw[start:end]): self.raw[start:end] for start, end in cell.literals}
        first, second = (cell.literals * 2)[:2]
        indent = re.search(r"[^\S\n]*$", self.raw[: first[0]])
        gap = self.raw[first[1] : second[0]] if second[0] > first[1] else ",\n" + (indent[0] if indent else "")
        lines = re.findall(r"[^\n]*\n|[^\n]+$", source)
        return gap.join(known.get(line) or json.dumps(line, ensure_ascii=ascii_only) for line in lines) or '""'


# A script and its cells ----------------------------------------------------------------------------------------------


def cells_of(lines: Sequence[str]) -> dict[int, list[str]]:
    """The lines of each cell of a script, as their author sees them."""
    cells: dict[int, list[str]] = {}
    above: list[str] = []  # an import that was put in on top
    number = 0
    for line in lines[:-1] if lines and not lines[-1] else lines:
        if line.startswith(_HEAD):
            number = int(line.removeprefix(_HEAD))
            cells[number] = []
        else:
            (cells[number] if number else above).append(_restored(line))
    if above:
        first = next((cell for cell in cells.values() if not "".join(cell).lstrip().startswith("%%")), [])
        first[:0] = above
    return cells


def place(lines: Sequence[str], row: int) -> tuple[int, int]:
    """The cell in which a row of the script stands, and its row there."""
    for above in range(min(row, len(lines)), 0, -1):
        if lines[above - 1].startswith(_HEAD):
            return int(lines[above - 1].removeprefix(_HEAD)), max(row - above, 1)
    return 1, row


def restored(text: str) -> str:
    """A script with IPython's lines back in place of their placeholders, and the cells under headings."""
    lines = [line.removeprefix("pass  ") if line.startswith(_HEAD) else _restored(line) for line in text.split("\n")]
    return "\n".join(lines)


def _restored(line: str) -> str:
    return line.partition(_MARK)[2] if _MARK in line else line


def _is_python(document: dict[str, Any]) -> bool:
    metadata = document.get("metadata")
    kernel = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    language = kernel.get("language") if isinstance(kernel, dict) else None
    return language is None or str(language).lower().startswith("python")


# IPython's lines -----------------------------------------------------------------------------------------------------


def _without_magics(source: str) -> str:
    """The source of a cell as Python, line for line."""
    if _parses(source):
        return source
    lines = source.split("\n")
    first = next((index for index, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        if lines[first].split()[0] not in _PYTHON_CELLS:  # another language: bash, html, a file to be written
            return "\n".join(f"pass{_MARK}{line}" for line in lines)
        rest = _without_magics("\n".join(lines[first + 1 :])) if lines[first + 1 :] else None
        head = [*lines[:first], f"pass{_MARK}{lines[first]}"]
        return "\n".join(head if rest is None else [*head, rest])
    done: list[str] = []
    continued = False
    for line in lines:
        if continued or (_is_magic(line) and _can_start(done)):
            done.append(_placeholder(line, done[-1] if continued else None))
            continued = line.rstrip().endswith("\\")
        else:
            done.append(line)
    return "\n".join(done)


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _is_magic(line: str) -> bool:
    return bool(_MAGIC.match(line) or _ASSIGNED.match(line))


def _can_start(lines: Sequence[str]) -> bool:
    """Whether a statement can start after these lines: they do not end inside a string, brackets or a line that goes
    on."""
    try:
        ast.parse("\n".join(lines))
    except SyntaxError as error:
        return "expected an indented block" in (error.msg or "")
    except (ValueError, RecursionError, MemoryError):
        return False
    return True


def _placeholder(line: str, before: str | None) -> str:
    """A statement that does nothing, or binds the same names, with the line behind it."""
    assigned = _ASSIGNED.match(line) if before is None else None
    like = line if before is None else before
    indent = like[: len(like) - len(like.lstrip())]
    return f"{assigned['target'].rstrip()} None{_MARK}{line}" if assigned else f"{indent}pass{_MARK}{line}"


# Where the source strings stand in the JSON --------------------------------------------------------------------------

_BETWEEN = re.compile(r"[\s,:]*")


def _code_cells(raw: str) -> Iterator[_Cell]:
    """The code cells of a notebook that is valid JSON, in order."""
    for number, (start, end) in enumerate(_items(raw, _member(raw, _skip(raw, 0), "cells")), 1):
        cell = json.loads(raw[start:end])
        if not isinstance(cell, dict) or cell.get("cell_type") != "code" or not cell.get("source"):
            continue
        where = _member(raw, start, "source")
        if isinstance(cell["source"], str):
            yield _Cell(number, cell["source"], ((where, scanstring(raw, where + 1)[1]),), listed=False)
        else:
            yield _Cell(number, "".join(map(str, cell["source"])), tuple(_items(raw, where)), listed=True)


def _skip(raw: str, position: int) -> int:
    match = _BETWEEN.match(raw, position)
    return match.end() if match else position


def _value_end(raw: str, position: int) -> int:
    return json.JSONDecoder().raw_decode(raw, position)[1]


def _items(raw: str, position: int) -> Iterator[tuple[int, int]]:
    """The ranges of the items of the list that starts there."""
    position = _skip(raw, position + 1)
    while raw[position] != "]":
        end = _value_end(raw, position)
        yield position, end
        position = _skip(raw, end)


def _member(raw: str, position: int, name: str) -> int:
    """Where the value of a member starts, of the object that starts there; the last one, as `json` has it."""
    found = -1
    position = _skip(raw, position + 1)
    while raw[position] != "}":
        key, end = scanstring(raw, position + 1)
        start = _skip(raw, end)
        found = start if key == name else found
        position = _skip(raw, _value_end(raw, start))
    return found
