"""Rule files on disk become rules: the built-in folder, a user's own folders, installed plug-ins."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import marshal
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from auditor import __version__
from auditor.finding import Problem
from auditor.rule import IndexedRule, Rule, index_entry, row_of

PACKAGE = Path(__file__).parent
CODE = r"[A-Z]{3}\d{3}"
_SHAPE = os.stat(PACKAGE / "rule.py").st_mtime_ns  # of what is kept of a rule
USER_PACKAGE = "auditor_rules_"
FIXTURES = "fixtures"
"""The subfolder of a user's rules that holds no rules but their fixtures."""


class RuleError(Exception):
    """A rule file cannot be loaded, or clashes with another; `row` is the line to blame, 0 where none is known."""

    def __init__(self, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.row = row


def builtin_folder() -> Path:
    """`auditor/rules` of an installed wheel, `rules` beside the package in a checkout."""
    installed = PACKAGE / "rules"
    return installed if installed.is_dir() else PACKAGE.parent / "rules"


class Loaded(NamedTuple):
    """Rules, sorted by code, what kept other rule files from being loaded, and the folders they are in."""

    rules: tuple[Rule, ...]
    problems: tuple[Problem, ...]
    folders: tuple[Path, ...]


def load_rules(extra: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """All rules, sorted by code: the built-in ones, those of installed plug-ins and those of the folders `extra`."""
    return load(extra).rules


@functools.cache
def load(extra: tuple[str, ...] = ()) -> Loaded:
    """All rules (see load_rules). What is wrong with one that is not ours is a problem, and the others are loaded.

    A file that has not changed since it was last loaded is taken from the index and executed only when needed. Raises
    RuleError if a built-in file is no valid rule.
    """
    index = _Index()
    rules: dict[str, Rule] = {}
    names: dict[str, Rule] = {}
    problems: list[Problem] = []
    own = RuleFolder("auditor.rules", builtin_folder())
    loaded: list[Path] = []
    for folder in (own, *plugins(index), *map(user_folder, extra)):
        if any(folder.path.is_relative_to(known) for known in loaded):
            continue
        loaded.append(folder.path)
        if not folder.path.is_dir():
            problems.append(Problem(str(folder.path), "no such folder of rules"))
        for module, path in folder.files():
            try:
                rule = index.rule(module, path)
                if other := rules.get(rule.code) or names.get(rule.name):
                    raise RuleError(f"{rule.code} {rule.name} clashes with {other.code} {other.name}")
            except RuleError as error:
                if folder is own:
                    raise RuleError(f"{path}: {error}") from error
                problems.append(Problem(path, f"this rule cannot be used: {error}", row=error.row))
                continue
            rules[rule.code] = names[rule.name] = rule
    index.save()
    return Loaded(tuple(rules[code] for code in sorted(rules)), tuple(problems), tuple(loaded))


def forget_user_rules() -> None:
    """Have the next `load` read the rules again that are not ours, in a process that outlives their changes."""
    load.cache_clear()
    for module in [name for name in sys.modules if name.startswith(USER_PACKAGE)]:
        del sys.modules[module]


class RuleFolder(NamedTuple):
    """A folder of rule files, and the name of the package as which they are imported."""

    package: str
    path: Path

    def files(self) -> Iterator[tuple[str, str]]:
        """(module name, path) of the rule files of the folder, those of its subfolders included."""
        for top, subfolders, names in os.walk(self.path):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(("_", ".")) and name != FIXTURES)
            parts = [re.sub(r"\W", "_", part) for part in Path(top).relative_to(self.path).parts]
            for name in sorted(names):
                if name.endswith(".py") and not name.startswith("_"):
                    yield ".".join((self.package, *parts, name.removesuffix(".py"))), os.path.join(top, name)


def user_folder(folder: str | Path) -> RuleFolder:
    """A folder that is no package: it gets a name of its own, which ends in the folder's name."""
    path = Path(os.path.abspath(folder))
    name = re.sub(r"\W", "_", path.name)
    return RuleFolder(f"{USER_PACKAGE}{os.fsencode(path).hex()}.{name}", path)


def plugins(index: _Index) -> Iterator[RuleFolder]:
    """The packages of rules that installed distributions offer under the entry point `auditor.rules`.

    Looking through all distributions takes longer than checking a file, so that what was found is kept in the index
    until something is installed or removed.
    """
    key = f"plug-ins of {sys.prefix}"
    places = sorted({path for path in sys.path if path.endswith("-packages") and os.path.isdir(path)})
    stamp = [[path, os.stat(path).st_mtime_ns] for path in places]
    if key not in index.entries or index.entries[key]["stamp"] != stamp:
        index.entries[key] = {"stamp": stamp, "folders": _find_plugins()}
        index.changed = True
    for package, path in index.entries[key]["folders"]:
        yield RuleFolder(package, Path(path))


def _find_plugins() -> list[list[str]]:
    """(package, its folder) of every entry point; a package that is not there stands for its folder, too."""
    from importlib.metadata import entry_points

    found = []
    for package in sorted({point.value for point in entry_points(group="auditor.rules")}):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        places = list(spec.submodule_search_locations or ()) if spec else []
        found.append([package, places[0] if places else package])
    return found


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
            _import_parents(module, path)
            spec.loader.exec_module(loaded)
        except (Exception, SystemExit) as error:  # whatever a rule file does
            del sys.modules[module]
            raise RuleError(f"{type(error).__name__}: {error}", row_of(error, path)) from error
    rule = getattr(loaded, "rule", None)
    if not isinstance(rule, Rule):
        raise RuleError("a rule file must define `rule = Rule(__name__, …)`")
    if not re.fullmatch(CODE, rule.code):
        raise RuleError(f"{rule.code!r} is no code: use three capital letters and three digits")
    return rule


def _import_parents(module: str, path: str) -> None:
    """Make `from ._shared import …` work in a rule file; a folder of rules needs no __init__.py for that."""
    package = module.rpartition(".")[0]
    if package.startswith("auditor.") or package in sys.modules:
        return
    if not module.startswith(USER_PACKAGE):
        importlib.import_module(package)
        return
    sys.modules[package] = parent = types.ModuleType(package)
    parent.__path__ = [os.path.dirname(path)]


def find_rule(rules: Iterable[Rule], code_or_name: str) -> Rule | None:
    """The rule with this code (any case) or name."""
    wanted = code_or_name.strip()
    for rule in rules:
        if rule.code == wanted.upper() or rule.name == wanted.lower().replace("_", "-"):
            return rule
    return None


def names_of(rules: Iterable[Rule]) -> list[str]:
    """Everything that a comment or a selector can call these rules."""
    return [name for rule in rules for name in (rule.code, rule.name)]


def close_name(word: str, known: Sequence[str]) -> str:
    """The code or name that `word` may have been meant for; empty for none."""
    import difflib

    for spelling in (word.upper(), word.lower().replace("_", "-")):
        if close := difflib.get_close_matches(spelling, known, 1):
            return close[0]
    return ""


def choose(rules: Sequence[Rule], select: Sequence[str], ignore: Sequence[str]) -> list[Rule]:
    """Rules picked by `select` and not by `ignore`; the longer selector wins (`--select MOD --ignore MOD00`).

    A selector is `ALL`, a code, the beginning of one, or a name. Raises ValueError, with a suggestion, for one that
    means nothing.
    """
    for selector in (*select, *ignore):
        if not any(matches(selector, rule) for rule in rules):
            close = close_name(selector, [*names_of(rules), "ALL"])
            hint = f"; did you mean {close!r}?" if close else "; `auditor rules` lists them all"
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
