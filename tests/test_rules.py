"""Every rule on every one of its fixtures: what must be found is found, every other line is silent, fixes hold."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.finding import Finding, merge
from auditor.fix.engine import fix_text, offer
from auditor.rule import Rule
from auditor.settings import Settings
from auditor.static.check import check_text
from tests.fixtures import RULES, Fixture, all_fixtures, fixtures_of

FIXTURES = list(all_fixtures())
RUN = [fixture for fixture in FIXTURES if fixture.rule.dynamic_check is not None]
MENDED = [fixture for fixture in FIXTURES if fixture.fixed is not None]
FIXING = [rule for rule in RULES if rule.fix_function is not None]
IDS = {"ids": str}


def places(findings: list[Finding]) -> set[tuple[int, str]]:
    return {(finding.location.row, finding.code) for finding in findings}


def at(path: str, findings: list[Finding]) -> list[Finding]:
    """The findings, under the file's name as the test knows it."""
    return [replace(finding, location=replace(finding.location, path=path)) for finding in findings]


def run(path: Path, text: str | None = None) -> list[Finding]:
    """The findings of all dynamic checks on all models of a file, in this process."""
    from auditor.dynamic.service import audit_file

    outcome = audit_file(str(path), RULES, Settings(), text=text)
    assert not outcome.problems, outcome.problems
    return at(str(path), outcome.findings)


@pytest.mark.parametrize("fixture", FIXTURES, **IDS)
def test_static_findings(fixture: Fixture) -> None:
    result = check_text(str(fixture.path), fixture.text, RULES)
    assert not result.problems
    assert places(result.findings) == fixture.expected("static")


@pytest.mark.parametrize("fixture", RUN, **IDS)
def test_dynamic_findings(fixture: Fixture) -> None:
    assert places(run(fixture.path)) == fixture.expected("dynamic")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_fixtures_exist(rule: Rule) -> None:
    """Hits, more near misses than hits, and a fixed file where the rule fixes something."""
    fixtures = fixtures_of(rule)
    bad = [fixture for fixture in fixtures if fixture.path.stem.startswith("bad")]
    good = [fixture for fixture in fixtures if fixture.path.stem.startswith("good")]
    hits = {place for fixture in bad for half in ("static", "dynamic") for place in fixture.expected(half)}
    assert any(code == rule.code for _, code in hits)
    assert all(
        any(code == rule.code for half in ("static", "dynamic") for _, code in fixture.expected(half))
        for fixture in bad
    )
    assert good
    if rule.fix_function is not None and str(rule.applicability) != "display-only":
        assert any(fixture.fixed for fixture in bad)


def mend(fixture: Fixture, text: str) -> str:
    """The text after all fixes of the fixture's rule, static and dynamic findings alike."""
    seen = run(fixture.path, text) if fixture.rule.dynamic_check else []
    seen = [finding for finding in seen if finding.code == fixture.rule.code]
    return fix_text(str(fixture.path), text, [fixture.rule], unsafe=True, seen=seen).text


@pytest.mark.parametrize("fixture", MENDED, **IDS)
def test_fix_is_exact_and_final(fixture: Fixture) -> None:
    """The fixed text is the expected one, parses, no longer has the finding, and is not changed by a second run."""
    assert fixture.fixed is not None
    fixed = mend(fixture, fixture.text)
    assert fixed == fixture.fixed.read_text(encoding="utf-8")
    ast.parse(fixed)
    left = check_text(str(fixture.path), fixed, [fixture.rule]).findings
    assert not [finding for finding in left if finding.code == fixture.rule.code and finding.fix]
    assert mend(fixture, fixed) == fixed


def refusal(fixture: Fixture, after: str) -> str:
    """Why the proof refuses `after` as the fix of the fixture's text; empty if every claim holds on every model."""
    from auditor.dynamic.service import audit_file
    from auditor.fix.proof import Prover
    from auditor.fix.service import validate

    path, rule = str(fixture.path), fixture.rule
    audit = audit_file(path, [rule], Settings())
    found = merge([*check_text(path, fixture.text, [rule]).findings, *at(path, audit.findings)])
    group = [finding for finding in offer(found, fixture.text, [rule], path) if finding.fix]
    assert group
    prover = Prover(lambda operation, **payload: validate(payload), path, audit.records, Settings(), [])
    return prover.judge(fixture.text, after, group).refusal


@pytest.mark.parametrize("fixture", MENDED, **IDS)
def test_claims_hold(fixture: Fixture) -> None:
    assert fixture.fixed is not None
    assert refusal(fixture, fixture.fixed.read_text(encoding="utf-8")) == ""


# Appended to a mended file: the same models, each with one thing broken that a careless rewrite would break.
SABOTAGE = """

import torch as _torch

for _class in [c for c in list(globals().values()) if isinstance(c, type) and issubclass(c, _torch.nn.Module)]:
    if _class.__module__ == __name__ and "forward" in vars(_class):
        def _broken(self, *args, _forward=_class.forward, **kwargs):
            result = _forward(self, *args, **kwargs)
            return result * 1.01 + _torch.rand(()) if isinstance(result, _torch.Tensor) else result
        _class.forward = _broken
"""


@pytest.mark.parametrize("fixture", MENDED, **IDS)
def test_broken_fix_is_refused(fixture: Fixture) -> None:
    """A fix that changes nothing gains nothing, and one that also spoils the model breaks a claim."""
    assert fixture.fixed is not None
    if fixture.rule.gains:
        assert refusal(fixture, fixture.text), "accepted a fix that changes nothing"
    sabotaged = fixture.fixed.read_text(encoding="utf-8") + SABOTAGE
    assert refusal(fixture, sabotaged), "accepted a fix that spoils the model"
