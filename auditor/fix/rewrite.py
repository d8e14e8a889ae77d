"""Carries edits out on a file's text: one libcst walk for all of them, everything they do not touch byte for byte kept.

Edits come with `ast` positions (columns in UTF-8 bytes); libcst counts characters. An edit inside a range that another
edit replaces would be lost silently, so it is refused: the engine applies the outer edit and comes back for the inner.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, TypeGuard

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from auditor.fix.edit import Edit

Position = tuple[int, int]
Range = tuple[Position, Position]
Statement = cst.SimpleStatementLine | cst.BaseCompoundStatement

_BOM = "\ufeff"
_NEWLINE = re.compile(r"\r\n|\r|\n")
_INSERTS = ("insert_before", "insert_after")
_ARGUMENTS = ("set_argument", "remove_argument", "name_argument", "prepend_argument")

# Parents that delimit an expression, so that it needs no parentheses of its own there.
_DELIMITERS = (
    cst.Arg,
    cst.Expr,
    cst.Assign,
    cst.AugAssign,
    cst.AnnAssign,
    cst.Return,
    cst.Element,
    cst.Index,
    cst.DictElement,
    cst.Param,
    cst.If,
    cst.While,
)
_ATOMS = (
    cst.Name,
    cst.Attribute,
    cst.Call,
    cst.Subscript,
    cst.BaseNumber,
    cst.SimpleString,
    cst.FormattedString,
    cst.List,
    cst.Set,
    cst.Dict,
    cst.ListComp,
    cst.SetComp,
    cst.DictComp,
)
_NEVER_BARE = (cst.Tuple, cst.NamedExpr, cst.Yield, cst.GeneratorExp)


class EditError(ValueError):
    """An edit that cannot be placed, that would be lost inside another, or that would break the file."""


def apply(text: str, edits: Sequence[Edit]) -> str:
    """`text` with all `edits` carried out.

    Identical edits count once; several insertions at one place keep their order. Raises EditError, and changes
    nothing, when an edit finds no node at its range, when two edits contradict each other or one lies inside what the
    other replaces, and when `text` or the result does not parse.
    """
    edits = tuple(dict.fromkeys(edits))
    if not edits:
        return text
    if any(edit.op == "text" for edit in edits):
        return _with_texts(text, edits)
    _refuse_contradictions(edits)
    bom, body = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    try:
        module = cst.parse_module(body)
    except cst.ParserSyntaxError as error:
        raise EditError(f"the file does not parse: {error.message.splitlines()[0]}") from error
    if module.code != body:
        raise EditError("the file cannot be rewritten without touching other lines")
    rewriter = _Rewriter(module, _in_characters(body, edits))
    try:
        result = MetadataWrapper(module, unsafe_skip_copy=True).visit(rewriter).code
        ast.parse(result)
    except (cst.CSTValidationError, SyntaxError) as error:
        raise EditError(f"the edited file would not parse: {error}") from error
    rewriter.refuse_unplaced()
    return bom + result


def _with_texts(text: str, edits: Sequence[Edit]) -> str:
    """`text` with pieces of its lines replaced, from the last to the first."""
    if any(edit.op != "text" for edit in edits):
        raise EditError("comments are edited apart from code")
    lines = text.splitlines(keepends=True)
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        line = lines[edit.start[0] - 1]
        new = line[: edit.start[1]] + edit.code + line[edit.end[1] :]
        body, end = new.rstrip(), new[len(new.rstrip("\r\n")) :]
        lines[edit.start[0] - 1] = body + end if body else ""
    return "".join(lines)


def text_edits(text: str, new_text: str) -> list[dict[str, Any]]:
    """The changes from `text` to `new_text` as ruff's JSON has them: content, location and end_location.

    Rows and columns count from 1, columns in characters, ends exclusive; the ranges lie in `text`, in order, and do
    not overlap.
    """
    old, new = _lines(text), _lines(new_text)
    changes = []
    for tag, old_start, old_end, new_start, new_end in line_changes(old, new):
        if tag != "equal":
            changes.append(_trimmed(old, old_start, "".join(old[old_start:old_end]), "".join(new[new_start:new_end])))
    return changes


# Positions ---------------------------------------------------------------------------------------------------------


def _in_characters(text: str, edits: Sequence[Edit]) -> list[tuple[Edit, Range]]:
    """Each edit with its range in libcst's measure: rows from 1, columns from 0 in characters."""
    lines = _NEWLINE.split(text)

    def convert(position: Position) -> Position:
        row, column = position
        if not 0 < row <= len(lines):
            raise EditError(f"the file has no line {row}")
        return row, len(lines[row - 1].encode()[:column].decode(errors="replace"))

    return [
        (edit, (convert(edit.start), convert(edit.end)) if edit.op != "import" else ((0, 0), (0, 0))) for edit in edits
    ]


def _plain(code_range: CodeRange) -> Range:
    return (code_range.start.line, code_range.start.column), (code_range.end.line, code_range.end.column)


def _refuse_contradictions(edits: Sequence[Edit]) -> None:
    for first, second in combinations((edit for edit in edits if edit.op not in (*_INSERTS, "import")), 2):
        if (first.start, first.end) != (second.start, second.end):
            continue
        if first.op in _ARGUMENTS and second.op in _ARGUMENTS and first.name != second.name:
            continue
        row, column = first.start
        raise EditError(f"two edits contradict each other at {row}:{column + 1}: {first.op} and {second.op}")


# The walk ----------------------------------------------------------------------------------------------------------


class _Rewriter(cst.CSTTransformer):
    """Expressions and calls are changed on leaving them, statements on leaving the body that holds them."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: cst.Module, edits: Sequence[tuple[Edit, Range]]) -> None:
        super().__init__()
        self.newline = module.default_newline
        self.edits = edits
        self.by_start: dict[Position, list[tuple[Edit, Range]]] = {}
        for edit, span in edits:
            if edit.op != "import":
                self.by_start.setdefault(span[0], []).append((edit, span))
        self.placed: set[Edit] = set()
        self.ancestors: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.ancestors.append(node)
        return True

    def on_leave(self, original_node: cst.CSTNode, updated_node: Any) -> Any:
        self.ancestors.pop()
        if isinstance(original_node, cst.BaseExpression) and not isinstance(original_node, cst.StarredElement):
            return self._expression(original_node, updated_node)
        if isinstance(original_node, cst.IndentedBlock):
            body, comments = self._body(original_node.body, updated_node.body, top=False)
            if body is updated_node.body:
                return updated_node
            return updated_node.with_changes(body=body or [_pass()], footer=(*comments, *updated_node.footer))
        if isinstance(original_node, cst.SimpleStatementSuite):
            return self._suite(original_node, updated_node)
        if isinstance(original_node, cst.Module):
            body, comments = self._body(original_node.body, updated_node.body, top=True)
            body = self._with_imports(list(body))
            return updated_node.with_changes(body=body, footer=(*comments, *updated_node.footer))
        return updated_node

    def refuse_unplaced(self) -> None:
        for edit, _ in self.edits:
            if edit not in self.placed:
                row, column = edit.start
                raise EditError(f"{edit.op}: nothing to work on at {row}:{column + 1}")

    # Expressions ---------------------------------------------------------------------------------------------------

    def _expression(self, original: cst.BaseExpression, updated: cst.BaseExpression) -> cst.BaseExpression:
        if not self.by_start:
            return updated
        span, own_parentheses = self._expression_range(original)
        for edit, target in self.by_start.get(span[0], ()):
            if target != span or edit in self.placed:
                continue
            if edit.op == "replace" and (new := self._parsed_expression(edit.code)) is not None:
                self._drop(edit, span)
                return self._in_place_of(original, own_parentheses, new)
            if edit.op in _ARGUMENTS and isinstance(original, cst.Call) and isinstance(updated, cst.Call):
                updated = self._argument(original, updated, edit)
        return updated

    def _expression_range(self, node: cst.BaseExpression) -> tuple[Range, int]:
        """The range `ast` gives this expression, and how many of its parentheses lie inside that range."""
        if isinstance(node, cst.Tuple | cst.GeneratorExp) and node.lpar:
            start = _plain(self.get_metadata(PositionProvider, node.lpar[-1]))[0]
            end = _plain(self.get_metadata(PositionProvider, node.rpar[0]))[1]
            return (start, end), 1
        return _plain(self.get_metadata(PositionProvider, node)), 0

    def _parsed_expression(self, code: str) -> cst.BaseExpression | None:
        code = _NEWLINE.sub(self.newline, code.strip())
        for candidate in (code, f"({code})"):
            try:
                return cst.parse_expression(candidate)
            except cst.ParserSyntaxError:
                continue
        return None

    def _in_place_of(
        self, old: cst.BaseExpression, own_parentheses: int, new: cst.BaseExpression
    ) -> cst.BaseExpression:
        outer = len(old.lpar) - own_parentheses
        if outer:
            return new.with_changes(
                lpar=(*old.lpar[:outer], *new.lpar), rpar=(*new.rpar, *old.rpar[len(old.rpar) - outer :])
            )
        return _enclosed(new, self.ancestors[-1])

    def _argument(self, original: cst.Call, call: cst.Call, edit: Edit) -> cst.Call:
        if edit.op == "name_argument":
            self.placed.add(edit)
            return _with_named(call, int(edit.code) + len(call.args) - len(original.args), edit.name)
        index = next((i for i, arg in enumerate(call.args) if arg.keyword and arg.keyword.value == edit.name), None)
        row, column = edit.start
        if index is not None:
            self._drop(edit, _plain(self.get_metadata(PositionProvider, original.args[index])))
        elif edit.op == "remove_argument":
            raise EditError(f"remove_argument: the call at {row}:{column + 1} passes no `{edit.name}`")
        self.placed.add(edit)
        if edit.op == "remove_argument" and index is not None:
            return _without_argument(call, index)
        value = self._parsed_expression(edit.code)
        if value is None:
            raise EditError(f"{edit.op}: `{edit.code}` is not an expression")
        if edit.op == "prepend_argument":
            return _with_first(call, value)
        if index is None:
            return _with_argument(call, edit.name, _enclosed(value, call.args[0] if call.args else cst.Arg(value)))
        arg = call.args[index]
        args = [*call.args]
        args[index] = arg.with_changes(value=_enclosed(value, arg))
        return call.with_changes(args=args)

    # Statements ----------------------------------------------------------------------------------------------------

    def _statement_edits(self, node: cst.CSTNode) -> list[Edit]:
        if not self.by_start:
            return []
        span = _plain(self.get_metadata(PositionProvider, node))
        simple = isinstance(node, cst.BaseSmallStatement)
        edits = []
        for edit, target in self.by_start.get(span[0], ()):
            if edit.op in _ARGUMENTS or edit in self.placed or (simple and target[1] != span[1]):
                continue
            # An expression and the statement it fills share a range; what was replaced as an expression is done.
            edits.append(edit)
        return edits

    def _body(
        self, original: Sequence[cst.CSTNode], updated: Sequence[cst.CSTNode], top: bool
    ) -> tuple[Sequence[cst.CSTNode], list[cst.EmptyLine]]:
        """The new statements of a body, and comments left over from statements removed at its end."""
        body: list[cst.CSTNode] = []
        kept_comments: list[cst.EmptyLine] = []
        changed = False
        for old, new in zip(original, updated, strict=True):
            if isinstance(old, cst.SimpleStatementLine) and isinstance(new, cst.SimpleStatementLine):
                statements = self._line(old, new)
            else:
                statements = self._compound(old, new, top)
            changed = changed or statements != [new]
            if statements:
                body.extend(_with_leading(statements, [*kept_comments, *_leading(statements[0])]))
                kept_comments = []
            else:
                kept_comments += _comments_of(new)
        return (body, kept_comments) if changed else (updated, [])

    def _compound(self, old: cst.CSTNode, new: cst.CSTNode, top: bool) -> list[cst.CSTNode]:
        edits = self._statement_edits(old)
        if not edits:
            return [new]
        before, middle, after = [], [new], []
        for edit in edits:
            if edit.op == "insert_before":
                before += self._parsed_statements(edit)
            elif edit.op == "insert_after":
                after += self._parsed_statements(edit)
            else:
                self._drop(edit, self._whole_range(old))
                middle = self._replacement(edit, new)
            self.placed.add(edit)
        definition = isinstance(old, cst.FunctionDef | cst.ClassDef)
        if after and definition and not _leading(after[0]):
            after = _with_leading(after, [cst.EmptyLine(indent=False)] * (2 if top else 1))
        if before and middle:
            before, middle = _share_leading(before, middle, list(_leading(new)), definition)
        elif before:
            before = _with_leading(before, [*_leading(new), *_leading(before[0])])
        return [*before, *middle, *after]

    def _replacement(self, edit: Edit, new: cst.CSTNode) -> list[cst.CSTNode]:
        if edit.op == "remove":
            return []
        statements = self._parsed_statements(edit)
        if isinstance(new, cst.FunctionDef | cst.ClassDef) and new.decorators:
            # The range of a definition starts at `def` or `class`: its decorators stay.
            if len(statements) != 1 or not isinstance(statements[0], cst.FunctionDef | cst.ClassDef):
                raise EditError(f"replace: the decorators at line {edit.start[0]} would have nothing to decorate")
            definition = statements[0]
            statements = [definition.with_changes(decorators=(*new.decorators, *definition.decorators))]
        return _with_leading(statements, [*_leading(new), *_leading(statements[0])])

    def _line(self, old: cst.SimpleStatementLine, new: cst.SimpleStatementLine) -> list[cst.CSTNode]:
        """One source line, which may hold several statements between semicolons."""
        if not any(self._statement_edits(small) for small in old.body):
            return [new]
        pieces = self._pieces(old.body, new.body)
        statements: list[cst.CSTNode] = [
            new.with_changes(
                body=_without_last_semicolon(piece), leading_lines=(), trailing_whitespace=cst.TrailingWhitespace()
            )
            if isinstance(piece, list)
            else piece
            for _, piece in pieces
        ]
        origins = [origin for origin, _ in pieces]
        own = [index for index, origin in enumerate(origins) if origin != "inserted"]
        if not own:
            return _with_leading(statements, [*new.leading_lines, *_leading(statements[0])]) if statements else []
        last = statements[own[-1]]
        if isinstance(last, cst.SimpleStatementLine):
            statements[own[-1]] = last.with_changes(trailing_whitespace=new.trailing_whitespace)
        before, rest = _share_leading(statements[: own[0]], statements[own[0] :], list(new.leading_lines), False)
        return [*before, *rest]

    def _pieces(
        self, old: Sequence[cst.BaseSmallStatement], new: Sequence[cst.BaseSmallStatement]
    ) -> list[tuple[str, list[cst.BaseSmallStatement] | cst.CSTNode]]:
        """The line cut where statements go in: runs of small statements that stay together, and whole statements."""
        pieces: list[tuple[str, list[cst.BaseSmallStatement] | cst.CSTNode]] = []

        def keep(small: cst.BaseSmallStatement) -> None:
            if pieces and isinstance(pieces[-1][1], list):
                pieces[-1][1].append(small)
            else:
                pieces.append(("kept", [small]))

        for original, updated in zip(old, new, strict=True):
            edits = self._statement_edits(original)
            pieces += [
                ("inserted", s) for edit in edits if edit.op == "insert_before" for s in self._parsed_statements(edit)
            ]
            changes = [edit for edit in edits if edit.op not in _INSERTS]
            if not changes:
                keep(updated)
            for edit in changes:
                self._drop(edit, _plain(self.get_metadata(PositionProvider, original)))
                statements = self._parsed_statements(edit) if edit.op == "replace" else []
                small = _only_small_statement(statements)
                if small is not None:
                    keep(small.with_changes(semicolon=updated.semicolon))
                else:
                    pieces += [("replaced", statement) for statement in statements]
            pieces += [
                ("inserted", s) for edit in edits if edit.op == "insert_after" for s in self._parsed_statements(edit)
            ]
            self.placed.update(edits)
        return pieces

    def _suite(self, old: cst.SimpleStatementSuite, new: cst.SimpleStatementSuite) -> cst.BaseSuite:
        """`if x: a; b`: stays on its line where it can, becomes a block where it cannot."""
        if not any(self._statement_edits(small) for small in old.body):
            return new
        line = cst.SimpleStatementLine(body=new.body, trailing_whitespace=new.trailing_whitespace)
        statements = self._line(cst.SimpleStatementLine(body=old.body), line) or [_pass(new.trailing_whitespace)]
        if (
            len(statements) == 1
            and isinstance(statements[0], cst.SimpleStatementLine)
            and not statements[0].leading_lines
        ):
            return new.with_changes(body=statements[0].body, trailing_whitespace=statements[0].trailing_whitespace)
        return cst.IndentedBlock(body=[s for s in statements if _is_statement(s)])

    def _parsed_statements(self, edit: Edit) -> list[cst.CSTNode]:
        code = edit.code.strip("\r\n")
        code = textwrap.dedent(code) if code[:1] in " \t" else code
        config = cst.PartialParserConfig(default_newline=self.newline)
        try:
            module = cst.parse_module(_NEWLINE.sub(self.newline, code) + self.newline, config=config)
        except cst.ParserSyntaxError as error:
            raise EditError(f"{edit.op}: `{edit.code}` does not parse") from error
        if not module.body or any(line.comment for line in module.footer):
            raise EditError(f"{edit.op}: `{edit.code}` must end in a statement")
        return _with_leading(list(module.body), [*module.header, *_leading(module.body[0])])

    # Nothing may be lost -------------------------------------------------------------------------------------------

    def _whole_range(self, node: cst.CSTNode) -> Range:
        span = _plain(self.get_metadata(PositionProvider, node))
        decorators = getattr(node, "decorators", ())
        return (_plain(self.get_metadata(PositionProvider, decorators[0]))[0] if decorators else span[0]), span[1]

    def _drop(self, edit: Edit, span: Range) -> None:
        """`edit` does away with the source of `span`: any other edit in there would be lost."""
        own = next(target for other, target in self.edits if other is edit)
        for other, target in self.edits:
            beside = other.op in _INSERTS and target == own
            if (
                other is not edit
                and other.op != "import"
                and not beside
                and span[0] <= target[0]
                and target[1] <= span[1]
            ):
                row, column = other.start
                raise EditError(
                    f"the edit at {row}:{column + 1} lies inside what {edit.op} at line {edit.start[0]} replaces"
                )
        self.placed.add(edit)

    # Imports -------------------------------------------------------------------------------------------------------

    def _with_imports(self, body: list[Any]) -> list[Any]:
        for edit, _ in self.edits:
            if edit.op == "import":
                body = self._with_import(body, edit)
                self.placed.add(edit)
        return body

    def _with_import(self, body: list[Any], edit: Edit) -> list[Any]:
        module, name = edit.code.strip(), edit.name.strip()
        line = f"from {module} import {name}" if name else f"import {module}"
        statement = self._parsed_statements(Edit("import", (0, 0), (0, 0), line))[0]
        wanted = [binding for small in _small_statements(statement) for binding in _bindings(small)]
        bound = list(_all_bindings(body))
        missing = [item for item in wanted if not any(_satisfies(other, item) for other in bound)]
        if not missing:
            return body
        for other in bound:
            if any(_clashes(other, item) for item in missing):
                raise EditError(f"`{other[0]}` already means {other[1] or 'something else'} in this file")
        index = _import_index(body, module)
        if index == 0 or _is_import(body[index - 1]):
            blank: list[cst.EmptyLine] = []
        else:
            blank = [cst.EmptyLine(indent=False)]  # after the docstring
        after = body[index:]
        if index == 0 and after and _is_import(after[0]):
            statement, after[:1] = _with_leading([statement], list(_leading(after[0])))[0], _with_leading(after[:1], [])
        elif after and not _is_import(after[0]) and not _starts_with_blank(after[0]):
            after[:1] = _with_leading(after[:1], [cst.EmptyLine(indent=False), *_leading(after[0])])
        return [*body[:index], *_with_leading([statement], [*blank, *_leading(statement)]), *after]


# Expressions -------------------------------------------------------------------------------------------------------


def _enclosed(new: cst.BaseExpression, parent: cst.CSTNode) -> cst.BaseExpression:
    """`new`, in parentheses where it would otherwise bind differently under `parent`."""
    if new.lpar:
        return new
    bare = isinstance(new, _ATOMS) or (isinstance(parent, _DELIMITERS) and not isinstance(new, _NEVER_BARE))
    if isinstance(new, cst.Integer) and isinstance(parent, cst.Attribute):
        bare = False  # `1.real` is a syntax error
    return new if bare else new.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _with_first(call: cst.Call, value: cst.BaseExpression) -> cst.Call:
    """`call` with `value` before its other arguments."""
    comma = cst.Comma(whitespace_after=_between(call)) if call.args else cst.MaybeSentinel.DEFAULT
    first = cst.Arg(value, comma=comma)
    rest = list(call.args)
    if rest and isinstance(rest[0].value, cst.GeneratorExp) and not rest[0].value.lpar:
        rest[0] = rest[0].with_changes(
            value=rest[0].value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        )
    return call.with_changes(args=[first, *rest])


def _with_named(call: cst.Call, index: int, name: str) -> cst.Call:
    """`call` with its positional argument at `index` passed as `name=…`."""
    args = list(call.args)
    if not 0 <= index < len(args) or args[index].keyword is not None or args[index].star:
        raise EditError(f"name_argument: the call passes nothing by position for `{name}`")
    bare = cst.SimpleWhitespace("")
    args[index] = args[index].with_changes(keyword=cst.Name(name), equal=cst.AssignEqual(bare, bare))
    return call.with_changes(args=args)


def _with_argument(call: cst.Call, name: str, value: cst.BaseExpression) -> cst.Call:
    """`call` with `name=value` after its other arguments, but before any `**kwargs`."""
    arg = cst.Arg(
        value, keyword=cst.Name(name), equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
    )
    args = [*call.args]
    index = next((i for i, other in enumerate(args) if other.star == "**"), len(args))
    if index < len(args):
        return call.with_changes(
            args=[*args[:index], arg.with_changes(comma=cst.Comma(whitespace_after=_between(call))), *args[index:]]
        )
    if not args:
        return call.with_changes(args=[arg])
    last = args[-1]
    if isinstance(last.value, cst.GeneratorExp) and not last.value.lpar:
        last = last.with_changes(value=last.value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]))
    if isinstance(last.comma, cst.Comma):  # a trailing comma: the new argument gets one as well
        closing = last.comma.whitespace_after
        arg = arg.with_changes(comma=last.comma.with_changes(whitespace_after=_without_comment(closing)))
        comma = last.comma.with_changes(whitespace_after=_comment_of(closing, _between(call)))
        args[-1] = last.with_changes(comma=comma)
    else:
        closing = last.whitespace_after_arg
        arg = arg.with_changes(whitespace_after_arg=_without_comment(closing))
        comma = cst.Comma(whitespace_after=_comment_of(closing, _between(call)))
        args[-1] = last.with_changes(comma=comma, whitespace_after_arg=cst.SimpleWhitespace(""))
    return call.with_changes(args=[*args, arg])


def _without_argument(call: cst.Call, index: int) -> cst.Call:
    args = [*call.args]
    gone = args.pop(index)
    if not args:
        opening = call.whitespace_before_args
        commented = isinstance(opening, cst.ParenthesizedWhitespace) and _has_comment(opening)
        return call.with_changes(args=[], whitespace_before_args=opening if commented else cst.SimpleWhitespace(""))
    if index == 0:
        return call.with_changes(args=args)
    before = args[index - 1]
    assert isinstance(before.comma, cst.Comma)
    space = before.comma.whitespace_after
    if index < len(args):  # from the middle: keep a line break on either side of what goes
        if isinstance(space, cst.SimpleWhitespace) and isinstance(gone.comma, cst.Comma):
            space = _without_comment(gone.comma.whitespace_after)
        args[index - 1] = before.with_changes(comma=before.comma.with_changes(whitespace_after=space))
    elif isinstance(gone.comma, cst.Comma):
        closing = _comment_of(space, _without_comment(gone.comma.whitespace_after))
        args[index - 1] = before.with_changes(comma=gone.comma.with_changes(whitespace_after=closing))
    else:
        closing = _comment_of(space, _without_comment(gone.whitespace_after_arg))
        args[index - 1] = before.with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=closing)
    return call.with_changes(args=args)


def _between(call: cst.Call) -> cst.BaseParenthesizableWhitespace:
    """The white space that separates this call's arguments: a line break where each has its own line."""
    if len(call.args) > 1:
        comma = call.args[-2].comma
        space = comma.whitespace_after if isinstance(comma, cst.Comma) else cst.SimpleWhitespace(" ")
    else:
        space = call.whitespace_before_args
        if isinstance(space, cst.SimpleWhitespace):
            space = cst.SimpleWhitespace(" ")
    return _without_comment(space)


def _has_comment(space: cst.ParenthesizedWhitespace) -> bool:
    return bool(space.first_line.comment or any(line.comment for line in space.empty_lines))


def _without_comment(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return space
    first = space.first_line.with_changes(whitespace=cst.SimpleWhitespace(""), comment=None)
    return space.with_changes(first_line=first, empty_lines=())


def _comment_of(
    commented: cst.BaseParenthesizableWhitespace, space: cst.BaseParenthesizableWhitespace
) -> cst.BaseParenthesizableWhitespace:
    """`space`, with the comments found in `commented` (which end a line, so that a line break is then needed)."""
    if not isinstance(commented, cst.ParenthesizedWhitespace) or not _has_comment(commented):
        return space
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return commented
    return space.with_changes(first_line=commented.first_line, empty_lines=commented.empty_lines)


# Statements --------------------------------------------------------------------------------------------------------


def _is_statement(node: cst.CSTNode) -> TypeGuard[Statement]:
    return isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement)


def _leading(statement: cst.CSTNode) -> Sequence[cst.EmptyLine]:
    lines: Sequence[cst.EmptyLine] = getattr(statement, "leading_lines", ())
    return lines


def _with_leading(statements: Sequence[Any], lines: Sequence[cst.EmptyLine]) -> list[Any]:
    first, *rest = statements
    return [first if list(_leading(first)) == list(lines) else first.with_changes(leading_lines=tuple(lines)), *rest]


def _starts_with_blank(statement: cst.CSTNode) -> bool:
    lines = _leading(statement)
    return bool(lines) and lines[0].comment is None


def _comments_of(removed: cst.CSTNode) -> list[cst.EmptyLine]:
    """The lines above a removed statement, where a comment of the user's is among them."""
    lines = list(_leading(removed))
    return lines if any(line.comment for line in lines) else []


def _share_leading(
    before: list[Any], rest: list[Any], lines: list[cst.EmptyLine], definition: bool
) -> tuple[list[Any], list[Any]]:
    """Blank lines go in front of what is inserted; the comment right above a statement stays with it."""
    if not before:
        return before, _with_leading(rest, lines) if not _leading(rest[0]) else rest
    cut = len(lines)
    while cut and lines[cut - 1].comment:
        cut -= 1
    blank = lines[:cut]
    own = [*(line for line in blank if definition and not line.comment), *lines[cut:]]
    return _with_leading(before, [*blank, *_leading(before[0])]), _with_leading(rest, own)


def _pass(trailing: cst.TrailingWhitespace | None = None) -> cst.SimpleStatementLine:
    return cst.SimpleStatementLine([cst.Pass()], trailing_whitespace=trailing or cst.TrailingWhitespace())


def _without_last_semicolon(small: Sequence[cst.BaseSmallStatement]) -> list[cst.BaseSmallStatement]:
    return [*small[:-1], small[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)]


def _only_small_statement(statements: Sequence[cst.CSTNode]) -> cst.BaseSmallStatement | None:
    if len(statements) == 1 and isinstance(statements[0], cst.SimpleStatementLine):
        line = statements[0]
        if len(line.body) == 1 and not line.leading_lines and line.trailing_whitespace.comment is None:
            return line.body[0]
    return None


# Imports -----------------------------------------------------------------------------------------------------------


def _small_statements(statement: cst.CSTNode) -> Sequence[cst.BaseSmallStatement]:
    return statement.body if isinstance(statement, cst.SimpleStatementLine) else ()


def _is_import(statement: cst.CSTNode) -> bool:
    small = _small_statements(statement)
    return bool(small) and all(isinstance(node, cst.Import | cst.ImportFrom) for node in small)


def _dotted(node: cst.BaseExpression | None) -> str:
    if isinstance(node, cst.Attribute):
        return f"{_dotted(node.value)}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""


def _bindings(small: cst.BaseSmallStatement) -> Iterator[tuple[str, str]]:
    """Local name → what it stands for. `import a.b` binds `a`, and is told apart from `import a` by its target."""
    if isinstance(small, cst.Import):
        for alias in small.names:
            target = _dotted(alias.name)
            local = _dotted(alias.asname.name) if alias.asname and isinstance(alias.asname.name, cst.Name) else ""
            yield (local, target) if local else (target.partition(".")[0], f"{target}.*")
    elif isinstance(small, cst.ImportFrom) and not isinstance(small.names, cst.ImportStar):
        module = "." * len(small.relative) + _dotted(small.module)
        for alias in small.names:
            renamed = alias.asname.name if alias.asname else None
            name = renamed if isinstance(renamed, cst.Name) else alias.name
            yield _dotted(name), f"{module}.{_dotted(alias.name)}"
    elif isinstance(small, cst.Assign):
        for target_node in small.targets:
            if isinstance(target_node.target, cst.Name):
                yield target_node.target.value, ""


def _all_bindings(body: Sequence[cst.CSTNode]) -> Iterator[tuple[str, str]]:
    """Of a module's top level, also inside `try` and `if` (but not `if TYPE_CHECKING`)."""
    for statement in body:
        for small in _small_statements(statement):
            yield from _bindings(small)
        if isinstance(statement, cst.FunctionDef | cst.ClassDef):
            yield statement.name.value, ""
        elif isinstance(statement, cst.Try) or (
            isinstance(statement, cst.If) and not _dotted(statement.test).endswith("TYPE_CHECKING")
        ):
            yield from _all_bindings(statement.body.body)


def _satisfies(bound: tuple[str, str], wanted: tuple[str, str]) -> bool:
    """`import a` is satisfied by `import a.b`; `import a.b` only by itself or `import a.b.c`."""
    if wanted[1].endswith(".*") and bound[1].endswith(".*"):
        return f"{bound[1][:-2]}.".startswith(f"{wanted[1][:-2]}.")
    return bound == wanted


def _clashes(bound: tuple[str, str], wanted: tuple[str, str]) -> bool:
    """Whether both bind one name to different things; `import a.b` and `import a.c` both bind `a` to one package."""
    return bound[0] == wanted[0] and not (bound == wanted or (bound[1].endswith(".*") and wanted[1].endswith(".*")))


def _rank(module: str) -> int:
    top = module.partition(".")[0]
    return 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 2


def _imported_modules(statement: cst.CSTNode) -> list[str]:
    modules = []
    for small in _small_statements(statement):
        if isinstance(small, cst.Import):
            modules += [_dotted(alias.name) for alias in small.names]
        elif isinstance(small, cst.ImportFrom):
            modules.append("." * len(small.relative) + _dotted(small.module))
    return modules


def _import_index(body: Sequence[cst.CSTNode], module: str) -> int:
    """Where an import of `module` goes: next to its relatives, else at the end of its group of the first imports."""
    start = 1 if body and _is_docstring(body[0]) else 0
    end = start
    while end < len(body) and _is_import(body[end]):
        end += 1
    top = module.partition(".")[0]
    related = [i for i in range(start, end) if any(m.partition(".")[0] == top for m in _imported_modules(body[i]))]
    earlier = [i for i in range(start, end) if all(_rank(m) <= _rank(module) for m in _imported_modules(body[i]))]
    return max(related or earlier, default=start - 1) + 1


def _is_docstring(statement: cst.CSTNode) -> bool:
    small = _small_statements(statement)
    return (
        bool(small)
        and isinstance(small[0], cst.Expr)
        and isinstance(small[0].value, cst.SimpleString | cst.ConcatenatedString)
    )


# Differences -------------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    """Lines with their ends, split where Python and editors split (not at form feeds, as `str.splitlines` does)."""
    lines, start = [], 0
    for match in _NEWLINE.finditer(text):
        lines.append(text[start : match.end()])
        start = match.end()
    return [*lines, text[start:]] if start < len(text) else lines


def _shared_ends(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """How many items two sequences share at their beginning and, without overlap, at their end."""
    head, shortest = 0, min(len(old), len(new))
    while head < shortest and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < shortest - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return head, tail


def line_changes(old: list[str], new: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """Opcodes as `difflib` gives them, at little cost where beginning and end are the same."""
    head, tail = _shared_ends(old, new)
    middle = difflib.SequenceMatcher(None, old[head : len(old) - tail], new[head : len(new) - tail], autojunk=False)
    yield "equal", 0, head, 0, head
    for tag, a, b, c, d in middle.get_opcodes():
        yield tag, a + head, b + head, c + head, d + head
    yield "equal", len(old) - tail, len(old), len(new) - tail, len(new)


def _trimmed(lines: Sequence[str], row: int, old: str, new: str) -> dict[str, Any]:
    """One change, without the characters that both ends share. `row` counts `lines` from 0."""
    head, tail = _shared_ends(old, new)
    return {
        "content": new[head : len(new) - tail],
        "location": _place(lines, row, old[:head]),
        "end_location": _place(lines, row, old[: len(old) - tail]),
    }


def _place(lines: Sequence[str], row: int, passed: str) -> dict[str, int]:
    """The position reached from the start of line `row` (from 0) after the characters of `passed`."""
    whole = _lines(passed)
    if whole and not _NEWLINE.search(whole[-1]):
        return {"row": row + len(whole), "column": len(whole[-1]) + 1}
    if row + len(whole) >= len(lines) and lines and not _NEWLINE.search(lines[-1]):
        return {"row": len(lines), "column": len(lines[-1]) + 1}  # past a last line that has no newline
    return {"row": row + len(whole) + 1, "column": 1}
