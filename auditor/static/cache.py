"""What files gave when they were last checked, so that only what has changed is checked again.

One file in the cache folder for each folder that runs start in, with each selection of rules, settings and version of
auditor. An entry holds for a file's content and for all that was looked up in other files of its project. Runs side by
side do each other no harm: a cache is written beside its place and moved there whole, and whoever writes last keeps
what others have written meanwhile.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from auditor import __version__
from auditor.loader import PACKAGE, cache_folder, load
from auditor.static.project import Link, digest_of, holds

if TYPE_CHECKING:
    from auditor.rule import Rule
    from auditor.settings import Settings
    from auditor.static.check import FileResult

_NO_MATTER = frozenset({"jobs", "cache", "device", "dtype", "seed", "timeout", "memory", "targets", "fail_on"})
_KEPT = 16  # caches of other folders, settings and versions
_NAME = "checked-*.bin"
_Entry = tuple[bytes, tuple[Link, ...], bytes]


class Cache:
    """The results of one folder, selection and version. `get` and `put` take paths as reports show them."""

    def __init__(self, settings: Settings, rules: Sequence[Rule], finished: str = "") -> None:
        self.path = cache_folder() / f"checked-{_key(settings, rules, finished)}.bin"
        self._entries = _read(self.path)
        self._new: dict[str, _Entry] = {}

    def get(self, path: str, content: bytes) -> FileResult | None:
        """The result for a file with this content, if it is known and nothing that it rests on has changed."""
        entry = self._entries.get(path)
        if entry is None or entry[0] != digest_of(content) or not holds(entry[1]):
            return None
        result: FileResult = pickle.loads(entry[2])
        return result

    def put(self, result: FileResult, digest: bytes) -> None:
        """Keep the result for a file whose content has this digest."""
        self._new[result.path] = (digest, result.links, pickle.dumps(result))

    def save(self) -> None:
        """Write what is new; where that is not possible, the next run is slower."""
        if not self._new:
            return
        meanwhile = {path: entry for path, entry in _read(self.path).items() if os.path.exists(path)}
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(marshal.dumps({**meanwhile, **self._new}))
            temporary.replace(self.path)
            _forget_old(self.path.parent)


def clean() -> list[Path]:
    """Delete everything auditor keeps between runs, and return what was deleted. Raises OSError where that fails."""
    folder = cache_folder()
    patterns = (_NAME, "rules-*.bin", "*.tmp")
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    for path in found:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # unless something else is in it
    return found


def _read(path: Path) -> dict[str, _Entry]:
    try:
        entries: dict[str, _Entry] = marshal.loads(path.read_bytes())
    except (OSError, ValueError, EOFError, TypeError):
        return {}  # no cache yet, or one that cannot be read: it is made anew
    return entries if isinstance(entries, dict) else {}


def _key(settings: Settings, rules: Sequence[Rule], finished: str) -> str:
    """Everything but a file's own content on which its findings depend, and where paths in reports start."""
    values = [(item.name, getattr(settings, item.name)) for item in fields(settings) if item.name not in _NO_MATTER]
    codes = [rule.code for rule in rules]
    stamps = list(_stamps([PACKAGE, *load(settings.rules).folders]))
    told = (__version__, sys.version, os.getcwd(), values, codes, finished, stamps)
    return digest_of(repr(told).encode("utf-8", "surrogatepass")).hex()[:20]


def _stamps(folders: Iterable[Path]) -> Iterable[tuple[str, int, int]]:
    """The sources of auditor and of the rules, with their times and sizes."""
    for top in folders:
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(("_", ".")))
            for name in sorted(names):
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    status = os.stat(path)
                    yield path, status.st_mtime_ns, status.st_size


def _forget_old(folder: Path) -> None:
    caches = sorted(folder.glob(_NAME), key=lambda path: path.stat().st_mtime_ns)
    for path in caches[:-_KEPT]:
        path.unlink(missing_ok=True)
