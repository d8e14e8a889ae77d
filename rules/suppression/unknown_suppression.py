"""A comment that is to silence a rule which does not exist.

## What it finds
`# auditor: ignore[…]` and `# auditor: ignore-file[…]` with a word that is neither the code nor the name of a rule.

## Why it matters
A misspelt name silences nothing, and the comment makes believe that it does.

## Example
    x = torch.zeros(3)  # auditor: ignore[excesive-dropout-rate]

## Use instead
    x = torch.zeros(3)

## When to ignore it
Where the rule comes from a plug-in, or from a folder of rules, that this run does not load.

## References
- https://docs.astral.sh/ruff/rules/invalid-rule-code/ (the same for ruff's own codes)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Location, Severity
from auditor.rule import Category, Rule
from auditor.static.source import Source
from auditor.static.suppress import comments

rule = Rule(
    __name__,
    code="SUP002",
    category=Category.SIMPLICITY,
    severity=Severity.WARNING,
    summary="a comment that is to silence a rule which does not exist",
    triggers=("auditor:",),
)


@rule.comments
def unknown(source: Source, silenced: Sequence[Finding], active: Sequence[Rule]) -> Iterator[Finding]:
    """Words that no rule goes by, whether it is applied in this run or not."""
    from auditor.loader import close_name, load_rules, names_of

    known = names_of([*load_rules(), *active])
    names = {name.lower() for name in known}
    for comment in comments(source.text):
        for word, start, end in comment.codes if comment.ours else ():
            if word.lower() not in names:
                line = source.lines[comment.row - 1]
                first, last = (len(line[:column].encode()) for column in (start, end))
                location = Location("", comment.row, first + 1, comment.row, last + 1)
                close = close_name(word, known)
                hint = f"; did you mean `{close}`?" if close else ""
                yield rule.finding(location, f"there is no rule `{word}`{hint}")
