"""Rules held against their fixtures, the built-in ones (tests/test_rules.py) and a user's own (`auditor test-rules`).

A fixture is a file in the rule's folder of fixtures: `bad*.py` has the defect, `good*.py` nearly has it, `fixed*.py` is
what the fix makes of `bad*.py`. Comments say what must be found, and everything else must be silent:
`# expect: MOD004` (by each half that the rule has), `# expect-static: MOD004`, `# expect-dynamic: MOD004`.

Every check is a function that yields what is wrong, in words; nothing is wrong where it yields nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from auditor.finding import Finding, Problem, merge
from auditor.fix.edit import Applicability
from auditor.fix.engine import fix_text, offer, unified_diff
from auditor.loader import FIXTURES
from auditor.rule import Rule
from auditor.settings import Settings
from auditor.static.check import check_text

ANNOTATION = re.compile(r"#\s*expect(?P<half>-static|-dynamic)?:\s*(?P<codes>[^#\n]*)")
HALVES = ("static", "dynamic")
Place = tuple[int, str]
"""The row and the code of a finding."""


@dataclass(frozen=True)
class Fixture:
    """One annotated file of one rule; `rules` are all the rules that it is shown to."""

    rule: Rule
    path: Path
    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def kind(self) -> str:
        """`bad`, `good` or `fixed`."""
        return next((kind for kind in ("bad", "good", "fixed") if self.path.name.startswith(kind)), "")

    @property
    def fixed(self) -> Path | None:
        """The expected text after the fix, for a `bad*.py` that has one."""
        path = self.path.with_name(self.path.name.replace("bad", "fixed", 1))
        return path if self.kind == "bad" and path.exists() else None

    @property
    def applied(self) -> tuple[Rule, ...]:
        """The rules that mend the text: the fixture's own, but all where it is about what comments silence."""
        return (self.rule,) if self.rule.comment_check is None else self.rules

    def expected(self, half: str) -> set[Place]:
        """What the `static` or `dynamic` half of the rules must find. Raises ValueError for an unknown code.

        A fixed file still carries the comments of the bad one, but not its findings.
        """
        codes = {rule.code: rule.loaded() for rule in self.rules}
        found = set()
        for row, line in enumerate(self.text.splitlines(), 1):
            for match in ANNOTATION.finditer(line):
                for code in re.split(r"[,\s]+", match["codes"].strip()):
                    if code not in codes:
                        raise ValueError(f"{self}:{row}: expects {code!r}, which is no rule")
                    if code == self.rule.code and self.kind == "fixed":
                        continue
                    checked = codes[code].reads_source if half == "static" else codes[code].runs_model
                    if match["half"] == f"-{half}" or (match["half"] is None and checked):
                        found.add((row, code))
        return found


def fixtures_of(rule: Rule, rules: tuple[Rule, ...]) -> list[Fixture]:
    """The fixtures of a rule, shown to `rules`: those of my_rules/some/rule.py are in my_rules/fixtures/some/rule or
    fixtures/some/rule, the folder `fixtures` nearest to the file first."""
    file = Path(rule.path).with_suffix("")
    places = [above / FIXTURES / file.relative_to(top) for top in file.parents for above in (top, top.parent)]
    place = next((place for place in places if place.is_dir()), None)
    paths = sorted(place.glob("*.py")) if place else []
    return [Fixture(rule, path, rules) for path in paths if not path.name.startswith("_")]


# What must hold ------------------------------------------------------------------------------------------------------


def static_findings(fixture: Fixture) -> Iterator[str]:
    """Reading the source finds what is expected and nothing else."""
    result = check_text(str(fixture.path), fixture.text, fixture.rules)
    yield from (problem.message for problem in result.problems)
    yield from _differences(fixture, "static", result.findings)


def dynamic_findings(fixture: Fixture) -> Iterator[str]:
    """Running the models finds what is expected and nothing else."""
    found, problems = _run(fixture, fixture.rules)
    yield from problems
    yield from _differences(fixture, "dynamic", found)


def _differences(fixture: Fixture, half: str, findings: Sequence[Finding]) -> Iterator[str]:
    found = {(finding.location.row, finding.code) for finding in findings}
    expected = fixture.expected(half)
    seen = {"static": "reading the source", "dynamic": "running the models"}[half]
    for row, code in sorted(expected - found):
        yield f"{fixture}:{row}: {code} is expected, but {seen} does not find it"
    for row, code in sorted(found - expected):
        yield f"{fixture}:{row}: {seen} finds {code}, which is not expected"


def enough_fixtures(rule: Rule, fixtures: Sequence[Fixture]) -> Iterator[str]:
    """Hits, near misses, and a fixed file where the rule fixes something."""
    bad = [fixture for fixture in fixtures if fixture.kind == "bad"]
    for fixture in fixtures:
        if not fixture.kind:
            yield f"{fixture}: a fixture is called bad*.py, good*.py or fixed*.py"
    for fixture in bad:
        if not any(code == rule.code for half in HALVES for _, code in fixture.expected(half)):
            yield f"{fixture}: a bad*.py must have a line with `# expect: {rule.code}`"
    if not bad:
        yield f"{rule.name} has no bad*.py, which must be found"
    if not any(fixture.kind == "good" for fixture in fixtures):
        yield f"{rule.name} has no good*.py, which must be left alone"
    fixes = rule.fix_function is not None and rule.applicability is not Applicability.DISPLAY_ONLY
    if fixes and not any(fixture.fixed for fixture in bad):
        yield f"{rule.name} has a fix but no fixed*.py, which is what the fix makes of bad*.py"


def exact_fix(fixture: Fixture) -> Iterator[str]:
    """The fixed text is the expected one, parses, no longer has the finding, and is not changed by a second run."""
    assert fixture.fixed is not None
    wanted = fixture.fixed.read_text(encoding="utf-8")
    failures: list[Problem] = []
    found = check_text(str(fixture.path), fixture.text, fixture.applied).findings
    offer(found, fixture.text, [fixture.rule], str(fixture.path), problems=failures)
    yield from (f"{fixture}:{failure.row}: {failure.message}" for failure in failures)
    mended = _mend(fixture, fixture.text)
    if mended != wanted:
        yield f"{fixture}: the fix makes something else of it:\n{unified_diff(fixture.fixed.name, wanted, mended)}"
        return
    ast.parse(mended)
    left = check_text(str(fixture.path), mended, fixture.applied).findings
    if any(finding.code == fixture.rule.code and finding.fix for finding in left):
        yield f"{fixture}: the fix leaves a finding that it could mend"
    if _mend(fixture, mended) != mended:
        yield f"{fixture}: a second fix changes the text again"


def claims_hold(fixture: Fixture) -> Iterator[str]:
    """Running the models before and after the fix bears out what the fix claims."""
    assert fixture.fixed is not None
    if reason := _refusal(fixture, fixture.fixed.read_text(encoding="utf-8")):
        yield f"{fixture}: the fix is refused: {reason}"


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


def broken_fix_is_refused(fixture: Fixture) -> Iterator[str]:
    """A fix that changes nothing gains nothing, and one that also spoils the model breaks a claim."""
    assert fixture.fixed is not None
    if fixture.rule.gains and not _refusal(fixture, fixture.text):
        yield f"{fixture}: the claims accept a fix that changes nothing"
    if not _refusal(fixture, fixture.fixed.read_text(encoding="utf-8") + SABOTAGE):
        yield f"{fixture}: the claims accept a fix that spoils the model; claim what it keeps"


# One rule after the other --------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """One check, ready to be made; `runs`: it runs models, and so needs torch."""

    check: Callable[[Fixture], Iterator[str]]
    fixture: Fixture
    runs: bool

    def complaints(self) -> list[str]:
        """What is wrong. An error that the rule raises is that, too."""
        try:
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():  # of the fixtures' models
                warnings.simplefilter("ignore")
                return list(self.check(self.fixture))
        except Exception as error:  # whatever the code of a rule does
            return [f"{self.fixture}: {type(error).__name__}: {error}"]


def trials(fixtures: Sequence[Fixture]) -> Iterator[Trial]:
    """All checks that the fixtures of a rule call for."""
    for fixture in fixtures:
        yield Trial(static_findings, fixture, False)
        if fixture.rule.dynamic_check is not None:
            yield Trial(dynamic_findings, fixture, True)
        if fixture.fixed is not None:
            yield Trial(exact_fix, fixture, fixture.rule.dynamic_check is not None)
            yield Trial(claims_hold, fixture, True)
            yield Trial(broken_fix_is_refused, fixture, True)


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _at(path: Path, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, under the file's name as the fixture knows it."""
    return [replace(finding, location=replace(finding.location, path=str(path))) for finding in findings]


def _run(fixture: Fixture, rules: Sequence[Rule], text: str | None = None) -> tuple[list[Finding], list[str]]:
    """The findings and the problems of all dynamic checks on all models of the file, in this process; loaded with the
    weights of the file's name, if there are any beside it."""
    from auditor.dynamic.service import audit_file

    weights = fixture.path.with_suffix(".pt")
    settings = Settings(weights=str(weights) if weights.exists() else "")
    outcome = audit_file(str(fixture.path), rules, settings, text=text)
    return _at(fixture.path, outcome.findings), [f"{fixture}: {problem.message}" for problem in outcome.problems]


def _mend(fixture: Fixture, text: str) -> str:
    """The text after all fixes of the fixture's rule, static and dynamic findings alike."""
    seen = _run(fixture, fixture.rules, text)[0] if fixture.rule.dynamic_check else []
    seen = [finding for finding in seen if finding.code == fixture.rule.code]
    return fix_text(str(fixture.path), text, fixture.applied, unsafe=True, seen=seen).text


def _refusal(fixture: Fixture, after: str) -> str:
    """Why the proof refuses `after` as the fix of the fixture's text; empty if every claim holds on every model."""
    from auditor.dynamic.service import audit_file
    from auditor.fix.proof import Prover
    from auditor.fix.service import validate

    path, rule = str(fixture.path), fixture.rule
    audit = audit_file(path, [rule], Settings())
    found = merge([*check_text(path, fixture.text, fixture.applied).findings, *_at(fixture.path, audit.findings)])
    group = [finding for finding in offer(found, fixture.text, [rule], path) if finding.fix]
    if not group:
        return "nothing is found that the rule has a fix for"
    prover = Prover(lambda operation, **payload: validate(payload), path, audit.records, Settings(), [])
    return prover.judge(fixture.text, after, group).refusal
