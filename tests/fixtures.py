"""Reading the annotated fixtures: what each line of each file is expected to be flagged with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from auditor.loader import load_rules
from auditor.rule import Rule

ROOT = Path(__file__).parent.parent
RULES = tuple(rule.loaded() for rule in load_rules())
BY_CODE = {rule.code: rule for rule in RULES}
ANNOTATION = re.compile(r"#\s*expect(?P<half>-static|-dynamic)?:\s*(?P<codes>[^#\n]*)")


@dataclass(frozen=True)
class Fixture:
    """One annotated file of one rule."""

    rule: Rule
    path: Path

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def fixed(self) -> Path | None:
        """The expected text after the fix, for a `bad*.py` of a rule that fixes it."""
        path = self.path.with_name(self.path.name.replace("bad", "fixed", 1))
        return path if self.path.name.startswith("bad") and path.exists() else None

    def expected(self, half: str) -> set[tuple[int, str]]:
        """(row, code) of every finding that the `static` or `dynamic` half must give; raises for an unknown code.

        A fixed file still carries the comments of the bad one, but not its findings.
        """
        found = set()
        for row, line in enumerate(self.text.splitlines(), 1):
            for match in ANNOTATION.finditer(line):
                for code in re.split(r"[,\s]+", match["codes"].strip()):
                    rule = BY_CODE[code]
                    if rule is self.rule and self.path.stem.startswith("fixed"):
                        continue
                    check = rule.static_check if half == "static" else rule.dynamic_check
                    if match["half"] == f"-{half}" or (match["half"] is None and check is not None):
                        found.add((row, code))
        return found


def folder_of(rule: Rule) -> Path:
    """The folder of a built-in rule's fixtures: same path as the rule's file."""
    return ROOT / "fixtures" / rule.family / rule.name.replace("-", "_")


def fixtures_of(rule: Rule) -> list[Fixture]:
    return [Fixture(rule, path) for path in sorted(folder_of(rule).glob("*.py")) if not path.name.startswith("_")]


def all_fixtures() -> Iterator[Fixture]:
    for rule in RULES:
        yield from fixtures_of(rule)
