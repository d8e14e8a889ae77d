"""What every rule file must have, so that its documentation is whole and a newcomer can read it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from auditor.rule import Rule
from auditor.static.check import check_text
from tests.fixtures import BY_CODE, ROOT, RULES

HEADINGS = ["What it finds", "Why it matters", "Example", "Use instead", "When to ignore it", "References"]
PREAMBLE = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n"
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def section(rule: Rule, heading: str) -> str:
    return rule.explanation.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def example(rule: Rule, heading: str) -> str:
    return PREAMBLE + textwrap.dedent(section(rule, heading))


@by_name
def test_metadata(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+", rule.name)
    assert rule.summary
    assert rule.summary[0].islower() or rule.summary.split()[0].isupper() or "`" in rule.summary.split()[0]
    assert not rule.summary.endswith(".")
    assert rule.static_check or rule.dynamic_check or rule.comment_check
    assert all(code in BY_CODE or re.fullmatch(r"[A-Z]{3}\d{3}", code) for code in rule.yields_to)
    if rule.fix_function is not None:
        assert rule.keeps or rule.gains
    if rule.static_check is not None:
        assert rule.triggers


@by_name
def test_explanation(rule: Rule) -> None:
    title = rule.explanation.partition("\n")[0]
    assert title.endswith(".")
    assert re.findall(r"^## (.*)$", rule.explanation, re.MULTILINE) == HEADINGS
    assert all(section(rule, heading).strip() for heading in HEADINGS)


@by_name
def test_examples(rule: Rule) -> None:
    """The example is flagged, the remedy is not."""
    compile(example(rule, "Example"), "example", "exec")
    compile(example(rule, "Use instead"), "remedy", "exec")
    if rule.reads_source:
        found = check_text("example.py", example(rule, "Example"), RULES).findings
        assert rule.code in {finding.code for finding in found}
        left = check_text("remedy.py", example(rule, "Use instead"), [rule]).findings
        assert not left


@by_name
def test_file(rule: Rule) -> None:
    """Short, and free of imports that would make loading all rules slow."""
    text = Path(rule.path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert not re.search(r"^(import|from) (torch|libcst|numpy)", text, re.MULTILINE)
    assert "TODO" not in text


def test_no_orphan_fixtures() -> None:
    """Every fixture folder belongs to a rule."""
    known = {ROOT / "fixtures" / rule.family / rule.name.replace("-", "_") for rule in RULES}
    folders = {path.parent for path in (ROOT / "fixtures").rglob("*.py") if "__pycache__" not in path.parts}
    assert folders <= known
