"""mkdocs hooks: the pages that are made from code, when the site is built.

One page for each rule and their index, the reference of the settings, and the pages that stand at the top of the
repository.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from auditor import schema
from auditor.loader import load_rules
from auditor.report.catalogue import markdown
from auditor.rule import Rule

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"rules/index.md": index(load_rules())}
    pages |= {f"rules/{rule.name}.md": page(rule.loaded()) for rule in load_rules()}
    for name, target in (("README", "index"), ("CONTRIBUTING", "contributing"), ("CHANGELOG", "changelog")):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        text = re.sub(r"\((CONTRIBUTING|CHANGELOG)\.md", lambda match: f"({match[1].lower()}.md", text)
        pages[f"{target}.md"] = text
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(text: str, page: Any, **kwargs: Any) -> str:
    text = re.sub(r"\((?:\.\./)?(CONTRIBUTING|CHANGELOG)\.md", lambda match: f"({match[1].lower()}.md", text)
    return text.replace("<!-- reference -->", schema.page())


def index(rules: tuple[Rule, ...]) -> str:
    """The table of all rules, family by family."""
    parts = ["# Rules", f"{len(rules)} rules. `auditor rule CODE` prints what the pages say."]
    for family, members in groupby(sorted(rules, key=lambda rule: (rule.family, rule.code)), lambda rule: rule.family):
        rows = ["| Code | Rule | | Finds |", "| --- | --- | --- | --- |"]
        for rule in members:
            marks = [("source", rule.reads_source), ("run", rule.runs_model), ("fix", rule.fixes)]
            have = ", ".join(mark for mark, there in marks if there)
            rows.append(
                f"| {rule.code} | [{rule.name}]({rule.name}.md) | {have} | {rule.summary.replace('|', chr(92) + '|')} |"
            )
        parts += [f"## {family.capitalize()}", "\n".join(rows)]
    parts.append("*source*: found by reading the source · *run*: found by running the model · *fix*: it has a fix.")
    return "\n\n".join(parts) + "\n"


def page(rule: Rule) -> str:
    """One rule: its explanation, its claims and thresholds, and where its code is."""
    place = f"rules/{rule.family}/{Path(rule.path).name}"
    causes = "".join(
        f"\n\nNot reported where {code} is found in the same place: that is the cause." for code in rule.yields_to
    )
    return f"{markdown(rule)}{causes}\n\n---\n\n`{rule.code}` · `{rule.name}` · `{place}`\n"
