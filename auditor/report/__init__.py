"""Findings, problems and certificates, printed. Nothing here decides what is a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from auditor.finding import Finding, Problem, Severity


@dataclass(slots=True)
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
