"""The settings described for readers: the JSON schema that editors use, and the page of the documentation.

`auditor/schema.json` is the schema as it is shipped: `make schema` writes it, tests/test_schema.py keeps it in step.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from auditor import settings as module
from auditor.finding import Severity
from auditor.settings import TARGET_KEYS, Settings, keys

FILE = Path(__file__).with_name("schema.json")
_STRINGS = {"type": "array", "items": {"type": "string"}}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def descriptions() -> dict[str, str]:
    """The documentation of each key: the text that stands below its field."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    texts: dict[str, str] = {}
    for before, node in pairwise(body):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(node, ast.Expr):
            texts[before.target.id.replace("_", "-")] = " ".join(ast.literal_eval(node.value).split())
    return {key: texts[key] for key in keys()}


def schema() -> dict[str, Any]:
    """The JSON schema (draft 7) of an auditor.toml, and of the table `[tool.auditor]`."""
    texts = descriptions()
    properties = {key: {"description": texts[key], **_property(item)} for key, item in keys().items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Settings of auditor",
        "type": "object",
        "additionalProperties": False,
        "properties": dict(sorted(properties.items())),
    }


def _property(item: Any) -> dict[str, Any]:
    default = getattr(Settings(), item.name)
    if item.name == "fail_on":
        return {"enum": [str(severity) for severity in reversed(Severity)], "default": str(default)}
    if item.name == "per_file_ignores":
        return {"type": "object", "additionalProperties": _STRINGS}
    if item.name == "targets":
        kinds = {key: [_TYPES[kind] for kind in allowed] for key, allowed in TARGET_KEYS.items()}
        table = {key: {"type": allowed if len(allowed) > 1 else allowed[0]} for key, allowed in kinds.items()}
        return {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": False, "properties": table},
        }
    if isinstance(default, tuple):
        return {**_STRINGS, "default": list(default)}
    return {"type": _TYPES[type(default)], **_limits(item.metadata), "default": default}


def _limits(metadata: Mapping[str, Any]) -> dict[str, Any]:
    words = {"choices": "enum", "above": "exclusiveMinimum", "minimum": "minimum"}
    return {words[name]: list(limit) if name == "choices" else limit for name, limit in metadata.items()}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def page() -> str:
    """The reference of all settings, in Markdown."""
    texts = descriptions()
    parts = []
    for key, entry in schema()["properties"].items():
        kind = "one of " + ", ".join(f'`"{value}"`' for value in entry["enum"]) if "enum" in entry else entry["type"]
        default = f" · default `{json.dumps(entry['default'])}`" if entry.get("default") not in (None, "", []) else ""
        parts.append(f"## `{key}`\n\n{kind}{default}\n\n{texts[key]}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
