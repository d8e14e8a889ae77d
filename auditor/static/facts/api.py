"""Uses of names that torch has moved, renamed or removed, and how a file is rewritten to the new ones."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from auditor.fix.edit import Edit, remove_argument, replace, set_argument
from auditor.static.facts.spelling import spelled
from auditor.static.source import Hidden, Source

# Edits that make a call's arguments fit the new callee; None where that cannot be done.
Adapt = Callable[[Source, ast.Call], "Sequence[Edit] | None"]
Use = ast.Name | ast.Attribute


def uses(source: Source, names: Iterable[str]) -> list[tuple[Use, str]]:
    """Every expression that surely stands for one of `names` (called, passed on or subclassed), with its name, in
    document order. Imports are not uses, and neither is what a `try` would replace if the import failed."""
    index = source.once(_references)
    found: list[tuple[Use, str]] = []
    for name in names:
        for node in index.get(name.rpartition(".")[2], ()):
            if source.resolve(node) == {name}:
                found.append((node, name))
    return sorted(found, key=lambda item: (item[0].lineno, item[0].col_offset))


def _references(source: Source) -> dict[str, list[Use]]:
    """Attributes and imported names that are read, by the last part of what they stand for."""
    index: dict[str, list[Use]] = {}
    for attribute in source.tree.all(ast.Attribute):
        if isinstance(attribute.ctx, ast.Load):
            index.setdefault(attribute.attr, []).append(attribute)
    aliases = source.names.aliases
    for name in source.tree.all(ast.Name):
        if name.id in aliases and isinstance(name.ctx, ast.Load):
            for meaning in aliases[name.id]:
                index.setdefault(meaning.rpartition(".")[2], []).append(name)
    return index


def imports_from(source: Source, modules: Iterable[str]) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Import statements that need one of `modules` (or a part of one) to exist, with the module's name; not those
    that an `except` or an `if` guards against its absence."""
    wanted = tuple(modules)
    for statement in source.tree.all(ast.ImportFrom):
        names = [statement.module or "", *[f"{statement.module}.{item.name}" for item in statement.names]]
        if not statement.level and (module := _under(names, wanted)) and not guarded(source, statement):
            yield statement, module
    for plain in source.tree.all(ast.Import):
        if (module := _under([item.name for item in plain.names], wanted)) and not guarded(source, plain):
            yield plain, module


def _under(names: Iterable[str], modules: Sequence[str]) -> str:
    found = (module for name in names for module in modules if name == module or name.startswith(module + "."))
    return next(found, "")


def guarded(source: Source, node: ast.AST) -> bool:
    """Whether `node` only runs where torch was asked for a version or a feature, or where its absence is caught."""
    below: ast.AST = node
    for above in source.tree.ancestors(node):
        if isinstance(above, ast.Try) and _catches_absence(above) and below in (*above.body, *above.handlers):
            return True
        if isinstance(above, (ast.If, ast.IfExp)) and below is not above.test and _asks(above.test):
            return True
        if any(_asks(earlier.test) for earlier in _ways_out(above, below)):
            return True
        below = above
    return False


def _leaves(body: Sequence[ast.stmt]) -> bool:
    """Whether a body ends in `return` or `raise` on every way."""
    last = body[-1] if body else None
    if isinstance(last, ast.If):
        return _leaves(last.body) and _leaves(last.orelse)
    if isinstance(last, ast.Try):
        return _leaves(last.orelse or last.body) and all(_leaves(handler.body) for handler in last.handlers)
    return isinstance(last, (ast.Return, ast.Raise))


def _ways_out(above: ast.AST, below: ast.AST) -> list[ast.If]:
    """The `if … : return` statements that stand before `below` in a body of `above`."""
    body = next((body for _, body in ast.iter_fields(above) if isinstance(body, list) and below in body), [])
    return [
        statement
        for statement in body[: body.index(below) if body else 0]
        if isinstance(statement, ast.If) and _leaves(statement.body)
    ]


_ABSENCE = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "Exception")
_QUESTIONS = (
    "version", "hasattr", "torch_greater", "torch_at_least", "torch_gte", "torch_1", "torch_2", "pt2", "with_pt",
)  # fmt: skip


def _catches_absence(statement: ast.Try) -> bool:
    caught = [ast.unparse(handler.type) if handler.type else "Exception" for handler in statement.handlers]
    return any(word in text for text in caught for word in _ABSENCE)


def _asks(test: ast.expr) -> bool:
    """Whether a condition is about what the installed torch has."""
    text = ast.unparse(test).lower()
    return any(word in text for word in _QUESTIONS)


# Rewriting -----------------------------------------------------------------------------------------------------------


def text_of(source: Source, node: ast.AST) -> str:
    """The source text of an expression, fit to be an argument."""
    return ast.get_source_segment(source.text, node) or ast.unparse(node)


def callable_args(source: Source, call: ast.Call, *names: str) -> dict[str, ast.expr] | None:
    """The arguments of `call` by the names of its parameters, in order; None where `*` or `**` hides some, or where
    one has no place in `names`."""
    found: dict[str, ast.expr] = {}
    if len(call.args) > len(names):
        return None
    for name, argument in zip(names, call.args, strict=False):
        if isinstance(argument, ast.Starred):
            return None
        found[name] = argument
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg not in names or keyword.arg in found:
            return None
        found[keyword.arg] = keyword.value
    return found


def literal(source: Source, argument: ast.expr | Hidden | None, default: object) -> object:
    """The value of an argument: `default` where it is left out, `...` where it is not known."""
    return default if argument is None else source.constant(argument, ...)


def new_name(source: Source, use: Use, name: str) -> tuple[str, list[Edit]]:
    """Code for `name` in place of `use`, spelled as the file spells torch, and the imports it needs."""
    module, _, tail = name.rpartition(".")
    if isinstance(use, ast.Attribute) and source.resolve(use.value) == {module}:
        return f"{text_of(source, use.value)}.{tail}", []
    return spelled(source, name, source.function_of(use) or use)


def rename(source: Source, use: Use, table: Mapping[str, str], adapt: Adapt | None = None) -> list[Edit] | None:
    """Edits that put the new name of `table` in place of the old one at `use`.

    A name that a `from` import binds is imported from its new home instead, everywhere in the file at once, if all
    names of that import have moved to one place.
    """
    statement = _import_of(source, use)
    moved = None if statement is None else _moved(source, statement, table, adapt)
    return _renamed(source, use, table, adapt) if moved is None else moved


def _renamed(source: Source, use: Use, table: Mapping[str, str], adapt: Adapt | None) -> list[Edit] | None:
    arguments = _adapted(source, use, adapt)
    if arguments is None:
        return None
    code, imports = new_name(source, use, table[min(source.resolve(use))])
    return [replace(use, code), *arguments, *imports]


def _adapted(source: Source, use: Use, adapt: Adapt | None) -> Sequence[Edit] | None:
    if adapt is None:
        return ()
    call = source.tree.parent(use)
    if isinstance(call, ast.Call) and call.func is use:
        return adapt(source, call)
    return () if _names_a_type(source, use) else None


def _names_a_type(source: Source, use: Use) -> bool:
    """Whether the use stands in an annotation or in a question about a type."""
    below: ast.AST = use
    for above in source.tree.ancestors(use):
        if isinstance(above, ast.arg) or (isinstance(above, ast.AnnAssign) and below is above.annotation):
            return True
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)) and below is above.returns:
            return True
        if isinstance(above, ast.Call):
            return isinstance(above.func, ast.Name) and above.func.id in ("isinstance", "issubclass")
        below = above
    return False


def _import_of(source: Source, use: Use) -> ast.ImportFrom | None:
    """The one statement that binds the name `use`."""
    if not isinstance(use, ast.Name) or source.names.stores(use.id):
        return None
    binding = [
        statement
        for statement in source.tree.all(ast.ImportFrom)
        if any((item.asname or item.name) == use.id for item in statement.names)
    ]
    return binding[0] if len(binding) == 1 and not guarded(source, binding[0]) else None


def _moved(
    source: Source, statement: ast.ImportFrom, table: Mapping[str, str], adapt: Adapt | None
) -> list[Edit] | None:
    """The edits that import all names of `statement` from their new home; None where that cannot be done."""
    old = [f"{statement.module}.{item.name}" for item in statement.names]
    if any(name not in table for name in old) or len({table[name].rpartition(".")[0] for name in old}) != 1:
        return None
    edits: list[Edit] = []
    words = []
    for item, name in zip(statement.names, old, strict=True):
        tail = table[name].rpartition(".")[2]
        words.append(f"{tail} as {item.asname}" if item.asname else tail)
        bound = item.asname or item.name
        for use in source.tree.all(ast.Name):
            if use.id != bound:
                continue
            arguments = _adapted(source, use, adapt) if source.resolve(use) == {name} else None
            if arguments is None:
                return None
            edits += [*([] if item.asname or tail == bound else [replace(use, tail)]), *arguments]
    home = table[old[0]].rpartition(".")[0]
    return [replace(statement, f"from {home} import {', '.join(words)}"), *edits]


def keyword_edits(call: ast.Call, given: Mapping[str, str], drop: Iterable[str] = ()) -> list[Edit]:
    """Pass `given` by keyword in `call`, and leave out its keyword arguments `drop`."""
    there = {keyword.arg for keyword in call.keywords}
    removed = [remove_argument(call, name) for name in drop if name in there]
    return [*removed, *[set_argument(call, name, code) for name, code in given.items()]]
