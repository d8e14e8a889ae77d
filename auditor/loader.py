"""Rule files on disk become rules: the built-in folder, a user's own folders, installed plug-ins."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from auditor.rule import Rule

PACKAGE = Path(__file__).parent
CODE = re.compile(r"[A-Z]{3}\d{3}")


class RuleError(Exception):
    """A rule file cannot be loaded, or clashes with another."""


def builtin_folder() -> Path:
    """`auditor/rules` of an installed wheel, `rules` beside the package in a checkout."""
    installed = PACKAGE / "rules"
    return installed if installed.is_dir() else PACKAGE.parent / "rules"


@functools.cache
def load_rules(extra: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """All rules, sorted by code: the built-in ones and those of the folders `extra`.

    Raises RuleError if a file of these folders is no valid rule or reuses a code or name.
    """
    rules: dict[str, Rule] = {}
    folders = [("auditor.rules", builtin_folder())]
    folders += [(f"auditor_user_rules_{i}", Path(folder)) for i, folder in enumerate(extra)]
    for package, folder in folders:
        for rule in _load_folder(package, folder):
            for other in rules.values():
                if rule.code == other.code or rule.name == other.name:
                    raise RuleError(f"{rule.path}: {rule.code} {rule.name} clashes with {other.path}")
            rules[rule.code] = rule
    return tuple(rules[code] for code in sorted(rules))


def _load_folder(package: str, folder: Path) -> Iterable[Rule]:
    if not folder.is_dir():
        raise RuleError(f"{folder}: no such folder of rules")
    for path in sorted(folder.rglob("*.py")):
        if path.name.startswith("_"):
            continue
        module = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
        yield _load_file(module, path)


def _load_file(module: str, path: Path) -> Rule:
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
    if not CODE.fullmatch(rule.code):
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
