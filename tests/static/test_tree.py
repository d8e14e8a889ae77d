"""The index of a file's nodes agrees with `ast.walk`."""

from __future__ import annotations

import ast
import inspect

import pytest

from auditor.static import flow, names, source, tree


@pytest.mark.parametrize("module", [flow, names, source, tree])
def test_holds_every_node_once_with_its_parent(module: object) -> None:
    root = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    index = tree.Tree(root)
    left_out = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
    for node in ast.walk(root):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, left_out):
                assert index.parent(child) is node
                assert index.all(type(child)).count(child) == 1


def test_lists_are_in_document_order() -> None:
    index = tree.Tree(ast.parse("f(a(b.c.d, 1), e.f, [2, g])\nx = y = h.c\n"))
    assert [node.id for node in index.all(ast.Name)] == ["f", "a", "b", "e", "g", "x", "y", "h"]
    assert [node.value for node in index.all(ast.Constant)] == [1, 2]
    assert [node.id for node in index.stored_names()] == ["x", "y"]
    assert [ast.unparse(node) for node in index.attributes("c")] == ["b.c", "h.c"]
    assert [node.lineno for node in index.names("h")] == [2]
    assert index.strings == frozenset()
