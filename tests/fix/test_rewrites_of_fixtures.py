"""Every rule with a half in memory mends a model of its own fixtures with it."""

from __future__ import annotations

import pytest

import auditor
from auditor.dynamic.target import find_targets
from auditor.rule import Rule
from tests.fixtures import RULES, fixtures_of

REWRITING = [rule for rule in RULES if rule.rewrite_function is not None]
# The dropout of its fixtures is called in `forward`, where it can only be moved by hand; test_memory.py has another.
BY_HAND = {"DRP005"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", REWRITING, ids=lambda rule: rule.name)
def test_a_fixture_is_mended(rule: Rule) -> None:
    reasons = []
    for fixture in fixtures_of(rule):
        if not fixture.path.stem.startswith("bad"):
            continue
        for target in find_targets(str(fixture.path))[0]:
            inputs = target.inputs(target.build(0)[0], [], seed=0)
            _, certificates = auditor.rewrite(target.factory, inputs, select=rule.code)
            if any(one.accepted for one in certificates):
                return
            reasons += [one.reason for one in certificates]
    assert rule.code in BY_HAND, reasons
    assert reasons
