"""A comment that silences nothing.

## What it finds
`# noqa: CODE` with a code of auditor, `# auditor: ignore[…]` and `# auditor: ignore-file[…]` that name a rule which
finds nothing there. Only rules that this run applies, and that read source alone: what a run of the model may find is
not known to a check of the source. A bare `# noqa` may be meant for other tools and is left alone.

## Why it matters
The comment says that something is wrong here and meant so. When it is no longer so, the comment misleads, and hides the
next mistake on its line.

## Example
    x = torch.zeros(3)  # noqa: API003

## Use instead
    x = torch.zeros(3)

## When to ignore it
Where other settings, another version of torch or another branch still need the comment.

## References
- https://docs.astral.sh/ruff/rules/unused-noqa/ (the same for ruff's own codes)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Location, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, replace_text
from auditor.rule import Category, Rule
from auditor.static.source import Source
from auditor.static.suppress import Suppression, comments, names_any, silences

rule = Rule(
    __name__,
    code="SUP001",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="a comment that silences nothing",
    triggers=("noqa:", "NOQA:", "auditor:"),
)


@rule.comments
def unused(source: Source, silenced: Sequence[Finding], active: Sequence[Rule]) -> Iterator[Finding]:
    """One finding per comment, naming what it silences in vain."""
    checked = {key: other for other in active if _is_known(other) for key in (other.code.lower(), other.name)}
    if not names_any(source.text, checked.keys()):
        return
    for comment in comments(source.text):
        vain = [
            code
            for code, _, _ in comment.codes
            if code.lower() in checked and not any(silences(comment, code, finding) for finding in silenced)
        ]
        if vain:
            listed = ", ".join(f"`{code}`" for code in dict.fromkeys(vain))
            where = "in this file" if comment.whole_file else "on this line"
            yield rule.finding(_place(source, comment), f"{listed} finds nothing {where}", codes=vain)


def _is_known(other: Rule) -> bool:
    """Whether a check of the source knows all that this rule finds."""
    return not other.runs_model and other.code != rule.code


def _place(source: Source, comment: Suppression) -> Location:
    """The range of a comment, in bytes as all findings have it."""
    line = source.lines[comment.row - 1]
    start, end = (len(line[:column].encode()) for column in (comment.start, comment.end))
    return Location("", comment.row, start + 1, comment.row, end + 1)


@rule.fix("remove it", keeps=[parameters(), outputs()])
def removed(source: Source, finding: Finding) -> list[Edit]:
    """The names that silence nothing; the comment, where no other name is left in it. Other tools' codes stay."""
    row, vain = finding.location.row, finding.facts["codes"]
    found = [item for item in comments(source.text) if _place(source, item) == _same(finding.location)]
    line = source.lines[row - 1]
    edits = []
    for comment in found:
        kept = [code for code, _, _ in comment.codes if code not in vain]
        if kept:
            edits.append(replace_text(row, comment.codes[0][1], comment.codes[-1][2], ", ".join(kept)))
        else:
            before = line[: comment.start].rstrip()
            edits.append(replace_text(row, len(before) if before else 0, comment.end, ""))
    return edits


def _same(location: Location) -> Location:
    return Location("", location.row, location.column, location.end_row, location.end_column)
