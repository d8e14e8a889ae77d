"""One walk over a file's `ast`: nodes by type in document order, and each node's parent."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T", bound=ast.AST)

# Fields that never hold a node worth visiting. Operators and contexts are shared singletons without a position.
_PLAIN = {"ctx", "op", "ops", "id", "attr", "arg", "level", "module", "asname", "simple", "conversion", "is_async"}
_PLAIN |= {"type_comment", "kind", "rest", "kwd_attrs"}
_LEAVES = (ast.Name, ast.Constant, ast.alias, ast.Global, ast.Nonlocal)


def _child_fields(node_type: type[ast.AST]) -> tuple[str, ...]:
    """Fields to visit, last first, because the walk keeps a stack."""
    if issubclass(node_type, _LEAVES):
        return ()
    return tuple(reversed([field for field in node_type._fields if field not in _PLAIN and field != "name"]))


_FIELDS = {
    node_type: _child_fields(node_type)
    for node_type in vars(ast).values()
    if isinstance(node_type, type) and issubclass(node_type, ast.AST)
}


class Tree:
    """The nodes of one file.

    Parents live in a dictionary beside the tree, not on the nodes: a tree without reference cycles is freed as soon as
    its file is done, so that the garbage collector can stay off while thousands of files are checked.
    """

    def __init__(self, root: ast.Module) -> None:
        self.root = root
        self.parents: dict[ast.AST, ast.AST] = {}
        self._by_type: dict[type[ast.AST], list[ast.AST]] = {ast.Name: [], ast.Constant: [], ast.Attribute: []}
        self._unsorted: set[type[ast.AST]] = {ast.Name, ast.Constant, ast.Attribute}
        self._indices: dict[type[ast.AST], dict[object, list[ast.AST]]] = {}
        self._walk()

    def _walk(self) -> None:
        # The hottest loop of the program: a quarter of the time of `ast.parse` itself. Recursion or `ast.walk` double
        # it. Names and constants, most nodes of any file, and the chains of attributes above names take the short way,
        # which lists them out of order.
        parents, by_type, fields = self.parents, self._by_type, _FIELDS
        name_type, constant_type, attribute_type = ast.Name, ast.Constant, ast.Attribute
        add_name, add_constant = by_type[ast.Name].append, by_type[ast.Constant].append
        add_attribute = by_type[ast.Attribute].append
        stack: list[ast.AST] = [self.root]
        pop, push = stack.pop, stack.append
        while stack:
            node = pop()
            node_type = node.__class__
            try:
                by_type[node_type].append(node)
            except KeyError:
                by_type[node_type] = [node]
            values = node.__dict__
            for field in fields[node_type]:
                child = values[field]
                kind = child.__class__
                above = node
                while kind is attribute_type:
                    parents[child] = above
                    add_attribute(child)
                    above, child = child, child.value
                    kind = child.__class__
                if kind is name_type:
                    parents[child] = above
                    add_name(child)
                elif kind is list:
                    for item in reversed(child):
                        kind = item.__class__
                        if kind is name_type:
                            parents[item] = node
                            add_name(item)
                        elif kind is constant_type:
                            parents[item] = node
                            add_constant(item)
                        elif item is not None and kind is not str:
                            parents[item] = node
                            push(item)
                elif kind is constant_type:
                    parents[child] = above
                    add_constant(child)
                elif child is not None:
                    parents[child] = above
                    push(child)

    def all(self, *node_types: type[T]) -> list[T]:
        """All nodes of these exact types, in document order for a single type."""
        found: list[T] = []
        for node_type in node_types:
            if node_type in self._unsorted:
                self._unsorted.remove(node_type)
                self._by_type[node_type].sort(key=_place)
            found += self._by_type.get(node_type, [])  # type: ignore[arg-type]
        return found

    def stored_names(self) -> list[ast.Name]:
        """The names that are assigned to, in document order."""
        names: list[Any] = self._by_type[ast.Name]
        return sorted([name for name in names if name.ctx.__class__ is ast.Store], key=_place)

    def names(self, name: str) -> list[ast.Name]:
        """The uses of the variable `name`, in document order."""
        return sorted(self._indexed(ast.Name, "id").get(name, ()), key=_place)  # type: ignore[arg-type]

    def attributes(self, attribute: str) -> list[ast.Attribute]:
        """The uses of an attribute of this name, of whatever object, in document order of where they begin."""
        return sorted(self._indexed(ast.Attribute, "attr").get(attribute, ()), key=_place)  # type: ignore[arg-type]

    def _indexed(self, node_type: type[ast.AST], field: str) -> dict[object, list[ast.AST]]:
        if node_type not in self._indices:
            index = self._indices[node_type] = {}
            for node in self._by_type[node_type]:
                index.setdefault(getattr(node, field), []).append(node)
        return self._indices[node_type]

    @cached_property
    def strings(self) -> frozenset[str]:
        """The texts of the file's string constants."""
        constants: list[Any] = self._by_type[ast.Constant]
        return frozenset([node.value for node in constants if node.value.__class__ is str])

    def parent(self, node: ast.AST) -> ast.AST | None:
        return self.parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around `node`, innermost first."""
        above = self.parents.get(node)
        while above is not None:
            yield above
            above = self.parents.get(above)


def _place(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and all nodes below it in document order: what `ast.walk` gives, in half the time."""
    fields = _FIELDS
    stack = [node]
    pop, push = stack.pop, stack.append
    while stack:
        current = pop()
        yield current
        for field in fields[current.__class__]:
            child = getattr(current, field)
            if child.__class__ is list:
                for item in reversed(child):
                    if item is not None and item.__class__ is not str:
                        push(item)
            elif child is not None:
                push(child)


def walk_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` in document order, without the bodies of nested functions and classes."""
    stack = [node]
    while stack:
        current = stack.pop()
        if current is not node:
            yield current
            if isinstance(current, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                continue
        for field in _FIELDS[type(current)]:
            child = getattr(current, field)
            if isinstance(child, list):
                stack += [item for item in reversed(child) if isinstance(item, ast.AST)]
            elif child is not None:
                stack.append(child)
