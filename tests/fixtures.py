"""The built-in rules and their fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from auditor import testing
from auditor.loader import load_rules
from auditor.rule import Rule
from auditor.testing import Fixture

ROOT = Path(__file__).parent.parent
RULES = tuple(rule.loaded() for rule in load_rules())
BY_CODE = {rule.code: rule for rule in RULES}


def fixtures_of(rule: Rule) -> list[Fixture]:
    return testing.fixtures_of(rule, RULES)


def all_fixtures() -> Iterator[Fixture]:
    for rule in RULES:
        yield from fixtures_of(rule)
