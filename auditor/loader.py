"""Rule files on disk become rules: the built-in folder, a user's own folders, installed plug-ins."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import marshal
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from auditor import __version__
from auditor.rule import IndexedRule, Rule, index_entry

PACKAGE = Path(__file__).parent
CODE = r"[A-Z]{3}\d{3}"
_SHAPE = os.stat(PACKAGE / "rule.py").st_mtime_ns  # of what is kept of a rule


class RuleError(Exception):
    """A rule file cannot be loaded, or clashes with another."""


def builtin_folder() -> Path:
    """`auditor/rules` of an installed wheel, `rules` beside the package in a checkout."""
    installed = PACKAGE / "rules"
    return installed if installed.is_dir() else PACKAGE.parent / "rules"


@functools.cache
def load_rules(extra: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """All rules, sorted by code: the built-in ones and those of the folders `extra`.

    A file that has not changed since it was last loaded is taken from the index and executed only when needed. Raises
    RuleError if a file of these folders is no valid rule or reuses a code or name.
    """
    folders = [("auditor.rules", builtin_folder())]
    folders += [(f"auditor_user_rules_{i}", Path(folder)) for i, folder in enumerate(extra)]
    index = _Index()
    rules: dict[str, Rule] = {}
    places: dict[str, str] = {}
    for package, folder in folders:
        for module, path in _rule_files(package, folder):
            rule = index.rule(module, path)
            if rule.code in rules or rule.name in places:
                raise RuleError(f"{path}: {rule.code} {rule.name} clashes with {places.get(rule.name) or rule.code}")
            rules[rule.code] = rule
            places[rule.name] = path
    index.save()
    return tuple(rules[code] for code in sorted(rules))


def _rule_files(package: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(module name, path) of the rule files of a folder, those of its subfolders included."""
    if not folder.is_dir():
        raise RuleError(f"{folder}: no such folder of rules")
    for top, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(("_", ".")))
        parts = Path(top).relative_to(folder).parts
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_"):
                yield ".".join((package, *parts, name.removesuffix(".py"))), os.path.join(top, name)


class _Index:
    """What is known of rule files without executing them, kept between runs; a file is known by its time and size."""

    def __init__(self) -> None:
        self.path = cache_folder() / f"rules-{__version__}-{sys.implementation.cache_tag}.bin"
        self.entries: dict[str, Any] = {}
        self.changed = False
        try:
            self.entries = marshal.loads(self.path.read_bytes())
        except (OSError, ValueError, EOFError, TypeError):
            self.changed = True  # no index yet, or one that cannot be read: it is made anew

    def rule(self, module: str, path: str) -> Rule:
        status = os.stat(path)
        stamp = [status.st_mtime_ns, status.st_size, _SHAPE]
        entry = self.entries.get(path)
        if entry is not None and entry["stamp"] == stamp and module not in sys.modules:
            return IndexedRule(module, entry, functools.partial(_load_file, module, path))
        rule = _load_file(module, path)
        self.entries[path] = {"stamp": stamp, **index_entry(rule)}
        self.changed = True
        return rule

    def save(self) -> None:
        """Write the index if anything is new; where that is not possible, the next start is a little slower."""
        if not self.changed:
            return
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(marshal.dumps(self.entries))
            temporary.replace(self.path)


def cache_folder() -> Path:
    """Where auditor keeps what it can make again: $AUDITOR_CACHE_DIR, or `auditor` in the user's cache folder."""
    if folder := os.environ.get("AUDITOR_CACHE_DIR"):
        return Path(folder)
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or "~/.cache").expanduser() / "auditor"


def _load_file(module: str, path: str) -> Rule:
    loaded = sys.modules.get(module)
    if loaded is None:
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        try:
            spec.loader.exec_module(loaded)
        except Exception as error:
            del sys.modules[module]
            raise RuleError(f"{path}: {type(error).__name__}: {error}") from error
    rule = getattr(loaded, "rule", None)
    if not isinstance(rule, Rule):
        raise RuleError(f"{path}: a rule file must define `rule = Rule(__name__, …)`")
    if not re.fullmatch(CODE, rule.code):
        raise RuleError(f"{path}: {rule.code!r} is no code: use three capital letters and three digits")
    return rule


def find_rule(rules: Iterable[Rule], code_or_name: str) -> Rule | None:
    """The rule with this code (any case) or name."""
    wanted = code_or_name.strip()
    for rule in rules:
        if rule.code == wanted.upper() or rule.name == wanted.lower().replace("_", "-"):
            return rule
    return None


def choose(rules: Sequence[Rule], select: Sequence[str], ignore: Sequence[str]) -> list[Rule]:
    """Rules picked by `select` and not by `ignore`; the longer selector wins (`--select MOD --ignore MOD00`).

    A selector is `ALL`, a code, the beginning of one, or a name. Raises ValueError, with a suggestion, for one that
    means nothing.
    """
    for selector in (*select, *ignore):
        if not any(matches(selector, rule) for rule in rules):
            import difflib

            known = [rule.code for rule in rules] + [rule.name for rule in rules] + ["ALL"]
            close = difflib.get_close_matches(selector.upper(), known, 1) or difflib.get_close_matches(
                selector, known, 1
            )
            hint = f"; did you mean {close[0]!r}?" if close else "; `auditor rules` lists them all"
            raise ValueError(f"unknown rule {selector!r}{hint}")
    chosen = []
    for rule in rules:
        on = max((matches(selector, rule) for selector in select), default=0)
        off = max((matches(selector, rule) for selector in ignore), default=0)
        if on > off:
            chosen.append(rule)
    return chosen


def matches(selector: str, rule: Rule) -> int:
    """How specifically `selector` names `rule`; 0: not at all."""
    if selector.lower().replace("_", "-") == rule.name:
        return 100
    if selector.upper() == "ALL":
        return 1
    return 1 + len(selector) if selector and rule.code.startswith(selector.upper()) else 0
