"""How fixes are tried: together, one by one, all together; what is refused leaves no trace."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import pytest

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters
from auditor.fix.edit import Edit, replace, set_argument
from auditor.fix.engine import Verdict, fix_text, unified_diff
from auditor.rule import Category, Rule
from auditor.static.source import Source

TEXT = "import torch\nf(1)\nf(2)\ng(3)\n"


def rule_for(function: str, code: str, edit: str = "set", applicability: str = "safe") -> Rule:
    """A rule that flags calls of `function` without `ok=True`, and mends them in the way `edit` says."""
    rule = Rule(
        f"tests.rules.{function}-without-ok",
        code=code,
        category=Category.CORRECTNESS,
        severity=Severity.ERROR,
        summary="test",
        triggers=(function,),
    )

    @rule.static
    def check(source: Source) -> Iterator[Finding]:
        for call in source.calls_named(function):
            if source.argument(call, "ok") is None:
                yield rule.finding(call, "not ok")

    @rule.fix("say ok", applicability=applicability, keeps=[parameters()])
    def mend(source: Source, finding: Finding) -> Edit | None:
        call = source.node_at(finding.location, ast.Call)
        assert isinstance(call, ast.Call)
        return {
            "set": set_argument(call, "ok", "True"),
            "nothing": set_argument(call, "other", "True"),
            "break": replace(call, "f(g(5), ok=True)"),
        }[edit]

    return rule


def test_all_fixes_of_a_file() -> None:
    rules = [rule_for("f", "AAA001"), rule_for("g", "AAA002")]
    outcome = fix_text("file.py", TEXT, rules)
    assert outcome.text == "import torch\nf(1, ok=True)\nf(2, ok=True)\ng(3, ok=True)\n"
    assert [finding.code for finding in outcome.fixed] == ["AAA001", "AAA001", "AAA002"]
    assert not outcome.found
    assert not outcome.refused


def test_unsafe_fixes_only_when_asked() -> None:
    rules = [rule_for("f", "AAA001", applicability="unsafe"), rule_for("g", "AAA002", applicability="display-only")]
    assert fix_text("file.py", TEXT, rules).text == TEXT
    assert fix_text("file.py", TEXT, rules, unsafe=True).text == "import torch\nf(1, ok=True)\nf(2, ok=True)\ng(3)\n"


def test_a_fix_that_leaves_its_finding_is_refused() -> None:
    outcome = fix_text("file.py", TEXT, [rule_for("f", "AAA001", "nothing")])
    assert outcome.text == TEXT
    assert {refusal.reason for refusal in outcome.refused} == {"AAA001 is still found in the result"}
    assert [finding.code for finding in outcome.found] == ["AAA001", "AAA001"]


def test_a_fix_that_brings_a_new_finding_is_refused() -> None:
    outcome = fix_text("file.py", TEXT, [rule_for("f", "AAA001", "break"), rule_for("g", "AAA002", "nothing")])
    assert outcome.text == TEXT
    assert {refusal.reason for refusal in outcome.refused} == {
        "AAA002 is newly found in the result",
        "AAA002 is still found in the result",
    }


def test_nested_fixes_are_made_one_after_the_other() -> None:
    outcome = fix_text("file.py", "import torch\nf(f(1))\n", [rule_for("f", "AAA001")])
    assert outcome.text == "import torch\nf(f(1, ok=True), ok=True)\n"


def test_one_bad_fix_does_not_stop_the_others() -> None:
    def judge(before: str, after: str, group: Sequence[Finding]) -> Verdict:
        return Verdict("f(2) must not change") if "f(2, ok" in after else Verdict()

    outcome = fix_text("file.py", TEXT, [rule_for("f", "AAA001"), rule_for("g", "AAA002")], judge=judge)
    assert outcome.text == "import torch\nf(1, ok=True)\nf(2)\ng(3, ok=True)\n"
    (refusal,) = outcome.refused
    assert (refusal.finding.location.row, refusal.reason) == (3, "f(2) must not change")


def test_two_causes_of_one_effect_are_mended_together() -> None:
    def judge(before: str, after: str, group: Sequence[Finding]) -> Verdict:
        complete = after.count("ok=True") == 3
        return Verdict() if complete else Verdict("no improvement yet")

    outcome = fix_text("file.py", TEXT, [rule_for("f", "AAA001"), rule_for("g", "AAA002")], judge=judge)
    assert outcome.text.count("ok=True") == 3
    assert not outcome.refused


def test_unified_diff_marks_a_missing_last_newline() -> None:
    assert unified_diff("a.py", "x", "y") == (
        "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+y\n\\ No newline at end of file\n"
    )


@pytest.mark.parametrize("text", ["", "import torch\n", "import torch\nf(\n"])
def test_nothing_to_mend(text: str) -> None:
    assert fix_text("file.py", text, [rule_for("f", "AAA001")]).text == text
