"""Imports of modules that torch no longer has.

## What it finds
Imports of `torch._six`, `torch.legacy`, `torch.utils.ffi`, `torch.utils.trainer`, `torch.utils.serialization`,
`torch.distributed.deprecated` and the like, unless an `except ImportError` or a question about the version stands
around them.

## Why it matters
The import raises: the file cannot be used with a torch of the last years.

## Example
    from torch._six import string_classes

    def is_text(value):
        return isinstance(value, string_classes)

## Use instead
    def is_text(value):
        return isinstance(value, (str, bytes))

## When to ignore it
Code that only ever runs with an old torch: say so by `target-torch` in the settings.

## References
- https://github.com/pytorch/pytorch/pull/94709 (torch._six is gone since 2.0)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, remove, replace
from auditor.rule import Category, Rule
from auditor.static.facts.api import imports_from
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API002",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="imports of modules that torch no longer has",
    triggers=(
        "_six",
        "torch.legacy",
        "ffi",
        "utils.trainer",
        "utils.serialization",
        "distributed.deprecated",
        "backends.thnn",
    ),
    since="2.0",
)

REMOVED = (
    "torch._six", "torch.legacy", "torch.utils.ffi", "torch.utils.trainer", "torch.utils.serialization",
    "torch.distributed.deprecated", "torch.nn.backends.thnn", "torch._thnn",
)  # fmt: skip

# What stands for the names of torch._six today.
VALUES = {"string_classes": "(str, bytes)", "int_classes": "int"}
IMPORTS = {
    "container_abcs": "import collections.abc as {}",
    "queue": "import queue as {}",
    "inf": "from math import inf as {}",
    "nan": "from math import nan as {}",
    "builtins": "import builtins as {}",
}


@rule.static
def imports(source: Source) -> Iterator[Finding]:
    for statement, module in imports_from(source, REMOVED):
        yield rule.finding(statement, f"torch has no module `{module}` any more: this import raises")


@rule.fix("take the names from where they are today", keeps=[parameters(), outputs()])
def from_python(source: Source, finding: Finding) -> list[Edit] | None:
    """`torch._six` only forwarded names of Python; the other modules have no successor."""
    statement = source.node_at(finding.location, ast.ImportFrom)
    if not isinstance(statement, ast.ImportFrom) or statement.module != "torch._six":
        return None
    lines = []
    edits: list[Edit] = []
    for item in statement.names:
        bound = item.asname or item.name
        if item.name in IMPORTS:
            line = IMPORTS[item.name].format(bound)
            lines.append(line.removesuffix(f" as {bound}") if line.endswith(f" {bound} as {bound}") else line)
        elif item.name in VALUES and not source.names.stores(bound):
            named = [name for name in source.tree.all(ast.Name) if name.id == bound]
            edits += [replace(name, VALUES[item.name]) for name in named]
        else:
            return None
    return [replace(statement, "\n".join(lines)) if lines else remove(statement), *edits]
