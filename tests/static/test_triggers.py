"""A file is shown to a rule exactly when it contains what the rule's triggers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.finding import Severity
from auditor.rule import Category, Rule
from auditor.static.triggers import Triggers


def a_rule(*triggers: str | tuple[str, ...]) -> Rule:
    rule = Rule(
        "rules.x.a_rule",
        code="XXX001",
        category=Category.CORRECTNESS,
        severity=Severity.ERROR,
        summary="",
        triggers=triggers,
    )
    rule.static(lambda source: [])
    return rule


@pytest.mark.parametrize(
    ("trigger", "text", "wanted"),
    [
        ("ropout", "import torch; nn.Dropout(0.5)", True),
        ("zeros_(", "import torch; nn.init.zeros_(self.weight)", True),
        ("zeros_(", "import torch; zeros_ = 1", False),
        ("def eval", "import torch\ndef evaluate(model): ...", True),
        ("def eval", "import torch\nmodel.eval()", False),
        (".data = torch.zeros", "import torch\nw.data = torch.zeros(2)", True),
        (("BatchNorm", "DataParallel"), "import torch\nnn.BatchNorm2d(3)", False),
        (("BatchNorm", "DataParallel"), "import torch\nDataParallel(nn.BatchNorm2d(3))", True),
        ("ropout", "nn.Dropout(0.5)", False),  # no torch
    ],
)
def test_what_a_file_must_contain(trigger: str | tuple[str, ...], text: str, wanted: bool) -> None:
    rule = a_rule(trigger)
    assert list(Triggers([rule]).wanted(text.encode())) == ([rule] if wanted else [])


CODE = st.text(alphabet="abt_.( )=\nd ef", max_size=40)
TRIGGER = st.text(alphabet="abt_.(def ", min_size=1, max_size=4)


@given(st.lists(CODE, min_size=1, max_size=4), st.lists(TRIGGER, min_size=1, max_size=3))
def test_agrees_with_a_search_in_the_whole_text(files: list[str], triggers: list[str]) -> None:
    rules = [a_rule(trigger) for trigger in triggers]
    found = Triggers(rules)
    for text in files:
        content = f"torch {text}"
        wanted = {id(rule) for rule, trigger in zip(rules, triggers, strict=True) if trigger in content}
        assert {id(rule) for rule in found.wanted(content.encode())} == wanted
