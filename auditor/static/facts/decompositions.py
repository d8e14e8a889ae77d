"""Matrix functions that torch moved to `torch.linalg`: what each call becomes there."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from auditor.static.facts.api import callable_args, literal, text_of
from auditor.static.source import Source

Given = Mapping[str, ast.expr]
Rewrite = Callable[[Source, ast.Call, Given], str | None]


def parts_used(source: Source, call: ast.Call) -> set[int] | None:
    """Which parts of the tuple that `call` returns are used: by index, by a name of `FIELDS`, or by unpacking to
    names other than `_`. None: not known, it may be all of them as a tuple."""
    parent = source.tree.parent(call)
    if isinstance(parent, ast.Subscript) and parent.value is call:
        index = source.constant(parent.slice) if isinstance(parent.slice, ast.expr) else None
        return {index} if isinstance(index, int) and not isinstance(index, bool) else None
    if isinstance(parent, ast.Attribute):
        fields = FIELDS.get(min(source.resolve(call.func), default=""), ())
        return {fields.index(parent.attr)} if parent.attr in fields else None
    return None


FIELDS = {
    "torch.solve": ("solution", "LU"),
    "torch.symeig": ("eigenvalues", "eigenvectors"),
    "torch.svd": ("U", "S", "V"),
    "torch.triangular_solve": ("solution", "cloned_coefficient"),
    "torch.qr": ("Q", "R"),
}


def only_part(source: Source, call: ast.Call, part: int) -> ast.expr | None:
    """The expression around `call` that takes this one part of its result."""
    if parts_used(source, call) != {part}:
        return None
    parent = source.tree.parent(call)
    return parent if isinstance(parent, ast.expr) else None


def unpacked(source: Source, call: ast.Call, count: int) -> tuple[ast.Assign, list[str]] | None:
    """The statement `a, b, … = call` and its names; None where the call stands in no such statement."""
    statement = source.tree.parent(call)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target = statement.targets[0]
    if not isinstance(target, (ast.Tuple, ast.List)) or len(target.elts) != count:
        return None
    names = [item.id for item in target.elts if isinstance(item, ast.Name)]
    return (statement, names) if len(names) == count else None


def is_read(source: Source, statement: ast.Assign, name: str) -> bool:
    """Whether the variable is read anywhere in the function of `statement`."""
    scope = source.function_of(statement)
    rows = range(scope.lineno, (scope.end_lineno or 0) + 1) if scope else None
    return any(
        node.id == name and isinstance(node.ctx, ast.Load) and (rows is None or node.lineno in rows)
        for node in source.tree.all(ast.Name)
    )


# New calls, as source that starts with `{linalg}`, for `torch.linalg` as the file spells it ---------------------------


def qr(source: Source, call: ast.Call, given: Given) -> str | None:
    some = literal(source, given.get("some"), True)
    if not isinstance(some, bool):
        return None
    mode = "" if some else ', mode="complete"'
    return f"{{linalg}}.qr({text_of(source, given['input'])}{mode})"


def cholesky(source: Source, call: ast.Call, given: Given) -> str | None:
    """`upper` may be any expression: it means the same."""
    upper = f", upper={text_of(source, given['upper'])}" if "upper" in given else ""
    return f"{{linalg}}.cholesky({text_of(source, given['input'])}{upper})"


def lu(source: Source, call: ast.Call, given: Given) -> str | None:
    infos = literal(source, given.get("get_infos"), False)
    if not isinstance(infos, bool):
        return None
    pivot = f", pivot={text_of(source, given['pivot'])}" if "pivot" in given else ""
    return f"{{linalg}}.lu_factor{'_ex' if infos else ''}({text_of(source, given['A'])}{pivot})"


def lu_solve(source: Source, call: ast.Call, given: Given) -> str | None:
    """The right-hand side goes last."""
    b, data, pivots = (text_of(source, given[name]) for name in ("input", "LU_data", "LU_pivots"))
    return f"{{linalg}}.lu_solve({data}, {pivots}, {b})"


def triangular_solve(source: Source, call: ast.Call, given: Given) -> str | None:
    """The solution alone; the matrix goes first. A transposed system is that of the transposed matrix."""
    upper, transpose, unit = (
        literal(source, given.get(name), default)
        for name, default in (("upper", True), ("transpose", False), ("unitriangular", False))
    )
    if not (isinstance(upper, bool) and isinstance(transpose, bool) and isinstance(unit, bool)):
        return None
    b, matrix = text_of(source, given["input"]), given["A"]
    code = text_of(source, matrix)
    if transpose:
        code = (
            f"{code}.mT" if isinstance(matrix, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)) else f"({code}).mT"
        )
    more = ", unitriangular=True" if unit else ""
    return f"{{linalg}}.solve_triangular({code}, {b}, upper={upper is not transpose}{more})"


def solve(source: Source, call: ast.Call, given: Given) -> str | None:
    """The solution alone; the matrix goes first."""
    return f"{{linalg}}.solve({text_of(source, given['A'])}, {text_of(source, given['input'])})"


def symeig(source: Source, call: ast.Call, given: Given) -> str | None:
    """Eigenvalues and eigenvectors; the upper triangle was the default, the lower one is now."""
    upper = literal(source, given.get("upper"), True)
    if literal(source, given.get("eigenvectors"), False) is not True or not isinstance(upper, bool):
        return None
    return f'{{linalg}}.eigh({text_of(source, given["input"])}, UPLO="{"U" if upper else "L"}")'


def eigenvalues(source: Source, call: ast.Call, given: Given) -> str | None:
    upper = literal(source, given.get("upper"), True)
    if not isinstance(upper, bool):
        return None
    return f'{{linalg}}.eigvalsh({text_of(source, given["input"])}, UPLO="{"U" if upper else "L"}")'


def matrix_rank(source: Source, call: ast.Call, given: Given) -> str | None:
    more = "".join(
        f", {new}={text_of(source, given[old])}"
        for old, new in (("tol", "tol"), ("symmetric", "hermitian"))
        if old in given
    )
    return f"{{linalg}}.matrix_rank({text_of(source, given['input'])}{more})"


def svd(source: Source, call: ast.Call, given: Given) -> str | None:
    """The third part is conjugate-transposed: whoever uses it has to turn it round."""
    some, vectors = (literal(source, given.get(name), True) for name in ("some", "compute_uv"))
    if not isinstance(some, bool) or vectors is not True:
        return None
    return f"{{linalg}}.svd({text_of(source, given['input'])}{', full_matrices=False' if some else ''})"


def singular_values(source: Source, call: ast.Call, given: Given) -> str | None:
    return f"{{linalg}}.svdvals({text_of(source, given['input'])})"


def arguments(source: Source, call: ast.Call, names: tuple[str, ...], needed: int) -> dict[str, ast.expr] | None:
    """The arguments by name if all are seen and the first `needed` are there."""
    given = callable_args(source, call, *names)
    return given if given is not None and all(name in given for name in names[:needed]) else None
