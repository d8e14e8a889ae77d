"""A report that is hard to write."""

from __future__ import annotations

from auditor.finding import RUN, Finding, Location, Note, Problem, Severity
from auditor.fix.certificate import Certificate, ClaimResult
from auditor.fix.engine import Refusal
from auditor.report import Report


def hostile() -> Report:
    """What may be in a report and is hard to write: markup, newlines, control characters, NaN, no row, no file."""
    text = 'a|b `c` <script> & "q" % :: ,\r\nsecond\x00\x1b[0m \ud800 ]]>'
    finding = Finding(
        "XYZ001", "odd", text, Location("no such.py", 0), Severity.INFO, (RUN,), modules=("", "a.b"),
        notes=(Note(Location("<stdin>", 3), "there"),), facts={"rate": float("nan"), "limit": float("inf")},
    )  # fmt: skip
    plain = Finding("XYZ002", "plain", "said", Location("gone.py", 4), Severity.WARNING)
    certificate = Certificate(
        "XYZ001", "odd", "gone.py", 4, "mend | it", "", "Net", (ClaimResult("same|", "equal", True),)
    )
    return Report(
        findings=[finding, plain], problems=[Problem("<stdin>", text, "do | so")], certificates=[certificate],
        refused=[Refusal(plain, "it | broke")],
    )  # fmt: skip
