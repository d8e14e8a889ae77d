"""The report as one HTML file that needs nothing else: no network, no other files."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from auditor import __version__
from auditor.finding import Finding, Severity
from auditor.report import Report
from auditor.report.html import numbers
from auditor.report.html.code import Code, Row, diff, edited, parsed
from auditor.report.html.models import COLUMNS, Model, model
from auditor.report.html.prose import inline, prose
from auditor.report.text import summary
from auditor.report.texts import Texts

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Card:
    """One finding with everything the page shows of it."""

    anchor: str
    finding: Finding
    frame: list[Row]
    notes: list[tuple[str, int, str, list[Row]]]
    layers: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    change: list[Row]
    rule: Any


def render(report: Report) -> str:
    """The whole page; columns of the findings counted in characters."""
    return _environment().get_template("page.html").render(**_content(report))


def fragment(report: Report) -> str:
    """The report as a piece of HTML that stands inside another page, such as a notebook's, among others like it."""
    told = "\0".join([summary(report), *(finding.message for finding in report.findings)])
    prefix = f"auditor-{hashlib.sha256(told.encode('utf-8', 'replace')).hexdigest()[:8]}-"
    content = _content(report, prefix)
    content["cards"] = [replace(card, rule=None) for card in content["cards"]]  # the rules are not explained here
    return _environment().get_template("fragment.html").render(**content)


def _content(report: Report, prefix: str = "") -> dict[str, Any]:
    """What the templates are filled with. `prefix`: of every anchor."""
    texts = Texts(report.texts)
    codes: dict[str, Code] = {}
    rules = {rule.code: rule for rule in report.rules}
    cards = [
        _card(f"{prefix}finding-{number}", finding, texts, codes, rules)
        for number, finding in enumerate(report.findings, 1)
    ]
    linked = [(card.anchor, card.finding) for card in cards]
    models = [model(record, f"{prefix}model-{number}", linked) for number, record in enumerate(report.audits, 1)]
    _link_layers(cards, models)
    found = Counter(finding.severity for finding in report.findings)
    return {
        "version": __version__,
        "report": report,
        "summary": summary(report),
        "title": _title(report),
        "subject": _subject(report),
        "counts": [(str(level), found[level]) for level in sorted(Severity, reverse=True)],
        "cards": cards,
        "models": models,
        "columns": COLUMNS,
        "changes": [item for text in report.changes for item in parsed(text)],
        "written": not report.diffs,
        "explanations": [
            (rules[code], prose(rules[code].explanation))
            for code in sorted({f.code for f in report.findings} & {*rules})
        ],
    }


def _card(anchor: str, finding: Finding, texts: Texts, codes: dict[str, Code], rules: dict[str, Any]) -> Card:
    def code_of(path: str) -> Code:
        if path not in codes:
            codes[path] = Code(texts[path])
        return codes[path]

    path = finding.location.path
    change: list[Row] = []
    if finding.fix and finding.fix.text_edits and texts[path]:
        change = diff(texts[path], edited(texts[path], finding.fix.text_edits))
    return Card(
        anchor=anchor,
        finding=finding,
        frame=code_of(path).frame(finding.location),
        notes=[
            (note.location.path, note.location.row, note.message, code_of(note.location.path).frame(note.location))
            for note in finding.notes
        ],
        layers=[(name or "(the model itself)", "") for name in finding.modules],
        facts=[(name.replace("_", " "), _fact(value)) for name, value in finding.facts.items()],
        change=change,
        rule=rules.get(finding.code),
    )


def _fact(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(item) for item in value)
    return numbers.figure(value)


def _link_layers(cards: Sequence[Card], models: Sequence[Model]) -> None:
    """Give each layer that a finding names the place of its line in the tree of its model."""
    for card in cards:
        trees = [model for model in models if model.name in card.finding.models]
        known = {row.path: row.anchor for tree in reversed(trees) for row in tree.rows}
        card.layers[:] = [(name or "(the model itself)", known.get(name, "")) for name in card.finding.modules]


def _title(report: Report) -> str:
    found = Counter(finding.severity for finding in report.findings)
    parts = [_plural(found[level], str(level)) for level in (Severity.ERROR, Severity.WARNING) if found[level]]
    if found[Severity.INFO]:
        parts.append(_plural(found[Severity.INFO], "piece of advice", "pieces of advice"))
    if not parts:
        return "Nothing was found" if report.problems else "All checks passed"
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _subject(report: Report) -> str:
    if report.audits:
        shown = [f"{record['name']} in {record['path']}" for record in report.audits]
        return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more models" if len(shown) > 3 else "")
    if len(report.checked) == 1:
        return report.checked[0]
    return _plural(report.files, "file")


def _plural(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _breakable(path: str) -> Markup:
    """The path of a layer, which a line may end in at its dots."""
    return Markup(".<wbr>").join(path.split("."))


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "figure": numbers.figure,
        "share": numbers.share,
        "count": numbers.count,
        "size": numbers.size,
        "seconds": numbers.seconds,
        "inline": inline,
        "breakable": _breakable,
        "plural": _plural,
    }
    return environment
