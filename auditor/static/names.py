"""What a name means: imports, aliases and local definitions resolved to dotted names such as `torch.nn.Dropout`."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable

from auditor.static.tree import Tree

Names = frozenset[str]
NOTHING: Names = frozenset()
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

# Private homes of public names: torch.nn.modules.dropout.Dropout is torch.nn.Dropout.
_PRIVATE_HOMES = r"^torch\.nn\.modules\.(?:\w+\.)?(?=[A-Z])"


def canonical(name: str) -> str:
    """The public spelling of a dotted torch name."""
    return re.sub(_PRIVATE_HOMES, "torch.nn.", name) if name.startswith("torch.nn.modules.") else name


class Resolver:
    """Resolves expressions of one file.

    A name bound twice (`try: from apex… except ImportError: from torch…`) resolves to both; a name that a function
    binds itself is no longer the import. Definitions of the file itself resolve to their own name.
    `handed_on`: what a name stands for that a star import brings, such as the `nn` that the other file imports.
    """

    def __init__(
        self, tree: Tree, module: str = "", handed_on: Callable[[str, str], Names] = lambda star, name: NOTHING
    ) -> None:
        self.tree = tree
        self._handed_on = handed_on
        self.aliases: dict[str, set[str]] = {}
        self.stars: list[str] = []
        self._read_imports(module)
        self.definitions: dict[str, list[ast.AST]] = {}
        definitions: list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [*tree.all(ast.ClassDef)]
        definitions += [*tree.all(ast.FunctionDef), *tree.all(ast.AsyncFunctionDef)]
        for node in definitions:
            if isinstance(tree.parent(node), (ast.Module, ast.If, ast.Try)):
                self.definitions.setdefault(node.name, []).append(node)
        self._stored: dict[str, list[ast.Name]] = {}
        for name in tree.stored_names():
            self._stored.setdefault(name.id, []).append(name)
        self._read_assigned_aliases()
        self._local = self._shadowing_scopes()
        self._cache: dict[str, Names] = {}
        self._attributes: dict[ast.Attribute, Names] = {}

    def _read_imports(self, module: str) -> None:
        for statement in self.tree.all(ast.Import):
            for item in statement.names:
                bound = item.asname or item.name.partition(".")[0]
                meaning = item.name if item.asname else bound
                self.aliases.setdefault(bound, set()).add(meaning)
        for from_statement in self.tree.all(ast.ImportFrom):
            origin = _absolute(from_statement, module)
            for item in from_statement.names:
                if item.name == "*":
                    self.stars.append(origin)
                else:
                    dot = "" if origin.endswith(".") else "."
                    meaning = canonical(f"{origin}{dot}{item.name}")
                    self.aliases.setdefault(item.asname or item.name, set()).add(meaning)

    def _read_assigned_aliases(self) -> None:
        """`Conv = nn.Conv2d` and the like, where the name is bound nowhere else in the file."""
        for assignment in self.tree.all(ast.Assign):
            target = assignment.targets[0]
            if len(assignment.targets) != 1 or not isinstance(target, ast.Name) or target.id in self.aliases:
                continue
            if isinstance(assignment.value, (ast.Name, ast.Attribute)) and len(self._stored[target.id]) == 1:
                root = _root(assignment.value)
                if root is not None and root.id in self.aliases and root.id != target.id:
                    meanings = {name for name in self._plain(assignment.value) if name.startswith("torch")}
                    if meanings:
                        self.aliases[target.id] = meanings

    def _plain(self, expression: ast.expr) -> set[str]:
        if isinstance(expression, ast.Name):
            return self.aliases.get(expression.id, set())
        if isinstance(expression, ast.Attribute):
            return {canonical(f"{name}.{expression.attr}") for name in self._plain(expression.value)}
        return set()

    def _shadowing_scopes(self) -> dict[str, set[ast.AST]]:
        """For each imported name: the functions that bind it anew, as a parameter or a variable."""
        shadows: dict[str, set[ast.AST]] = {}
        for argument in self.tree.all(ast.arg):
            if argument.arg in self.aliases:
                self._shadow(shadows, argument.arg, argument)
        for name, stores in self._stored.items():
            if name in self.aliases:
                for store in stores:
                    if not isinstance(self.tree.parent(store), ast.Assign) or name not in self._alias_targets(store):
                        self._shadow(shadows, name, store)
        return shadows

    def _alias_targets(self, store: ast.Name) -> tuple[str, ...]:
        statement = self.tree.parent(store)
        value = statement.value if isinstance(statement, ast.Assign) else None
        return (store.id,) if isinstance(value, (ast.Name, ast.Attribute)) else ()

    def _shadow(self, shadows: dict[str, set[ast.AST]], name: str, node: ast.AST) -> None:
        for above in self.tree.ancestors(node):
            if isinstance(above, FUNCTIONS):
                shadows.setdefault(name, set()).add(above)
                return

    def stores(self, name: str) -> list[ast.Name]:
        """Every place of the file where `name` is assigned."""
        return self._stored.get(name, [])

    def resolve(self, expression: ast.AST | None) -> Names:
        """The dotted names that `expression` can stand for; empty when it is no name or nothing is known of it."""
        if expression.__class__ is ast.Name:
            return self._resolve_name(expression)  # type: ignore[arg-type]
        if expression.__class__ is ast.Attribute:
            known = self._attributes.get(expression)  # type: ignore[arg-type]
            if known is None:
                known = self._attributes[expression] = self._resolve_attribute(expression)  # type: ignore[index, arg-type]
            return known
        return NOTHING

    def _resolve_attribute(self, expression: ast.Attribute) -> Names:
        values = self.resolve(expression.value)
        if not values:
            return NOTHING
        return frozenset([canonical(f"{value}.{expression.attr}") for value in values])

    def _resolve_name(self, name: ast.Name) -> Names:
        scopes = self._local.get(name.id)
        if scopes and any(above in scopes for above in self.tree.ancestors(name)):
            return NOTHING
        found = self._cache.get(name.id)
        if found is None:
            found = self._cache[name.id] = self._lookup(name.id)
        return found

    def _lookup(self, name: str) -> Names:
        if name in self.aliases:
            return frozenset(self.aliases[name])
        if name in self.definitions:
            return frozenset([name])
        if self.stars and name not in self._stored:
            if hasattr(builtins, name) and not any(star.startswith("torch") for star in self.stars):
                return NOTHING  # `super` stays what it is
            found: set[str] = set()
            for star in self.stars:
                found |= self._handed_on(star, name) or {canonical(f"{star}.{name}")}
            return frozenset(found)
        return NOTHING


def _absolute(statement: ast.ImportFrom, module: str) -> str:
    """The module an import names; a relative one keeps its dots when this file's own module name is not known."""
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")[: -statement.level] if module else []
    prefix = ".".join(parts) if parts else "." * statement.level
    return ".".join(filter(None, (prefix, statement.module))) if parts else prefix + (statement.module or "")


def _root(expression: ast.expr) -> ast.Name | None:
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return expression if isinstance(expression, ast.Name) else None
