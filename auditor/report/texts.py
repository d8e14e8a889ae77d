"""The source text that reports quote from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from auditor.finding import Finding, Location
from auditor.static import files


class Texts(dict[str, list[str]]):
    """The lines of files, read when first asked for; `given` are texts that are no files."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__({path: text.split("\n") for path, text in (given or {}).items()})

    def __missing__(self, path: str) -> list[str]:
        file, cell = notebook_cell(path)
        if cell:
            from auditor.static.notebook import cells_of

            lines = cells_of(self[file]).get(cell, [])
            self[path] = lines
            return lines
        try:
            lines = files.text_of(path, files.read(path)).split("\n")
        except (OSError, ValueError, SyntaxError, LookupError):
            lines = []  # what is said of the file is said without its text
        self[path] = lines
        return lines

    def line(self, path: str, row: int) -> str:
        """One line, rows from 1; empty where the file has no such line."""
        lines = self[path]
        return lines[row - 1] if 0 < row <= len(lines) else ""

    def in_characters(self, finding: Finding) -> Finding:
        """The finding with columns counted in characters, as readers and editors count them: `ast`, and so the rules,
        count UTF-8 bytes."""
        location = self._converted(finding.location)
        notes = tuple(replace(note, location=self._converted(note.location)) for note in finding.notes)
        if (location, notes) == (finding.location, finding.notes):
            return finding
        return replace(finding, location=location, notes=notes)

    def _converted(self, location: Location) -> Location:
        start, end = self.line(location.path, location.row), self.line(location.path, location.end_row)
        if start.isascii() and end.isascii():
            return location
        return replace(
            location, column=_characters(start, location.column), end_column=_characters(end, location.end_column)
        )


def notebook_cell(path: str) -> tuple[str, int]:
    """`net.ipynb:cell 3` → (`net.ipynb`, 3); any other path → (path, 0)."""
    file, _, cell = path.rpartition(":cell ")
    return (file, int(cell)) if file.endswith(".ipynb") and cell.isdigit() else (path, 0)


def _characters(line: str, column: int) -> int:
    """The character column, from 1, of a byte column of `line`."""
    return len(line.encode("utf-8", "surrogatepass")[: column - 1].decode("utf-8", "replace")) + 1 if column else 0
