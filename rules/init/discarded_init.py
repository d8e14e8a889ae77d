"""An initial value that is computed and thrown away.

## What it finds
Statements that look as if they filled a weight and only compute a new tensor: `torch.full(w.size(), 0)`,
`w.data.mul(0.1)`, `w.data.normal(0, 0.02)`.

## Why it matters
Only the methods that end in an underscore change a tensor. The others return a new one, which nobody keeps: the weight
stays as it was, and the model trains from another start than the code says. (Those without such a form, as
`w.data.normal`, raise when the line is first reached.)

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)
            torch.full(self.head.bias.size(), -2.0)

        def forward(self, x):
            return self.head(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)
            nn.init.constant_(self.head.bias, -2.0)

        def forward(self, x):
            return self.head(x)

## When to ignore it
Where a test or a benchmark calls the function for its own sake.

## References
- https://pytorch.org/docs/stable/tensor_view.html and the list of in-place methods in the reference of `torch.Tensor`
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters, repeatable
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.dropped_results import expects_error, is_weight, sized_like
from auditor.static.facts.initialisers import INIT
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="INI016",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="initial values that are computed and thrown away",
    triggers=(".weight", ".bias", "parameters("),
)

# Calls that make a tensor, and the initialiser that fills one so; {} is the argument that says with what.
CREATED = {
    "zeros": "zeros_({})", "ones": "ones_({})", "full": "constant_({}, {})", "randn": "normal_({})",
    "rand": "uniform_({})",
}  # fmt: skip
MISSING = {"normal", "uniform", "fill", "zero", "zeros", "ones", "constant", "copy", "random", "trunc_normal"}
REAL = {"mul", "div", "add", "sub", "clamp", "clip", "multiply", "masked_fill", "bernoulli", "fmod", "neg"}


@rule.static
def thrown_away(source: Source) -> Iterator[Finding]:
    """Statements that are nothing but such a call."""
    for statement in source.tree.all(ast.Expr):
        call = statement.value
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        tensor, method = _dropped(source, call), call.func.attr
        if tensor is None or expects_error(source, call):
            continue
        name = ast.unparse(tensor)
        if _created(source, call):
            yield rule.finding(call, f"this makes a new tensor and throws it away: `{name}` stays as it was")
        elif method in REAL:
            yield rule.finding(call, f"`{method}` does not change `{name}`, and its result is thrown away")
        else:
            yield rule.finding(call, f"a tensor has no `{method}`: only `{method}_` fills `{name}`")


def _dropped(source: Source, call: ast.Call) -> ast.expr | None:
    """The weight that a call, whose result is dropped, seems meant to change."""
    function = call.func
    if _created(source, call):
        given = [*call.args, *[word.value for word in call.keywords]]
        if any(word.arg == "out" for word in call.keywords):
            return None
        sized = [tensor for argument in given if (tensor := sized_like(argument)) is not None]
        return next((tensor for tensor in sized if is_weight(source, tensor)), None)
    if isinstance(function, ast.Attribute) and function.attr in MISSING | REAL and not source.resolve(function):
        return function.value if is_weight(source, function.value) else None
    return None


def _created(source: Source, call: ast.Call) -> str:
    """The name of the torch function, without `_like`, if the call makes a filled tensor."""
    names = source.resolve(call.func)
    tail = min(names).removeprefix("torch.").removesuffix("_like") if len(names) == 1 else ""
    return tail if tail in CREATED else ""


@rule.fix(
    "fill the tensor in place",
    applicability="unsafe",
    keeps=[parameters(values=False), repeatable(idempotent=True)],
)
def in_place(source: Source, finding: Finding) -> Sequence[Edit]:
    """Arithmetic on `.data` by its in-place form, a new tensor by the initialiser that fills one so."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return ()
    tensor, function = _dropped(source, call), call.func
    if tensor is None:
        return ()
    kind = _created(source, call)
    if not kind:
        return [replace(function, f"{_on_data(function.value)}.{function.attr}_")] if function.attr in REAL else ()
    value = source.argument(call, "fill_value", 1)
    if kind == "full" and not isinstance(value, ast.expr):
        return ()
    code, edits = spelled(source, INIT.rstrip("."), source.function_of(call) or call)
    filling = CREATED[kind].format(ast.unparse(tensor), ast.unparse(value) if isinstance(value, ast.expr) else "")
    return [replace(call, f"{code}.{filling}"), *edits]


def _on_data(tensor: ast.expr) -> str:
    """In-place arithmetic on a parameter that wants gradients raises."""
    code = ast.unparse(tensor)
    return code if code.endswith((".data", ".grad")) else f"{code}.data"
