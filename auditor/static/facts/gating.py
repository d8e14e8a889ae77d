"""Whether code and rates follow a module's mode: `if self.training`, early returns, `p if self.training else 0.0`.

What rules about random layers ask: does this call also run in eval mode, and with a rate that nothing sets to 0 there?
Only what can be proved from the file counts; a rate or a caller that it does not show is unknown.
"""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.static.constants import enclosing_scope, parameter_default
from auditor.static.source import HIDDEN
from auditor.static.tree import walk

if TYPE_CHECKING:
    from auditor.static.classes import Attribute, Function, ModuleClass
    from auditor.static.source import Source

_DEPTH = 4
# Parts of a name that say it holds, or asks for, the mode.
_MODE_WORDS = frozenset({
    "train", "training", "trains", "istrain", "istraining", "eval", "evaluating", "evaluation", "iseval", "inference",
    "infer", "inferring", "predict", "prediction", "predicting", "test", "testing", "istest", "deterministic",
})  # fmt: skip
_TRAINING_WORDS = frozenset({"train", "training"})
_STARTS = frozenset(
    {"__init__", "__new__", "__post_init__", "setup", "reset_parameters", "init_weights", "_init_weights"}
)
_LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)

# Names and words that say a random layer is meant to stay on.
_ON_NAMES = r"(?i)pre_?net|always|mc_?drop|monte_?carlo|bayes|uncertain|nois[ey]|augment|perturb|corrupt"
_ON_WORDS = (
    r"(?is)always (?:be )?(?:on|active|enabled|appl|drop|us|random)|monte.?carlo|\bmc.?drop|(?:non|not).?determinis"
    r"|bayesian"
    r"|(?:even|also|still)\b.{0,40}?\b(?:eval|infer|test|predict|synthes)|on purpose|intentional|deliberate|uncertainty"
    r"|regardless of .{0,20}(?:mode|training)"
)


def means_mode(name: str) -> bool:
    """Whether an identifier speaks of training and evaluation: `is_training`, `deterministic`."""
    return not _MODE_WORDS.isdisjoint(name.lower().split("_"))


# What follows the mode ---------------------------------------------------------------------------------------------


def follows_mode(source: Source, expression: ast.AST, depth: int = _DEPTH) -> bool:
    """Whether the value of `expression` may depend on the mode, also through variables, attributes and methods."""
    for node in walk(expression):
        match node:
            case ast.Name(id=name):
                if means_mode(name) or (depth and _variable_follows(source, node, depth)):
                    return True
            case ast.Attribute(attr=attr):
                if means_mode(attr) or (depth and _attribute_follows(source, node, depth)):
                    return True
            case ast.Constant(value=str() as text):
                if means_mode(text):
                    return True
    return False


def _variable_follows(source: Source, name: ast.Name, depth: int) -> bool:
    function = source.function_of(name)
    for store in source.names.stores(name.id):
        if store is not name and function is not None and source.function_of(store) is function:
            statement = source.statement_of(store)
            value = getattr(statement, "value", None)
            if gated(source, statement, depth - 1) or (value is not None and follows_mode(source, value, depth - 1)):
                return True
    return False


def _attribute_follows(source: Source, attribute: ast.Attribute, depth: int) -> bool:
    if not (isinstance(attribute.value, ast.Name) and attribute.value.id in ("self", "cls")):
        return False
    owner = source.class_of(attribute)
    facts = source.module_class(owner) if owner is not None else None
    if facts is None:
        return False
    method = facts.method(attribute.attr)
    if method is not None:
        return any(_speaks_of_mode(node) for node in walk(method))
    return any(
        follows_mode(source, held.value, depth - 1) or (held.conditional and gated(source, held.statement, depth - 1))
        for held in facts.attributes.get(attribute.attr, [])
    )


def _speaks_of_mode(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return means_mode(name)


def gated(source: Source, node: ast.AST, depth: int = _DEPTH) -> bool:
    """Whether `node` is reached only on a condition that looks at the mode, within its method."""
    below = node
    for above in source.tree.ancestors(node):
        if isinstance(above, ast.ClassDef):
            return False
        if isinstance(above, (ast.If, ast.IfExp, ast.While)) and below is not above.test:
            if follows_mode(source, above.test, depth):
                return True
        elif isinstance(above, ast.BoolOp):
            earlier = above.values[: above.values.index(below)] if below in above.values else []
            if any(follows_mode(source, value, depth) for value in earlier):
                return True
        if any(_leaves_by_mode(source, statement, depth) for statement in _before(above, below)):
            return True
        below = above
    return False


def _before(above: ast.AST, below: ast.AST) -> list[ast.stmt]:
    """The statements of the same block that come before `below`."""
    for field in ("body", "orelse", "finalbody"):
        block = getattr(above, field, None)
        if isinstance(block, list) and below in block:
            return block[: block.index(below)]
    return []


def _leaves_by_mode(source: Source, statement: ast.stmt, depth: int) -> bool:
    match statement:
        case ast.Assert(test=test):
            return follows_mode(source, test, depth)
        case ast.If(test=test, body=body, orelse=orelse):
            leaves = any(block and isinstance(block[-1], _LEAVES) for block in (body, orelse))
            return leaves and follows_mode(source, test, depth)
    return False


# What runs in eval -------------------------------------------------------------------------------------------------


def runs_in_eval(source: Source, node: ast.AST, depth: int = _DEPTH) -> bool:
    """Whether `node` belongs to what a module of this file computes in eval mode too: it stands in a method of it, or
    in a function that such a method calls, and no condition on the way looks at the mode."""
    function = source.function_of(node)
    if function is None or not depth or gated(source, node) or _switched(source, node, function):
        return False
    if not _TRAINING_WORDS.isdisjoint(function.name.lower().split("_")) or _is_handed_over(source, node):
        return False
    sites = call_sites(source, function)
    if is_method(source, function) and not sites:
        return function.name not in _STARTS
    return any(runs_in_eval(source, site, depth - 1) for site in sites)


def is_method(source: Source, function: Function) -> bool:
    """Whether `function` is a method of a module class that gets the module as its first argument."""
    owner = source.tree.parent(function)
    static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)
    return isinstance(owner, ast.ClassDef) and source.module_class(owner) is not None and not static


def _switched(source: Source, node: ast.AST, function: Function) -> bool:
    """Whether a flag that the caller passes, or that another method sets, decides over `node`."""
    below = node
    for above in source.tree.ancestors(node):
        if above is function:
            return False
        if isinstance(above, (ast.If, ast.IfExp)) and below is not above.test:
            parts = above.test.values if isinstance(above.test, ast.BoolOp) else [above.test]
            if any(_is_flag(source, part, function) for part in parts):
                return True
        below = above
    return False


def _is_flag(source: Source, test: ast.expr, function: Function) -> bool:
    if isinstance(test, ast.UnaryOp):
        return _is_flag(source, test.operand, function)
    if isinstance(test, ast.Name):
        return parameter_default(function, test.id)[0]
    match test:
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            owner = source.class_of(test)
            facts = source.module_class(owner) if owner is not None else None
            return facts is not None and any(held.method.name != "__init__" for held in facts.attributes.get(attr, []))
    return False


def _is_handed_over(source: Source, node: ast.AST) -> bool:
    """Whether `node` stands in a lambda that is an argument of a call, such as a hook."""
    return any(
        isinstance(above, ast.Lambda) and isinstance(source.tree.parent(above), (ast.Call, ast.keyword))
        for above in source.tree.ancestors(node)
    )


def call_sites(source: Source, function: Function) -> list[ast.Call]:
    """The calls in this file that reach `function`: `self.f(…)` for a method, `f(…)` in its scope for others."""
    owner = source.tree.parent(function)
    found = []
    for call in source.calls_named(function.name):
        if isinstance(owner, ast.ClassDef):
            reached = isinstance(call.func, ast.Attribute) and _is_self(call.func.value, owner.name)
        else:
            reached = isinstance(call.func, ast.Name) and _sees(source, call, function)
        if reached and source.function_of(call) is not function:
            found.append(call)
    return found


def _is_self(value: ast.expr, owner: str) -> bool:
    match value:
        case ast.Name(id=name):
            return name in ("self", "cls", owner)
        case ast.Call(func=ast.Name(id="super")):
            return True
    return False


def _sees(source: Source, call: ast.Call, function: Function) -> bool:
    scope = enclosing_scope(source, function)
    return isinstance(scope, ast.Module) or any(above is scope for above in source.tree.ancestors(call))


# Rates -------------------------------------------------------------------------------------------------------------


class Rate(enum.Enum):
    """What a dropout rate does in eval mode."""

    ZERO = "zero"
    FOLLOWS = "follows the mode"
    ALWAYS = "always on"
    UNKNOWN = "unknown"


def is_global(source: Source, name: ast.Name) -> bool:
    """Whether the file's top level assigns `name`, and no function around it has a variable of that name."""
    stores = source.names.stores(name.id)
    for above in source.tree.ancestors(name):
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            parameter_default(above, name.id)[0] or any(enclosing_scope(source, store) is above for store in stores)
        ):
            return False
    return any(isinstance(enclosing_scope(source, store), ast.Module) for store in stores)


def rate_in_eval(source: Source, expression: ast.expr, depth: int = _DEPTH) -> tuple[Rate, tuple[ast.expr, ...]]:
    """What the rate `expression` is in eval mode; for ALWAYS also the expressions that would have to look at the mode:
    itself or, where it is a parameter, what the file's own calls pass."""
    if follows_mode(source, expression, depth):
        return Rate.FOLLOWS, ()
    always = (Rate.ALWAYS, (expression,))
    match expression:
        case ast.Constant(value=bool() | None):
            return Rate.UNKNOWN, ()
        case ast.Constant(value=int() | float() as value):
            return always if value > 0 else (Rate.ZERO, ())
        case ast.Name():
            return _variable_in_eval(source, expression, depth)
        case ast.Attribute():
            return always if _is_fixed(source, expression) else _zero_or_unknown(source, expression)
        case ast.BinOp(left=left, right=right):
            rates = {rate_in_eval(source, side, depth - 1)[0] for side in (left, right)} if depth else {Rate.UNKNOWN}
            return always if rates == {Rate.ALWAYS} else (Rate.UNKNOWN, ())
        case ast.Call(func=ast.Name(id="float" | "abs"), args=[argument]) if depth:
            rate, origins = rate_in_eval(source, argument, depth - 1)
            return rate, (expression,) if rate is Rate.ALWAYS and origins == (argument,) else origins
    return Rate.UNKNOWN, ()


def _variable_in_eval(source: Source, name: ast.Name, depth: int) -> tuple[Rate, tuple[ast.expr, ...]]:
    function = source.function_of(name)
    stores = [store for store in source.names.stores(name.id) if source.function_of(store) is function]
    if function is not None and parameter_default(function, name.id)[0]:
        return (Rate.UNKNOWN, ()) if stores or not depth else _parameter_in_eval(source, function, name.id, depth)
    if function is not None and not stores:
        function = None
        stores = [s for s in source.names.stores(name.id) if isinstance(enclosing_scope(source, s), ast.Module)]
    parents = [source.tree.parent(store) for store in stores]
    if (
        len(parents) != 1
        or not isinstance(parents[0], (ast.Assign, ast.AnnAssign))
        or not parents[0].value
        or not depth
    ):
        return Rate.UNKNOWN, ()
    rate, origins = rate_in_eval(source, parents[0].value, depth - 1)
    # A global keeps its name where the rate is used; a local is best mended where it is set.
    return rate, ((name,) if rate is Rate.ALWAYS and function is None else origins)


def _parameter_in_eval(source: Source, function: Function, name: str, depth: int) -> tuple[Rate, tuple[ast.expr, ...]]:
    """The rates that calls in this file pass as the parameter `name`."""
    positional = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    index = positional.index(name) - is_method(source, function) if name in positional else None
    default = parameter_default(function, name)[1]
    found: list[tuple[Rate, tuple[ast.expr, ...]]] = []
    for site in call_sites(source, function):
        given = source.argument(site, name, index)
        if given is HIDDEN or not runs_in_eval(source, site):
            continue
        if isinstance(given, ast.expr):
            found.append(rate_in_eval(source, given, depth - 1))
        elif default is not None:
            found.append(rate_in_eval(source, default, 0))
    origins = tuple(origin for rate, inner in found if rate is Rate.ALWAYS for origin in inner)
    if origins:
        return Rate.ALWAYS, tuple(dict.fromkeys(origins))
    known = {rate for rate, _ in found}
    return (known.pop() if len(known) == 1 else Rate.UNKNOWN), ()


def _held(source: Source, expression: ast.Attribute) -> tuple[ModuleClass, list[Attribute], bool] | None:
    """The class, the assignments and whether it goes on (`self.drop.p`) of an attribute chain that starts at `self`."""
    chain, inner = 0, expression
    while isinstance(inner.value, ast.Attribute):
        inner, chain = inner.value, chain + 1
    owner = source.class_of(expression)
    facts = source.module_class(owner) if owner is not None else None
    if facts is None or not isinstance(inner.value, ast.Name) or inner.value.id != "self":
        return None
    if facts.method(inner.attr) is not None:
        return facts, [], bool(chain)
    return facts, facts.attributes.get(inner.attr, []), bool(chain)


def _is_fixed(source: Source, expression: ast.Attribute) -> bool:
    """Whether the constructor sets this attribute once for both modes, to something that can be above zero."""
    held = _held(source, expression)
    if held is None:
        return False
    facts, assigned, chained = held
    if not assigned or facts.method("train") is not None or facts.method("eval") is not None:
        return False
    if any(item.method.name != "__init__" for item in assigned):
        return False
    return chained or not any(_is_nothing(item.value) for item in assigned)


def _is_nothing(value: ast.expr) -> bool:
    """A literal zero, or no number at all."""
    return isinstance(value, ast.Constant) and not (isinstance(value.value, (int, float)) and value.value > 0)


def _zero_or_unknown(source: Source, expression: ast.Attribute) -> tuple[Rate, tuple[ast.expr, ...]]:
    held = _held(source, expression)
    zero = held is not None and held[1] and not held[2] and all(_is_nothing(item.value) for item in held[1])
    return (Rate.ZERO if zero else Rate.UNKNOWN), ()


def switched_off(source: Source, rate: ast.expr) -> str | None:
    """The code `rate if self.training else 0.0`; None where there is no module to ask."""
    method = source.method_of(rate)
    if method is None or not is_method(source, method[1]) or method[1].name in _STARTS:
        return None
    return f"{ast.unparse(rate)} if {method[1].args.args[0].arg}.training else 0.0"


# What is meant -----------------------------------------------------------------------------------------------------


def is_meant(source: Source, node: ast.AST) -> bool:
    """Whether a comment at `node`, a docstring around it or a name around it says that randomness is to stay on."""
    statement = source.statement_of(node)
    lines = source.lines
    if any(re.search(_ON_WORDS, line) for line in _comments(lines, statement)):
        return True
    for above in (statement, *source.tree.ancestors(statement)):
        if isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            described = ast.get_docstring(above, clean=False) or ""
            if re.search(_ON_NAMES, above.name) or ("drop" in described.lower() and re.search(_ON_WORDS, described)):
                return True
            header = lines[above.lineno - 1 : above.body[0].lineno - 1]
            if any(re.search(_ON_WORDS, line.partition("#")[2]) for line in header):
                return True
    return False


def _comments(lines: list[str], statement: ast.stmt) -> Iterator[str]:
    """Comments on the lines of a statement (a compound one's head) and on the lines right above it."""
    last = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    if body:
        last = body[0].lineno - 1
    for line in lines[statement.lineno - 1 : last]:
        yield line.partition("#")[2]
    row = statement.lineno - 1
    while row > 0 and lines[row - 1].lstrip().startswith("#"):
        row -= 1
    yield " ".join(line.strip().lstrip("#") for line in lines[row : statement.lineno - 1])
