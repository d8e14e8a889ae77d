"""Which of the files named a run looks at, and which of its findings it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.report import Report
from auditor.settings import Nearest, Settings
from auditor.static import files

if TYPE_CHECKING:
    from auditor.changes import Changes


class Scope:
    """What the settings' baseline does not have and, where a git revision is given, what has changed since then."""

    def __init__(self, settings: Settings, changed_since: str = "", nearest: Nearest | None = None) -> None:
        self.settings = settings
        self.nearest = nearest or Nearest(settings)
        self.changes: Changes | None = None
        if changed_since:
            from auditor.changes import since

            self.changes = since(changed_since)

    def files(self, paths: Sequence[str]) -> list[str]:
        """Those of `paths` that the run is about."""
        chosen = list(paths)
        if self.settings.force_exclude:
            chosen = [path for path in chosen if not excluded(path, self.nearest.of(path))]
        if self.changes is not None:
            chosen = [path for path in chosen if self.changes.touches_file(path)]
        return chosen

    def narrow(self, report: Report) -> None:
        """Leave in `report.findings` what is to be shown."""
        if self.settings.baseline:
            from auditor import baseline

            baseline.apply(report, self.settings.baseline)
        if self.changes is not None:
            report.older = [finding for finding in report.findings if not self.changes.touches(finding)]
            report.findings = [finding for finding in report.findings if self.changes.touches(finding)]


def excluded(path: str, settings: Settings) -> bool:
    """Whether the settings exclude a file or a folder above it, below the folder of the settings file."""
    absolute, root = Path(path).absolute(), settings.root.absolute()
    shown = absolute.relative_to(root) if absolute.is_relative_to(root) else Path(absolute.name)
    patterns = settings.exclude + settings.extend_exclude
    return any(files.excluded(part.as_posix(), patterns) for part in (shown, *shown.parents) if part.name)
