"""Which files to check, and their text."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.finding import Problem

if TYPE_CHECKING:
    from auditor.settings import Nearest

SUFFIXES = (".py", ".pyi", ".ipynb")


def discover(paths: Sequence[str], nearest: Nearest) -> tuple[list[str], list[Problem]]:
    """The Python files of `paths`, sorted: files named are taken as they are, folders are searched, leaving out what
    the settings nearest to them and .gitignore files exclude. A path that does not exist is a problem."""
    found: dict[str, None] = {}
    problems = []
    for path in paths:
        if os.path.isdir(path):
            found.update(dict.fromkeys(_search(path, nearest)))
        elif os.path.exists(path):
            found[_tidy(path)] = None
        else:
            problems.append(Problem(path, "no such file or folder"))
    return sorted(found), problems


def _tidy(path: str) -> str:
    return path[2:] if path.startswith("./") else path


def _search(top: str, nearest: Nearest) -> Iterator[str]:
    ignored = _GitIgnore(top) if nearest.settings.respect_gitignore else None
    for folder, subfolders, names in os.walk(top, onerror=None):
        settings = nearest.of_folder(folder)
        patterns, root = settings.exclude + settings.extend_exclude, str(settings.root)
        if ignored:
            ignored.enter(folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not excluded(os.path.join(folder, name), patterns, root)
            and not (ignored and ignored.matches(os.path.join(folder, name) + "/"))
        )
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not name.endswith(SUFFIXES) or excluded(path, patterns, root):
                continue
            if not (ignored and ignored.matches(path)):
                yield _tidy(path)


def excluded(path: str, patterns: Iterable[str], root: str = "") -> bool:
    """Whether a pattern names the file or folder itself, or its path as it stands or from the folder `root`."""
    forms = [os.path.basename(path), path.replace(os.sep, "/").removeprefix("./")]
    if root and (os.path.isabs(path) or root != os.getcwd()):
        below = os.path.relpath(path, root).replace(os.sep, "/")
        forms += [] if below in forms else [below]
    names, wildcards = _sorted_out(tuple(patterns))
    if any(os.path.normcase(form) in names for form in forms):
        return True
    return any(fnmatch(form, pattern) for pattern in wildcards for form in forms)


@functools.lru_cache(maxsize=64)
def _sorted_out(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Patterns that are plain names, and the others."""
    wildcards = tuple(pattern for pattern in patterns if any(character in pattern for character in "*?["))
    return frozenset(os.path.normcase(pattern) for pattern in patterns) - set(wildcards), wildcards


class _GitIgnore:
    """The .gitignore files that apply below a folder, those of the folders above it in the repository included."""

    def __init__(self, top: str) -> None:
        self.specs: list[tuple[str, Any]] = []
        start = Path(top).absolute()
        above = []
        for folder in (start, *start.parents):
            above.append(folder)
            if (folder / ".git").exists():
                for parent in reversed(above[1:]):
                    self.enter(str(parent))
                break

    def enter(self, folder: str) -> None:
        path = os.path.join(folder, ".gitignore")
        if not os.path.isfile(path):
            return
        import pathspec

        with open(path, encoding="utf-8", errors="replace") as lines:
            spec = pathspec.GitIgnoreSpec.from_lines(lines)
        self.specs.append((os.path.abspath(folder), spec))

    def matches(self, path: str) -> bool:
        if not self.specs:
            return False
        absolute = os.path.abspath(path) + ("/" if path.endswith("/") else "")
        verdict = False
        for folder, spec in self.specs:
            if absolute.startswith(folder + os.sep):
                result = spec.check_file(os.path.relpath(absolute, folder) + ("/" if path.endswith("/") else ""))
                if result.include is not None:
                    verdict = result.include
        return verdict


def read(path: str) -> bytes:
    """A file's bytes; OSError if it cannot be read."""
    with open(path, "rb") as file:
        return file.read()


def is_notebook(path: str) -> bool:
    return path.endswith(".ipynb")


def text_of(path: str, content: bytes) -> str:
    """The Python text of a file: what `decode` makes of its bytes, or the script of a notebook. Raises ValueError
    (SyntaxError, LookupError) for content that has none."""
    if is_notebook(path):
        from auditor.static.notebook import Notebook

        return Notebook(content).text
    return decode(content)


def content_of(path: str, content: bytes, text: str) -> str:
    """What the file is to hold so that its Python text is `text`; `content` is what it holds."""
    if is_notebook(path):
        from auditor.static.notebook import Notebook

        return Notebook(content).with_script(text)
    return text


def shown(text: str) -> str:
    """The text as its author knows it: what only IPython understands is behind placeholders in a notebook's script."""
    if "  #%" not in text:
        return text
    from auditor.static.notebook import restored

    return restored(text)


def decode(content: bytes) -> str:
    """The text of Python source, by its coding line or as UTF-8; newlines become `\\n`, as `ast` counts them.

    Raises ValueError (SyntaxError for a coding line that names no encoding) for bytes that are no text.
    """
    if b"\0" in content:
        raise ValueError("contains null bytes: a binary file?")
    if content.isascii():
        text = content.decode("ascii")
    else:
        import io
        import tokenize

        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def display(path: str) -> str:
    """The path as reports show it: relative to the current folder where that is shorter, with `/`."""
    if os.path.isabs(path):
        here = os.path.join(os.getcwd(), "")
        path = os.path.normpath(path)
        path = path[len(here) :] if path.startswith(here) else path
    return Path(path).as_posix() if "./" in path or os.sep != "/" else path
