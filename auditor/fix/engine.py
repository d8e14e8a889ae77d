"""From findings to a new text: fixes applied together, re-checked, repeated until nothing changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from auditor.finding import READ, Finding, Problem, merge
from auditor.fix.edit import Applicability, Fix
from auditor.rule import Rule, RuleFailure
from auditor.static.check import FileResult, check_text, drop_symptoms
from auditor.static.source import opened

ROUNDS = 20


class Refusal(NamedTuple):
    """A finding whose fix was not made, and why."""

    finding: Finding
    reason: str
    broken: str = ""
    """The claim, and the model, on which it failed; fixes that fail on the same one may belong together."""


@dataclass(slots=True)
class Outcome:
    """A file's text after fixing, what was mended, what was refused, and what is left to report."""

    text: str
    result: FileResult
    found: list[Finding] = field(default_factory=list)
    """Everything still found, in the source and in a run."""
    fixed: list[Finding] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What running the model before and after says of a fix: why it is refused (empty: accepted), the claim of which
    model it broke, and what a run of the mended model still finds."""

    refusal: str = ""
    broken: str = ""
    findings: list[Finding] = field(default_factory=list)


# Decides over fixes made together, from the text before, the text after and the findings mended.
Judge = Callable[[str, str, Sequence[Finding]], Verdict]


def offer(
    findings: Sequence[Finding],
    text: str,
    rules: Sequence[Rule],
    path: str,
    text_edits: bool = False,
    problems: list[Problem] | None = None,
) -> list[Finding]:
    """The findings, each with the fix its rule has for it. A rule that fails at that is added to `problems`."""
    fixers = {rule.code: rule for rule in rules if rule.fixes}
    if not any(finding.code in fixers for finding in findings):
        return list(findings)
    source = opened(path, text)
    offered = []
    for finding in findings:
        try:
            fix = fixers[finding.code].mend(source, finding) if finding.code in fixers else None
        except RuleFailure as failure:
            fix = None
            if problems is not None:
                problems.append(Problem(path, str(failure), row=finding.location.row))
        if fix is not None and text_edits:
            from auditor.fix import rewrite

            fix = fix._replace(text_edits=tuple(rewrite.text_edits(text, rewrite.apply(text, fix.edits))))
        offered.append(replace(finding, fix=fix))
    return offered


def fix_text(
    path: str,
    text: str,
    rules: Sequence[Rule],
    *,
    unsafe: bool = False,
    judge: Judge | None = None,
    seen: Sequence[Finding] = (),
) -> Outcome:
    """Mend what can be mended in `text`; `seen` are the findings of a run.

    The fixes of one rule are tried together, then one by one; those refused for the same claim are tried together,
    since two causes of one effect only show an improvement when both are gone; last, all that are left. A try is kept
    if the new text parses, its findings are gone, no finding is new, and `judge` (if given) accepts it. Repeated until
    nothing is left to try.
    """
    outcome = Outcome(text, check_text(path, text, rules))
    seen = list(seen)
    for _ in range(ROUNDS):
        outcome.found = drop_symptoms(merge([*outcome.result.findings, *seen]), rules)
        candidates = offer(outcome.found, outcome.text, rules, path)
        mendable = [item for item in candidates if item.fix is not None and is_allowed(item.fix, unsafe)]
        outcome.refused = []
        for group in tries(mendable, outcome.refused):
            attempt = _try(path, outcome, group, rules, judge)
            if isinstance(attempt, Verdict):
                outcome.refused += [Refusal(item, attempt.refusal, attempt.broken) for item in group]
                continue
            outcome.text, outcome.result, seen = attempt
            outcome.fixed += group
            break
        else:
            outcome.refused = last_word(outcome.refused)
            return outcome
    return outcome


def tries(mendable: Sequence[Finding], refused: Sequence[Refusal]) -> Iterator[list[Finding]]:
    """The groups of findings to mend together, the most promising first; `refused` grows while they are tried."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in mendable:
        by_rule.setdefault(finding.code, []).append(finding)
    yield from by_rule.values()
    for group in by_rule.values():
        outer = _outermost(group)
        if 1 < len(outer) < len(group):
            yield outer
        if len(group) > 1:
            yield from ([finding] for finding in group)
    tried = [[finding.code for finding in group] for group in by_rule.values()]
    by_claim: dict[str, list[Finding]] = {}
    for refusal in refused:
        group = by_claim.setdefault(refusal.broken, [])
        if refusal.broken and refusal.finding not in group:
            group.append(refusal.finding)
    for group in [*by_claim.values(), list(mendable)]:
        codes = [finding.code for finding in group]
        if len(group) > 1 and codes not in tried:
            tried.append(codes)
            yield group


def _outermost(group: Sequence[Finding]) -> list[Finding]:
    """The findings that lie in the range of no other: what mends these may rewrite what is inside them, whose turn
    comes in the next round."""
    ranges = [(finding.location, _start(finding), _end(finding)) for finding in group]
    return [
        finding
        for finding in group
        if not any(
            other != finding.location and start <= _start(finding) and _end(finding) <= end
            for other, start, end in ranges
        )
    ]


def _start(finding: Finding) -> tuple[int, int]:
    return finding.location.row, finding.location.column


def _end(finding: Finding) -> tuple[int, int]:
    return finding.location.end_row, finding.location.end_column


def _try(
    path: str,
    outcome: Outcome,
    group: Sequence[Finding],
    rules: Sequence[Rule],
    judge: Judge | None,
) -> tuple[str, FileResult, list[Finding]] | Verdict:
    """The new text with what is found in it, or why it is refused."""
    from auditor.fix import rewrite  # imports libcst: only when a file is really rewritten

    try:
        text = rewrite.apply(outcome.text, [edit for finding in group if finding.fix for edit in finding.fix.edits])
    except rewrite.EditError as error:
        return Verdict(f"the edits cannot be made: {error}")
    if text == outcome.text:
        return Verdict("the edits change nothing")
    result = check_text(path, text, rules)
    if result.problems and not result.parsed:
        return Verdict(f"the result does not parse: {result.problems[0].message}")
    before = Counter(finding.code for finding in outcome.result.findings)
    gone = Counter(finding.code for finding in group if READ in finding.seen)
    after = Counter(finding.code for finding in result.findings)
    for code in sorted(before | after):
        if after[code] > before[code] - gone[code]:
            return Verdict(f"{code} is {'still' if gone[code] else 'newly'} found in the result")
    if judge is None:
        return text, result, []  # what a run of this text would show, nobody knows
    verdict = judge(outcome.text, text, group)
    return verdict if verdict.refusal else (text, result, verdict.findings)


def unified_diff(path: str, before: str, after: str) -> str:
    """The change of one file as `diff -u` would show it."""
    import difflib

    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def is_allowed(fix: Fix, unsafe: bool) -> bool:
    return fix.applicability is Applicability.SAFE or (unsafe and fix.applicability is Applicability.UNSAFE)


def last_word(refusals: Sequence[Refusal]) -> list[Refusal]:
    """One refusal per finding: that of its most specific try."""
    smallest = {(item.finding.code, item.finding.location): item for item in reversed(refusals)}
    return [smallest[key] for key in sorted(smallest)]
