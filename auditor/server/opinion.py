"""What auditor says of one text in the editor: findings, fixes, and texts with one of them made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from auditor import pipeline
from auditor.baseline import DEFAULT_NAME
from auditor.finding import Finding, Problem
from auditor.fix.edit import Applicability
from auditor.rule import Rule
from auditor.scope import excluded
from auditor.settings import Settings, load, parse
from auditor.static import check, files


def settings_for(path: str, options: Mapping[str, Any]) -> Settings:
    """The settings of the file nearest to `path`, with the editor's `options` (keys as in `[tool.auditor]`) put over
    them. Raises SettingsError."""
    settings = load(Path(path))
    settings = replace(settings, **parse(options, Path.cwd() / "settings of the editor"))
    baseline = settings.baseline or str(settings.root / DEFAULT_NAME)
    return replace(settings, baseline=files.display(baseline) if os.path.exists(baseline) else "")


@dataclass(frozen=True)
class Opinion:
    """The findings in one version of a text, columns in UTF-8 bytes as rules give them."""

    path: str
    text: str
    settings: Settings
    findings: Sequence[Finding] = ()
    problems: Sequence[Problem] = ()
    parsed: bool = True

    @cached_property
    def rules(self) -> list[Rule]:
        return check.rules_for(self.path, self.settings, check.chosen_rules(self.settings))

    @cached_property
    def offers(self) -> list[Finding]:
        """The findings, each with the fix its rule has for it."""
        from auditor.fix.engine import offer

        return offer(self.findings, self.text, self.rules, self.path)

    def mended(self, finding: Finding) -> str:
        """The text with one offer made; the text as it is where that cannot be done."""
        from auditor.fix import rewrite

        try:
            return rewrite.apply(self.text, finding.fix.edits) if finding.fix else self.text
        except rewrite.EditError:
            return self.text

    def all_mended(self) -> str:
        """The text with everything mended that is safe to mend, as `auditor check --fix` leaves it."""
        from auditor.fix.engine import fix_text

        known = {(finding.code, finding.location) for finding in self.findings}
        outcome = fix_text(self.path, self.text, self.rules) if known else None
        return outcome.text if outcome else self.text

    @property
    def mendable(self) -> bool:
        """Whether there is anything that is safe to mend."""
        return any(offer.fix and offer.fix.applicability is Applicability.SAFE for offer in self.offers)

    def silenced(self, finding: Finding) -> str:
        """The text with a comment that silences one finding."""
        from auditor.fix.silence import add_comments

        return add_comments(self.text, [finding])[0]


def opinion(path: str, text: str, settings: Settings) -> Opinion:
    """What is found in `text`, the content of `path` as the editor has it. Nothing is said of excluded files."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if excluded(path, settings):
        return Opinion(path, text, settings)
    report = pipeline.check_text(path, text, settings)
    parsed = not any(problem.path == path and "syntax" in problem.message for problem in report.problems)
    return Opinion(path, text, settings, report.findings, report.problems, parsed)
