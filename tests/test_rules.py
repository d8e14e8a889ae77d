"""Every rule on every one of its fixtures: what must be found is found, every other line is silent, fixes hold."""

from __future__ import annotations

import pytest

from auditor import testing
from auditor.rule import Rule
from auditor.testing import Fixture
from tests.fixtures import RULES, all_fixtures, fixtures_of

FIXTURES = list(all_fixtures())
RUN = [fixture for fixture in FIXTURES if fixture.rule.dynamic_check is not None]
MENDED = [fixture for fixture in FIXTURES if fixture.fixed is not None]
IDS = {"ids": str}


@pytest.mark.parametrize("fixture", FIXTURES, **IDS)
def test_static_findings(fixture: Fixture) -> None:
    assert list(testing.static_findings(fixture)) == []


@pytest.mark.parametrize("fixture", RUN, **IDS)
def test_dynamic_findings(fixture: Fixture) -> None:
    assert list(testing.dynamic_findings(fixture)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_fixtures_exist(rule: Rule) -> None:
    assert list(testing.enough_fixtures(rule, fixtures_of(rule))) == []


@pytest.mark.parametrize("fixture", MENDED, **IDS)
def test_fix_is_exact_and_final(fixture: Fixture) -> None:
    assert list(testing.exact_fix(fixture)) == []


@pytest.mark.parametrize("fixture", MENDED, **IDS)
def test_claims_hold(fixture: Fixture) -> None:
    assert list(testing.claims_hold(fixture)) == []


@pytest.mark.parametrize("fixture", MENDED, **IDS)
def test_broken_fix_is_refused(fixture: Fixture) -> None:
    assert list(testing.broken_fix_is_refused(fixture)) == []
