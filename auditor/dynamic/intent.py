"""What the user's source says at a line that a run points to."""

from __future__ import annotations

import ast
import functools
import linecache

from auditor.finding import Location
from auditor.static.facts.gating import is_meant
from auditor.static.source import Source


@functools.lru_cache(maxsize=8)
def _parsed(path: str, text: str) -> Source | None:
    try:
        return Source(path, text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def source_at(location: Location) -> Source | None:
    """The file of `location` as it was run (its text may stand in for the file's content); None if it has no source."""
    text = "".join(linecache.getlines(location.path))
    return _parsed(location.path, text) if text else None


def statement_at(source: Source, location: Location) -> ast.stmt | None:
    """The innermost statement on the line of `location`."""
    best: ast.stmt | None = None
    for node in ast.walk(source.tree.root):
        spans = isinstance(node, ast.stmt) and node.lineno <= location.row <= (node.end_lineno or node.lineno)
        if isinstance(node, ast.stmt) and spans and (best is None or node.lineno >= best.lineno):
            best = node
    return best


def is_meant_at(location: Location) -> bool:
    """Whether a comment, docstring or name at this line says that randomness is to stay on in eval mode."""
    source = source_at(location)
    statement = statement_at(source, location) if source is not None else None
    return source is not None and statement is not None and is_meant(source, statement)


def names_around(location: Location) -> list[str]:
    """The names of the functions and classes around this line, innermost first."""
    source = source_at(location)
    statement = statement_at(source, location) if source is not None else None
    if source is None or statement is None:
        return []
    return [
        above.name
        for above in source.tree.ancestors(statement)
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]


def builds_layer_at(location: Location) -> bool:
    """Whether the statement on this line constructs a layer."""
    source = source_at(location)
    statement = statement_at(source, location) if source is not None else None
    if source is None or statement is None:
        return False
    return any(source.layer_kind(node) for node in ast.walk(statement))
