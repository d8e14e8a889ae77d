"""The rules and the settings, described for a reader."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from auditor import DOCUMENTATION
from auditor.rule import Rule
from auditor.settings import Settings, keys


def explain(rule: Rule) -> str:
    """Everything a user may want to know of one rule, as plain text in Markdown."""
    rule = rule.loaded()
    title, _, body = rule.explanation.partition("\n")
    parts = [
        f"# {rule.name} ({rule.code})",
        f"{rule.severity} · {rule.category} · {seen_by(rule)}" + versions(rule),
        title.strip(),
        body.strip(),
    ]
    if rule.applicability is not None:
        proof = [f"- keeps: {claim.text}" for claim in rule.keeps] + [f"- gains: {claim.text}" for claim in rule.gains]
        parts.append("\n".join([f"## Fix ({rule.applicability})", f"{rule.title}.", *proof]))
    if rule.thresholds:
        parts.append("\n".join(["## Thresholds", *[f"- {name}: {value}" for name, value in rule.thresholds.items()]]))
    return "\n\n".join(part for part in parts if part)


def markdown(rule: Rule) -> str:
    """The explanation with its examples as code blocks, for readers that render Markdown."""
    lines, code = [], False
    for line in explain(rule).split("\n"):
        indented = line.startswith("    ") or (code and not line)
        if indented != code:
            lines.append("```python" if indented else "```")
            if not indented:
                lines.append("")
        lines.append(line.removeprefix("    ") if indented else line)
        code = indented
    text = "\n".join([*lines, *(["```"] if code else [])])
    return re.sub(r"\n+```\n\n", "\n```\n\n", text)


def url(rule: Rule) -> str:
    """The rule's page in the documentation; empty for a rule that is not ours."""
    return f"{DOCUMENTATION}/rules/{rule.name}/" if rule.module.startswith("auditor.rules.") else ""


def versions(rule: Rule) -> str:
    """The torch versions a rule applies to, where it does not apply to all."""
    since, until = (f"torch ≥ {rule.since}" if rule.since else ""), (f"torch < {rule.until}" if rule.until else "")
    return f" · {', '.join(filter(None, (since, until)))}" if since or until else ""


def seen_by(rule: Rule) -> str:
    """How the rule sees its defect."""
    halves = [("read in source", rule.reads_source), ("seen in a run", rule.runs_model)]
    return " and ".join(text for text, there in halves if there)


def table(rules: Sequence[Rule], output_format: str = "text") -> str:
    """One line per rule, or a JSON list."""
    if output_format == "json":
        return json.dumps([record(rule) for rule in rules], indent=2)
    width = max(len(rule.name) for rule in rules)
    lines = [
        f"{rule.code}  {rule.name:<{width}}  {rule.severity!s:<7}  {_marks(rule)}  {rule.summary}" for rule in rules
    ]
    return "\n".join([*lines, "", "s: read in source · r: seen in a run · f: has a fix"])


def _marks(rule: Rule) -> str:
    have = (rule.reads_source, rule.runs_model, rule.fixes)
    return "".join(mark if part else "-" for mark, part in zip("srf", have, strict=True))


def record(rule: Rule) -> dict[str, Any]:
    """One rule as JSON data."""
    rule = rule.loaded()
    return {
        "code": rule.code,
        "name": rule.name,
        "family": rule.family,
        "summary": rule.summary,
        "severity": str(rule.severity),
        "category": str(rule.category),
        "static": rule.reads_source,
        "dynamic": rule.runs_model,
        "fix": None if rule.applicability is None else str(rule.applicability),
        "keeps": [claim.text for claim in rule.keeps],
        "gains": [claim.text for claim in rule.gains],
        "thresholds": rule.thresholds,
        "since": rule.since,
        "until": rule.until,
        "explanation": rule.explanation,
    }


def settings_table(settings: Settings) -> str:
    """The settings in force, as they would stand in pyproject.toml."""
    lines = [f"# from {settings.file}" if settings.file else "# defaults: no settings file found", "[tool.auditor]"]
    for key, item in keys().items():
        why = f"  # from {settings.target_torch_from}" if key == "target-torch" else ""
        lines.append(f"{key} = {_toml(getattr(settings, item.name))}{why}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value if isinstance(value, (int, float)) and not hasattr(value, "name") else str(value))
