"""Facts about one file, in the words rules speak: resolved names, calls, arguments, constants, module classes."""

from __future__ import annotations

import ast
import enum
import functools
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

from auditor.finding import Location
from auditor.static.classes import ModuleClass
from auditor.static.constants import enclosing_scope, evaluate
from auditor.static.names import Names, Resolver
from auditor.static.project import Link, holds, project
from auditor.static.tree import Tree

if TYPE_CHECKING:
    from auditor.static.flow import Flow

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Hidden(enum.Enum):
    """An argument that may be inside `*args` or `**kwargs`: neither given nor left out."""

    HIDDEN = "hidden"


HIDDEN: Final = Hidden.HIDDEN
_SETTABLE = (ast.Attribute, ast.Tuple)


class Source:
    """One parsed file. Raises SyntaxError if `text` is no Python."""

    def __init__(self, path: str, text: str, module: str = "") -> None:
        self.path = path
        self.text = text
        self.module = module
        self._flows: dict[tuple[ModuleClass, Function], Flow] = {}
        self._once: dict[tuple[object, ...], Any] = {}
        self._kinds: dict[ast.Call, str] = {}
        self.links: set[Link] = set()  # what the facts found out so far rest on in other files
        self.tree = Tree(ast.parse(text, filename=path, type_comments=False))

    def close(self) -> None:
        """Forget everything: the facts refer to each other, and would otherwise wait for the garbage collector."""
        self.__dict__.clear()

    def once(self, compute: Callable[[Source, *Arguments], T], *arguments: *Arguments) -> T:
        """`compute(self, *arguments)`, computed when it is first asked for."""
        key = (compute, *arguments)
        if key not in self._once:
            self._once[key] = compute(self, *arguments)
        found: T = self._once[key]
        return found

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text; line 1 is the first."""
        return self.text.split("\n")

    # Names and calls ------------------------------------------------------------------------------------------------

    @cached_property
    def names(self) -> Resolver:
        return Resolver(self.tree, self.module, lambda star, name: project().handed_on(self, star, name))

    def resolve(self, expression: ast.AST | None) -> Names:
        """The dotted names `expression` can stand for, through imports and aliases (empty: unknown)."""
        return self.names.resolve(expression)

    def is_any(self, expression: ast.AST | None, *names: str) -> bool:
        """Whether `expression` surely stands for one of `names`."""
        found = self.names.resolve(expression)
        return bool(found) and found <= set(names)

    @cached_property
    def _calls(self) -> dict[str, list[ast.Call]]:
        """Calls by the last part of the callee's name, after aliases."""
        index: dict[str, list[ast.Call]] = {}
        for call in self.tree.all(ast.Call):
            function = call.func
            if function.__class__ is ast.Attribute:
                index.setdefault(function.attr, []).append(call)  # type: ignore[attr-defined]
            elif function.__class__ is ast.Name:
                for name in self.names.aliases.get(function.id) or (function.id,):  # type: ignore[attr-defined]
                    index.setdefault(name.rpartition(".")[2], []).append(call)
        return index

    def calls_to(self, *names: str) -> list[ast.Call]:
        """Calls whose callee surely is one of these dotted names, in document order."""
        wanted, tails = _by_tail(names)
        found = {}
        for tail in tails:
            for call in self._calls.get(tail, ()):
                meanings = self.names.resolve(call.func)
                if meanings and meanings <= wanted:
                    found[call] = (call.lineno, call.col_offset)
        return sorted(found, key=found.__getitem__)

    def calls_named(self, *tails: str) -> list[ast.Call]:
        """Calls whose callee's last part is one of `tails`, resolved or not (`self.drop(x)`, `model.eval()`)."""
        found = {call: (call.lineno, call.col_offset) for tail in tails for call in self._calls.get(tail, ())}
        return sorted(found, key=found.__getitem__)

    def calls_through(self, alias: str) -> list[ast.Call]:
        """Calls of what is imported as `alias`, or of something in it (`models.resnet(…)`), in document order."""
        found = []
        for name in self.tree.names(alias):
            node: ast.AST = name
            above = self.tree.parent(node)
            while isinstance(above, ast.Attribute):
                node, above = above, self.tree.parent(above)
            if isinstance(above, ast.Call) and above.func is node:
                found.append(above)
        return found

    def calls_ending(self, ending: str) -> list[ast.Call]:
        """Calls whose callee's last part ends in `ending`, in document order of each name."""
        return [call for tail, calls in self._calls.items() if tail.endswith(ending) for call in calls]

    def argument(self, call: ast.Call, name: str, position: int | None = None) -> ast.expr | Hidden | None:
        """The argument called `name` (or at `position`); None if it is left out, HIDDEN if `*`/`**` may carry it."""
        hidden = False
        for keyword in call.keywords:
            if keyword.arg == name:
                return keyword.value
            hidden = hidden or keyword.arg is None
        if position is not None:
            for index, argument in enumerate(call.args):
                if isinstance(argument, ast.Starred):
                    hidden = True
                    break
                if index == position:
                    return argument
        return HIDDEN if hidden else None

    def constant(self, expression: ast.expr | Hidden | None, default: Any = None) -> Any:
        """The value of `expression` if it can be known without running anything, through variables bound once,
        defaults and simple arithmetic; otherwise `default`."""
        if expression is None or isinstance(expression, Hidden):
            return default
        return evaluate(self, expression, default)

    # Where things are -----------------------------------------------------------------------------------------------

    def function_of(self, node: ast.AST) -> Function | None:
        """The innermost named function around `node`."""
        for above in self.tree.ancestors(node):
            if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return above
        return None

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The innermost class around `node`."""
        for above in self.tree.ancestors(node):
            if isinstance(above, ast.ClassDef):
                return above
        return None

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """The innermost statement that contains `node`."""
        if isinstance(node, ast.stmt):
            return node
        return next(above for above in self.tree.ancestors(node) if isinstance(above, ast.stmt))

    def classes_around(self, row: int) -> list[str]:
        """The names of the classes whose body spans this row."""
        return [node.name for node in self.tree.all(ast.ClassDef) if node.lineno <= row <= (node.end_lineno or 0)]

    def method_of(self, node: ast.AST) -> tuple[ModuleClass, Function] | None:
        """The module class and its method in which `node` stands, also inside a nested function of that method."""
        method: Function | None = None
        for above in self.tree.ancestors(node):
            if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
                method = above
            elif isinstance(above, ast.ClassDef):
                module_class = self.module_class(above)
                return (module_class, method) if module_class and method else None
        return None

    def node_at(self, location: Location, *node_types: type[ast.AST]) -> ast.AST | None:
        """The node of these types with exactly this range; for a location of a run (a row only), the outermost node
        of these types that starts on the row, or else the innermost one that spans it."""
        best: ast.AST | None = None
        for node in self.tree.all(*node_types):
            row, end_row = node.lineno, node.end_lineno  # type: ignore[attr-defined]
            if location.end_row:
                exact = (row, node.col_offset + 1, end_row, node.end_col_offset + 1)  # type: ignore[attr-defined]
                if exact == (location.row, location.column, location.end_row, location.end_column):
                    return node
            elif row == location.row:
                return node
            elif row <= location.row <= end_row and (best is None or row >= best.lineno):  # type: ignore[attr-defined]
                best = node
        return best

    # Classes --------------------------------------------------------------------------------------------------------

    @cached_property
    def _classes(self) -> dict[ast.ClassDef, ModuleClass]:
        return {node: facts for node, facts in self.classes.items() if facts.is_module(self.classes)}

    @cached_property
    def classes(self) -> dict[ast.ClassDef, ModuleClass]:
        """Facts about all classes of this file, modules or not."""
        return {node: ModuleClass(self, node) for node in self.tree.all(ast.ClassDef)}

    @property
    def module_classes(self) -> list[ModuleClass]:
        """The classes of this file that are nn.Modules, as far as can be seen."""
        return list(self._classes.values())

    @cached_property
    def _classes_by_name(self) -> dict[str, ModuleClass]:
        return {facts.name: facts for facts in reversed(self._classes.values())}

    def module_class(self, node_or_name: ast.ClassDef | str) -> ModuleClass | None:
        """Facts about a module class of this file, by node or by name (the first of that name)."""
        if isinstance(node_or_name, str):
            return self._classes_by_name.get(node_or_name)
        return self._classes.get(node_or_name)

    @cached_property
    def constructions(self) -> dict[ast.AST | None, list[ast.Call]]:
        """The calls that construct layers (see `layer_kind`), by the innermost function or class around them."""
        found: dict[ast.AST | None, list[ast.Call]] = {}
        tails = [tail for tail in self._calls if tail[:1].isupper() or tail in self._classes_by_name]
        for call in self.calls_named(*tails):
            if self.layer_kind(call):
                found.setdefault(enclosing_scope(self, call), []).append(call)
        return found

    @cached_property
    def self_writes(self) -> dict[ast.AST | None, list[ast.AST]]:
        """What may set an attribute of `self`, by the innermost function around it, in document order."""
        written: list[ast.Assign | ast.AnnAssign | ast.Call] = []
        for assignment in self.tree.all(ast.Assign):
            if any(target.__class__ in _SETTABLE for target in assignment.targets):
                written.append(assignment)
        written += [node for node in self.tree.all(ast.AnnAssign) if node.target.__class__ in _SETTABLE]
        written += self.calls_named("add_module", "register_module", "setattr")
        found: dict[ast.AST | None, list[ast.AST]] = {}
        for node in sorted(written, key=lambda node: (node.lineno, node.col_offset)):
            found.setdefault(enclosing_scope(self, node), []).append(node)
        return found

    def layer_kind(self, expression: ast.AST | None) -> str:
        """For a call that constructs a layer: the layer's dotted name, or the name of a module class of this file.

        Empty when `expression` is no such call, or when its callee can mean several things.
        """
        if expression.__class__ is not ast.Call:
            return ""
        known = self._kinds.get(expression)  # type: ignore[arg-type]
        if known is None:
            known = self._kinds[expression] = self._layer_kind(expression)  # type: ignore[index, arg-type]
        return known

    def _layer_kind(self, call: ast.Call) -> str:
        names = self.names.resolve(call.func)
        if len(names) != 1:
            return ""
        (name,) = names
        tail = name.rpartition(".")[2]
        if name.startswith("torch.nn.") and tail[:1].isupper() and name != "torch.nn.Parameter":
            return name
        return name if self.module_class(name) else ""

    def flow(self, facts: ModuleClass, method: str = "forward") -> Flow | None:
        """How values flow through a method of a module class, computed once; None if it has no such method."""
        function = facts.method(method)
        if function is None:
            return None
        key = (facts, function)
        if key not in self._flows:
            from auditor.static.flow import Flow

            self._flows[key] = Flow(self, facts, function)
        return self._flows[key]

    def flows_meeting(self, calls: Collection[ast.Call]) -> Iterator[tuple[ModuleClass, Flow]]:
        """The module classes whose forward can meet what one of these calls gives, with the flow through it: a call
        stands in the class, in one that it inherits from, or outside of all of them."""
        around = [{above for above in self.tree.ancestors(call) if above in self._classes} for call in calls]
        meeting: set[ast.AST] = set().union(*around)
        everywhere = not all(around)
        for facts in self._classes.values() if calls else ():
            if everywhere or facts.node in meeting or any(parent.node in meeting for parent in facts.ancestors):
                flow = self.flow(facts)
                if flow is not None:
                    yield facts, flow


@functools.lru_cache(maxsize=1024)
def _by_tail(names: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Dotted names, and their last parts."""
    return frozenset(names), tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


_open: list[Source] = []


def opened(path: str, text: str, module: str = "") -> Source:
    """The facts about `text`. Those last asked for are kept until others are: what is found in a text is mended in it
    next. Raises SyntaxError if `text` is no Python."""
    if _open and (_open[0].path, _open[0].text, _open[0].module) == (path, text, module) and holds(_open[0].links):
        return _open[0]
    while _open:
        _open.pop().close()
    _open.append(Source(path, text, module))
    return _open[0]
