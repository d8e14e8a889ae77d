"""Findings that a project has accepted for now, kept in a file so that only new ones are shown.

A finding is recognised by its file and its fingerprint (see report/fingerprint.py), so that moved lines stay known; one
whose file is gone is recognised by its fingerprint alone, so that a renamed file stays known.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.finding import RUN, Finding
from auditor.report.fingerprint import fingerprints
from auditor.report.texts import Texts

if TYPE_CHECKING:
    from auditor.report import Report

VERSION = 1
DEFAULT_NAME = ".auditor-baseline.json"


class BaselineError(ValueError):
    """The baseline cannot be read or written."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One accepted finding. `path` is relative to the baseline's folder; `context`, `line` are for the reader."""

    path: str
    code: str
    context: str
    line: str
    fingerprint: str
    only_in_run: bool = False
    """Whether reading the source does not show it, so that only an audit can say that it is gone."""


def read(file: str) -> list[Entry]:
    """The entries of a baseline. Raises BaselineError for a file that is none."""
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaselineError(f"{file}: no such baseline; `auditor baseline` records one") from None
    except (OSError, ValueError) as error:
        raise BaselineError(f"{file}: the baseline cannot be read: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise BaselineError(f"{file}: no baseline of version {VERSION}; `auditor baseline` records a new one")
    try:
        return [Entry(**item) for item in document["findings"]]
    except (KeyError, TypeError) as error:
        raise BaselineError(
            f"{file}: the baseline is damaged ({error}); `auditor baseline` records a new one"
        ) from error


def write(file: str, entries: Sequence[Entry]) -> None:
    """Replace the baseline, sorted, one entry per line, so that its changes can be reviewed and merged."""
    lines = ",\n".join("  " + json.dumps(asdict(entry), ensure_ascii=False) for entry in sorted(entries))
    text = f'{{"version": {VERSION}, "findings": [\n{lines}\n]}}\n'
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass", newline="\n") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise BaselineError(f"{file}: the baseline cannot be written: {error.strerror}") from error


def record(report: Report, file: str) -> list[Entry]:
    """Accept all findings of `report`: the entries now in the file.

    Entries of files that were not looked at stay, and so do those that only an audit could confirm where none was
    made.
    """
    base = _Base(file)
    old = read(file) if os.path.exists(file) else []
    seen = _Seen(report, base)
    kept = [entry for entry in old if base.exists(entry) and not seen.answers(entry)]
    new = [entry for _, entry in base.entries(report.findings, report)]
    entries = list(dict.fromkeys([*kept, *new]))
    write(file, entries)
    return entries


def prune(report: Report, file: str) -> list[Entry]:
    """Forget what `apply` put into `report.vanished`: the entries now in the file."""
    gone = set(report.vanished)
    entries = [entry for entry in read(file) if entry not in gone]
    write(file, entries)
    return entries


def apply(report: Report, file: str) -> None:
    """Set apart the findings of `report` that the baseline has, and note what it has and was not found."""
    base = _Base(file)
    left = {(entry.path, entry.fingerprint): entry for entry in read(file)}
    unknown: list[tuple[Finding, Entry]] = []
    for finding, entry in base.entries(report.findings, report):
        if left.pop((entry.path, entry.fingerprint), None) is None:
            unknown.append((finding, entry))
        else:
            report.known.append(finding)
    of_lost_files = {key[1]: key for key, entry in left.items() if not base.exists(entry)}
    new = []
    for finding, entry in unknown:
        moved = of_lost_files.pop(entry.fingerprint, None)
        if moved is None:
            new.append(finding)
        else:
            del left[moved]
            report.known.append(finding)
    seen = _Seen(report, base)
    report.findings = new
    report.known.sort(key=lambda finding: finding.sort_key)
    report.vanished = sorted(entry for entry in left.values() if seen.answers(entry) or not base.exists(entry))
    report.baseline = file


class _Base:
    """The baseline's folder, which its paths are relative to."""

    def __init__(self, file: str) -> None:
        self.folder = os.path.dirname(os.path.abspath(file))

    def path(self, path: str) -> str:
        """A path of a report as the baseline has it."""
        return path if path.startswith("<") else Path(os.path.relpath(path, self.folder)).as_posix()

    def exists(self, entry: Entry) -> bool:
        return entry.path.startswith("<") or os.path.exists(os.path.join(self.folder, entry.path))

    def entries(self, findings: Sequence[Finding], report: Report) -> list[tuple[Finding, Entry]]:
        prints = fingerprints(findings, Texts(report.texts))
        return [
            (
                finding,
                Entry(
                    self.path(finding.location.path),
                    finding.code,
                    mark.context,
                    mark.line,
                    mark.digest,
                    only_in_run=finding.seen == (RUN,),
                ),
            )
            for finding, mark in zip(findings, prints, strict=True)
        ]


class _Seen:
    """What a run can speak about: the files it looked at and could read, the rules it applied."""

    def __init__(self, report: Report, base: _Base) -> None:
        unread = {problem.path for problem in report.problems}
        self.paths = {base.path(path) for path in report.checked if path not in unread}
        self.codes = {rule.code for rule in report.rules}
        self.ran = bool(report.audits)

    def answers(self, entry: Entry) -> bool:
        """Whether the run would have found the entry again if it were still there."""
        return entry.path in self.paths and entry.code in self.codes and (self.ran or not entry.only_in_run)
