"""The report a person reads in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from auditor.finding import Finding, Problem, Severity
from auditor.report import Report
from auditor.report.texts import Texts

if TYPE_CHECKING:
    from auditor.fix.certificate import Certificate, ClaimResult
    from auditor.fix.engine import Refusal

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_CONTEXT = 2


def render(
    report: Report,
    *,
    verbose: bool = False,
    statistics: bool = False,
    quiet: bool = False,
    width: int | None = None,
) -> Iterator[str]:
    """The lines to print: all that is known (`verbose`), only what is wrong (`quiet`), or something between. Colours
    are click's, who drops them where the output is no terminal; source lines are cut to `width` characters."""
    if statistics:
        yield from _statistics(report.findings)
    else:
        texts = Texts(report.texts)
        for finding in report.findings:
            yield from _finding(finding, texts, width)
            yield ""
    for certificate in report.certificates:
        yield from _certificate(certificate)
        yield ""
    for refusal in report.refused:
        yield from _refusal(refusal)
        yield ""
    for problem in report.problems:
        yield from problem_lines(problem)
    if verbose:
        for record in report.audits:
            yield from _record(record)
        yield from _not_shown(report)
    if not quiet:
        yield from _unseen(report.audits)
        yield from _vanished(report, verbose)
        yield summary(report)


def _finding(finding: Finding, texts: Texts, width: int | None) -> Iterator[str]:
    location, colour = finding.location, COLOURS[finding.severity]
    mark = click.style(" [*]", fg="cyan") if finding.fix else ""
    where = click.style(location.path, bold=True) + f":{location.row}:{location.column}"
    code = click.style(finding.code, fg=colour, bold=True)
    yield f"{where}: {code}{mark} {finding.message} ({finding.severity}, {' and '.join(finding.seen)})"
    yield from frame(finding, texts[location.path], width)
    for note in finding.notes:
        yield f"   = {note.location.path}:{note.location.row}: {note.message}"
    if finding.modules:
        yield f"   = {'layer' if len(finding.modules) == 1 else 'layers'}: {_shorten(finding.modules)}"
    if finding.fix:
        yield f"   = fix ({finding.fix.applicability}): {finding.fix.title}"


def _shorten(names: Iterable[str], limit: int = 6) -> str:
    shown = [name or "(the model itself)" for name in names]
    rest = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {rest} more" if rest > 0 else "")


def frame(finding: Finding, lines: Sequence[str], width: int | None = None, *, plain: bool = False) -> Iterator[str]:
    """The source lines around a finding, the range itself underlined; `lines` are those of its file. Lines longer than
    `width` are cut, around the range where it would not be seen otherwise."""
    location = finding.location
    if not 0 < location.row <= len(lines):
        return
    last = min(len(lines), max(location.row, min(location.end_row, location.row + 3)))
    first, end = max(1, location.row - _CONTEXT), min(len(lines), last + _CONTEXT)
    margin = len(str(end))
    colour: Callable[[str], str] = str if plain else lambda text: click.style(text, fg=COLOURS[finding.severity])
    marked = lines[location.row - 1].rstrip()
    start = location.column - 1 if location.end_row else len(marked) - len(marked.lstrip())
    stop = location.end_column - 1 if location.end_row == location.row else len(marked)
    room = None if width is None else max(20, width - margin - 3)
    left = 0 if room is None or stop <= room else max(0, min(start - 8, stop - room + 8))
    yield " " * margin + " |"
    for row in range(first, end + 1):
        yield f"{row:>{margin}} | {_cut(lines[row - 1].rstrip(), left, room)}".rstrip()
        if row == location.row:
            pad = "".join("\t" if character == "\t" else " " for character in marked[left:start])
            length = max(1, stop - start if room is None else min(stop - start, room - len(pad)))
            yield f"{' ' * margin} | {pad}{colour('^' * length)} {colour(finding.code)}"
    yield " " * margin + " |"


def _cut(line: str, left: int, room: int | None) -> str:
    """`line` from character `left`, in `room` characters, with a mark where something is left out."""
    if room is None:
        return line
    shown = line[left : left + room]
    if left and shown:
        shown = "…" + shown[1:]
    return shown[:-1] + "…" if len(line) > left + room else shown


def _certificate(certificate: Certificate) -> Iterator[str]:
    mark = click.style("proven", fg="green", bold=True)
    yield (
        f"{certificate.path}:{certificate.row}: {certificate.code} fix {mark}: {certificate.title} "
        f"({certificate.target}, {certificate.device}, {certificate.dtype}, seed {certificate.seed})"
    )
    for result in certificate.claims:
        yield f"   {'=' if result.must == 'equal' else '+'} {result.claim}{_figures(result)}"


def _figures(result: ClaimResult) -> str:
    if result.must == "equal":
        known = isinstance(result.after, float) and result.tolerance is not None
        return f": relative difference {result.after:.2g}, allowed {result.tolerance:.2g}" if known else ""
    before, after = _figure(result.before), _figure(result.after)
    return f": {after}, as before" if before == after else f": {before} before, {after} after"


def _figure(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _refusal(refusal: Refusal) -> Iterator[str]:
    finding = refusal.finding
    title = finding.fix.title if finding.fix else "no fix"
    mark = click.style("not made", fg="yellow", bold=True)
    yield f"{finding.location.path}:{finding.location.row}: {finding.code} fix {mark}: {title}"
    yield f"   = {refusal.reason}"


def _record(record: Mapping[str, Any]) -> Iterator[str]:
    """How one model was built, fed and captured."""
    yield f"{click.style(record['path'], bold=True)}: {record['name']}"
    if "arguments" in record:
        yield f"   built as {record['name']}({record['arguments']}) ({record['arguments_from']})"
    if "input" in record:
        yield f"   fed with --input '{record['input']}' ({record['input_from']})"
    for mode, rung in record.get("capture", {}).items():
        yield f"   {mode} mode: captured by {rung['rung']}" + (f"; {rung['reason']}" if rung["reason"] else "")
    if "device" in record:
        yield f"   on {record['device']} in {record['dtype']}, seed {record['seed']}: {record['parameters']} parameters"


def _unseen(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What an audit could not look at; never silent."""
    for record in records:
        if record.get("large"):
            yield from _too_large(record)
            continue
        for mode, rung in record.get("capture", {}).items():
            if rung["rung"] == "hooks":
                yield f"{record['path']}: {record['name']}: only its layers were seen in {mode} mode: {rung['reason']}"
        if record.get("opaque"):
            yield f"{record['path']}: {record['name']}: could not look into {', '.join(record['opaque'])}"
        if record.get("probe") and any(rung["rung"] != "none" for rung in record["capture"].values()):
            yield f"{record['path']}: {record['name']}: the initialisation was not probed: {record['probe']}"


def _too_large(record: Mapping[str, Any]) -> Iterator[str]:
    """Of a model that was not run: what took the place of a run, and which rules had to do without."""
    size = f"{record['parameters'] / 1e9:.1f} billion parameters are too many to be run"
    yield f"{record['path']}: {record['name']}: {size}; weights were judged by their initialisers, one at a time"
    if any(rung["rung"] == "none" for rung in record["capture"].values()):
        reason = next(rung["reason"] for rung in record["capture"].values() if rung["rung"] == "none")
        yield f"   its graph was not seen: {reason}"
    where = f"only on its small twin ({record['twin']})" if record["twin"] else f"not at all: {record['no_twin']}"
    yield f"   run {where}: {', '.join(record['not_run']) or 'no rule'}"


def _not_shown(report: Report) -> Iterator[str]:
    """Findings that a comment, the baseline or the revision asked for keeps from being shown."""
    reasons = (
        (report.silenced, "silenced by a comment"),
        (report.known, f"known from {report.baseline}"),
        (report.older, "older than the changes"),
    )
    for findings, reason in reasons:
        for finding in findings:
            location = finding.location
            yield f"{location.path}:{location.row}:{location.column}: {finding.code} {reason}"


def _vanished(report: Report, verbose: bool) -> Iterator[str]:
    if not report.vanished:
        return
    if verbose:
        for entry in report.vanished:
            yield f"{entry.path}: {entry.code} of {report.baseline} is gone: {entry.line}"
    count = _plural(len(report.vanished), "finding")
    verb, them = ("is", "it") if len(report.vanished) == 1 else ("are", "them")
    yield f"{count} of {report.baseline} {verb} gone; `auditor baseline --prune` forgets {them}."


def problem_lines(problem: Problem) -> Iterator[str]:
    """What could not be done, and what would help."""
    where = f"{problem.path}:{problem.row}" if problem.row else problem.path
    yield f"{click.style(where, bold=True)}: {click.style('could not be checked', fg='magenta')}: {problem.message}"
    if problem.remedy:
        yield f"   = {problem.remedy}"


def _statistics(findings: Iterable[Finding]) -> Iterator[str]:
    counted = Counter((finding.code, finding.name, bool(finding.fix)) for finding in findings)
    for (code, name, fixable), count in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        yield f"{count:>5}  {code}  {'[*]' if fixable else '[ ]'}  {name}"


def summary(report: Report) -> str:
    """One line: what was found, what was fixed, what could be."""
    found = Counter(finding.severity for finding in report.findings)
    parts = [_plural(found[level], str(level)) for level in sorted(Severity, reverse=True) if found[level]]
    clean = "Nothing was found" if report.problems else "All checks passed"
    text = "Found " + ", ".join(parts) if parts else clean
    text += f" in {_plural(report.files, 'file')}" if report.files else ""
    if report.fixed:
        text += f"; {_plural(len(report.fixed), 'fix', 'fixes')} written"
    text += _fixable(report.findings)
    if report.silenced:
        text += f"; {len(report.silenced)} silenced by comments"
    if report.known:
        text += f"; {len(report.known)} known from the baseline"
    if report.older:
        text += f"; {_plural(len(report.older), 'older finding')} in the changed files not shown"
    if report.problems:
        text += f"; {_plural(len(report.problems), 'problem')} kept something from being checked"
    return text + "."


def _fixable(findings: Iterable[Finding]) -> str:
    counted = Counter(str(finding.fix.applicability) for finding in findings if finding.fix)
    options = {"safe": "`--fix`", "unsafe": "`--fix --unsafe-fixes`"}
    parts = [f"{counted[kind]} fixable with {option}" for kind, option in options.items() if counted[kind]]
    return "".join(f"; {part}" for part in parts)


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
