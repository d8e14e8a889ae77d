"""Across files: what an imported name stands for in the other files of the same project.

A file is found as Python would find it: relative imports from the folder of the file, absolute ones from the folders
above it (a script's own folder, the folder that holds its package, a `src` beside it). It is read when it is first
asked about, and what is asked about it is found out once per run. Everything that is looked up is a *link*: a result
holds as long as its links do (see cache.py). What lies outside the project is unknown.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from auditor.static import files

if TYPE_CHECKING:
    from auditor.static.source import Source

T = TypeVar("T")
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# (folder from which a module was looked for, its dotted name, the file found or "", the digest of its content)
Link = tuple[str, str, str, bytes]

_LEVELS = 6  # folders, from a file upwards, in which absolute imports are looked for
_LARGEST = 1_000_000  # bytes of a file that is read for others
_HOPS = 8  # re-exports that are followed
_OPEN = 16  # files kept parsed
_MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg")


def digest_of(content: bytes) -> bytes:
    import hashlib  # pulls in OpenSSL

    return hashlib.sha1(content, usedforsecurity=False).digest()


class Found(NamedTuple):
    """A class or function of another file."""

    source: Source
    node: Definition


class Project:
    """The files that are read for others in one run, and what was asked about them."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], str] = {}
        self._folders: dict[str, tuple[str, ...]] = {}
        self._digests: dict[str, bytes] = {}
        self._sources: dict[str, Source | None] = {}
        self._answers: dict[tuple[object, ...], tuple[object, frozenset[Link]]] = {}
        self._asked: list[tuple[object, ...]] = []
        self._links: list[set[Link]] = [set()]
        self._handing: set[str] = set()
        self._cut = sys.maxsize  # the outermost question that one inside it ran into again

    # Files -----------------------------------------------------------------------------------------------------------

    def find(self, folder: str, module: str) -> str:
        """The file of a module as a file in `folder` names it: `.layers.drop`, `shop.models`; "" if the project has
        none. For a package, its `__init__.py`."""
        key = (folder, module)
        if key not in self._places:
            level = len(module) - len(module.lstrip("."))
            parts = module[level:].split(".") if module[level:] else []
            tops = (_above(folder, level - 1),) if level else self._search(folder)
            self._places[key] = next(filter(None, (_file(top, parts) for top in tops)), "")
        return self._places[key]

    def _search(self, folder: str) -> tuple[str, ...]:
        """The folders in which absolute imports of a file in `folder` are looked for: the nearest one that is no
        package, and those above it up to the top of the project, where that is marked as one."""
        if folder not in self._folders:
            found: list[str] = []
            current, ended = folder, False
            while not ended and len(found) < 2 * _LEVELS:
                if not os.path.isfile(os.path.join(current, "__init__.py")):
                    found += [current, os.path.join(current, "src")]
                ended = any(os.path.exists(os.path.join(current, mark)) for mark in _MARKS)
                above = os.path.dirname(current)
                if above == current:
                    break
                current = above
            self._folders[folder] = tuple(found) if ended else tuple(found[:2])
        return self._folders[folder]

    def digest(self, path: str) -> bytes:
        """The digest of a file's content; empty if it cannot be read."""
        if path not in self._digests:
            self._content(path)
        return self._digests[path]

    def _content(self, path: str) -> bytes:
        try:
            content = files.read(path) if path and os.path.getsize(path) <= _LARGEST else b""
        except OSError:
            content = b""
        self._digests[path] = digest_of(content) if content else b""
        return content

    def source(self, path: str) -> Source | None:
        """The facts about a file of the project; None if it cannot be read or is no Python."""
        if path not in self._sources:
            from auditor.static.source import Source

            try:
                self._sources[path] = Source(path, files.decode(self._content(path)))
            except (ValueError, SyntaxError, LookupError, RecursionError, MemoryError):
                self._sources[path] = None
        return self._sources[path]

    # Questions -------------------------------------------------------------------------------------------------------

    def definition(self, source: Source, name: str, hops: int = _HOPS) -> Found | None:
        """The class or function of another file that the dotted name `name` of `source` stands for, re-exports
        followed."""
        module, _, attribute = name.rpartition(".")
        if module.strip(".") == "" and name.startswith("."):
            module = name[: len(name) - len(attribute)]  # `from . import attribute`
        path = self._link(source, module) if module and attribute else ""
        other = self.source(path) if path else None
        if other is None or hops == 0:
            return None
        defined = other.names.definitions.get(attribute, [])
        if defined:
            node = defined[0]
            once = len(defined) == 1 and isinstance(node, Definition) and not other.names.stores(attribute)
            return Found(other, node) if once and isinstance(node, Definition) else None
        meanings = other.names.aliases.get(attribute) or {
            f"{star}.{attribute}" for star in other.names.stars if not attribute.startswith("_")
        }
        found = [self.definition(other, meaning, hops - 1) for meaning in sorted(meanings)]
        known = [item for item in found if item is not None]
        return known[0] if len(known) == 1 else None

    def handed_on(self, source: Source, star: str, name: str) -> frozenset[str]:
        """What `name` stands for in `source` after `from star import *`, where the other file has it from torch: the
        `nn` of `import torch.nn as nn`. Empty where that is not known."""
        path = self._link(source, star)
        other = self.source(path) if path and path not in self._handing else None
        if other is None or name.startswith("_") or other.names.stores("__all__"):
            return frozenset()
        self._handing.add(path)  # star imports may go in circles
        try:
            meanings = other.names.resolve(ast.Name(name)) if name not in other.names.definitions else frozenset()
        finally:
            self._handing.remove(path)
        return meanings if all(f"{meaning}.".startswith("torch.") for meaning in meanings) else frozenset()

    def ask(self, question: Callable[[Source, Definition], T], about: Found) -> T | None:
        """The answer of `question` about a class or function of another file, found out once; None where it is being
        found out already (imports may go in circles)."""
        key = (question, about.source.path, about.node.name)
        if key in self._answers:
            answer, links = self._answers[key]
            self._links[-1] |= links
            return answer  # type: ignore[return-value]
        if key in self._asked:
            self._cut = min(self._cut, self._asked.index(key))
            return None
        self._asked.append(key)
        self._links.append(about.source.links)  # also what earlier questions about the file have found out for good
        fresh = question(about.source, about.node)
        own = self._links.pop()
        self._asked.pop()
        self._links[-1] |= own
        if self._cut == sys.maxsize:
            self._answers[key] = (fresh, frozenset(own))
        else:  # in a circle: what was found out depends on where one entered it, and is forgotten
            self._sources.pop(about.source.path, None)
            if self._cut == len(self._asked):
                self._cut = sys.maxsize
        return fresh

    def _link(self, source: Source, module: str) -> str:
        own = os.path.abspath(source.path)
        folder = os.path.dirname(own)
        path = self.find(folder, module)
        if path == own:
            return ""
        self._links[-1].add((folder, module, path, self.digest(path)))
        return path

    @contextmanager
    def looking_up(self, links: set[Link]) -> Iterator[None]:
        """Adds everything that is looked up meanwhile to `links`."""
        self._links.append(links)
        try:
            yield
        finally:
            self._links.pop()
            self._let_go()

    def _let_go(self) -> None:
        """Drop what is parsed, when it is much: answers about it stay."""
        if len(self._sources) > _OPEN:
            for source in self._sources.values():
                if source is not None:
                    source.close()
            self._sources.clear()


def _above(folder: str, levels: int) -> str:
    for _ in range(levels):
        folder = os.path.dirname(folder)
    return folder


def _file(top: str, parts: list[str]) -> str:
    """The file of the module `parts` below the folder `top`; "" if there is none."""
    path = os.path.join(top, *parts)
    for candidate in (os.path.join(path, "__init__.py"), f"{path}.py" if parts else ""):
        if candidate and os.path.isfile(candidate):
            return candidate
    return ""


_project: list[Project] = []


def project() -> Project:
    """The project of the run."""
    if not _project:
        _project.append(Project())
    return _project[0]


def new_run() -> None:
    """Forget what files held in an earlier run of this process."""
    _project.clear()


def holds(links: Iterable[Link]) -> bool:
    """Whether every look-up would still end in the same place and content."""
    known = project()
    return all(
        known.find(folder, module) == path and known.digest(path) == digest for folder, module, path, digest in links
    )


def imported(source: Source, names: Iterable[str]) -> Iterator[Found]:
    """The definitions of other files of the project that these dotted names stand for."""
    for name in names:
        if "." in name and not name.startswith(("torch.", "numpy.")):
            found = project().definition(source, name)
            if found is not None:
                yield found
