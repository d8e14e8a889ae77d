"""Findings, problems and certificates, printed. Nothing here decides what is a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Problem, Severity

if TYPE_CHECKING:
    from auditor.baseline import Entry
    from auditor.rule import Rule


@dataclass(slots=True, repr=False)
class Report:
    """Everything one run has to say."""

    findings: list[Finding] = field(default_factory=list)
    silenced: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    fixed: list[Finding] = field(default_factory=list)
    files: int = 0
    audits: list[dict[str, Any]] = field(default_factory=list)
    """One record per audited target: how it was built, its inputs, how it was captured, what was not seen."""
    certificates: list[Any] = field(default_factory=list)
    """Proofs of the fixes made."""
    refused_certificates: list[Any] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    """Fixes that were not made, each with its finding and the reason."""
    texts: dict[str, str] = field(default_factory=dict)
    """Texts that were checked without being files, by the names they were given."""
    diffs: list[str] = field(default_factory=list)
    """Changes to show instead of making them."""
    changes: list[str] = field(default_factory=list)
    """What the fixes change, file by file, as unified diffs: those made, or those of `diffs`."""
    rules: Sequence[Rule] = ()
    """The rules that were applied."""
    checked: list[str] = field(default_factory=list)
    """The files that were looked at."""
    known: list[Finding] = field(default_factory=list)
    """Findings that the baseline has: they are not shown and do not fail the run."""
    vanished: list[Entry] = field(default_factory=list)
    """What the baseline has and was not found any more."""
    baseline: str = ""
    """The baseline's file, where there is one."""
    older: list[Finding] = field(default_factory=list)
    """Findings outside the changed lines, where only these were asked for."""

    def exit_code(self, fail_on: Severity = Severity.WARNING) -> int:
        """0 clean, 1 findings at or above `fail_on`, 2 the tool could not do what was asked."""
        if self.problems:
            return 2
        return int(any(finding.severity >= fail_on for finding in self.findings))

    def sort(self) -> None:
        """Put everything in an order that does not depend on how the run went."""
        self.findings.sort(key=lambda finding: finding.sort_key)
        self.silenced.sort(key=lambda finding: finding.sort_key)
        self.problems.sort()

    @property
    def sources(self) -> Sequence[str]:
        """The files that have findings or problems, sorted."""
        return sorted({item.location.path for item in self.findings} | {item.path for item in self.problems})

    def __str__(self) -> str:
        """What a terminal shows, without colours."""
        import click

        from auditor.report.formats import Style, render

        return click.unstyle("\n".join(render(self, "text", Style())))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from auditor.report.formats import in_characters
        from auditor.report.html import fragment

        return fragment(in_characters(self))
