"""Fingerprints: what may change without a finding becoming another one, and what may not."""

from __future__ import annotations

import textwrap

from hypothesis import given
from hypothesis import strategies as st

from auditor.report.fingerprint import fingerprints
from auditor.report.texts import Texts
from auditor.static.check import check_text
from tests.cli import BAD
from tests.fixtures import BY_CODE

RULES = [BY_CODE["MOD004"]]


def digests(text: str, path: str = "net.py") -> list[str]:
    findings = check_text(path, text, RULES).findings
    return [mark.digest for mark in fingerprints(findings, Texts({path: text}))]


BEFORE = digests(BAD)


def test_what_does_not_matter() -> None:
    assert len(BEFORE) == 1
    assert digests("import os\n\n" + BAD) == BEFORE
    assert digests(BAD.replace("0.5)", "0.5)  # why")) == BEFORE
    assert digests(BAD.replace("x, 0.5", "x,0.5")) == BEFORE
    assert digests(BAD.replace("return F", "return  F")) == BEFORE
    assert digests(BAD.replace("        return", "      return")) == BEFORE
    assert digests(BAD, "other.py") == BEFORE
    inside = BAD.replace("class Net", "if True:\n  class Net").replace("  class", " class")
    assert digests(inside) == BEFORE


def test_what_matters() -> None:
    for other in (BAD.replace("0.5", "0.6"), BAD.replace("Net", "Other"), BAD.replace("forward", "encode")):
        assert len(digests(other)) == 1
        assert digests(other) != BEFORE


def test_equal_lines_are_numbered() -> None:
    twice = BAD.replace(
        "        return", "        if x.numel() > 9:\n            return F.dropout(x, 0.5)\n        return"
    )
    first, second = digests(twice)
    assert [first] == BEFORE
    assert second != first


def test_the_innermost_scope_counts() -> None:
    nested = "import torch\n" + BAD.replace(
        "    def forward(self, x):\n",
        "    def forward(self, x):\n        def inner(x):\n            return x\n",
    )
    assert digests(nested) == BEFORE
    text = textwrap.dedent("""\
        import torch.nn.functional as F
        from torch import nn
        class A(nn.Module):
            class B(nn.Module):
                async def forward(self, x):
                    return F.dropout(x, 0.5)
    """)
    findings = check_text("net.py", text, RULES).findings
    assert [mark.context for mark in fingerprints(findings, Texts({"net.py": text}))] == ["A.B.forward"]


def test_files_that_are_gone_or_broken() -> None:
    findings = check_text("gone.py", BAD, RULES).findings
    (mark,) = fingerprints(findings, Texts())
    assert (mark.line, mark.context) == ("", "")
    (mark,) = fingerprints(findings, Texts({"gone.py": BAD + "def (:\n"}))
    assert (mark.line, mark.context) == ("return F.dropout(x, 0.5)", "")


@given(
    st.lists(st.sampled_from(["", "import os", "# dropout", "x = 'F.dropout(x, 0.5)'", "def f(): pass"]), max_size=9)
)
def test_lines_above_never_matter(lines: list[str]) -> None:
    assert digests("\n".join([*lines, BAD])) == BEFORE
