"""A module's `forward` called by name.

## What it finds
`model.forward(x)` where `model(x)` is meant, on something that surely is an `nn.Module`.

## Why it matters
Calling the module runs its hooks; calling `forward` does not. Weight norm and spectral norm (old style), pruning,
feature extraction, profilers, quantisation observers, `torch.compile` and DistributedDataParallel's synchronisation
hang on the call: with `forward` they silently do nothing.

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 8)

        def forward(self, x):
            return self.body.forward(x)

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 8)

        def forward(self, x):
            return self.body(x)

## When to ignore it
Where the hooks are to be passed by, as in a hook that itself needs the layer's result.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.forward
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import gradients, outputs, parameters
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.values import held
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="TRN007",
    category=Category.ROBUSTNESS,
    severity=Severity.INFO,
    summary="`forward` called by name, past the module's hooks",
    triggers=(".forward(",),
)


@rule.static
def passes_hooks_by(source: Source) -> Iterator[Finding]:
    """`x.forward(…)` where everything that `x` can be is a layer or a module class of the file."""
    for call in source.calls_named("forward"):
        if isinstance(call.func, ast.Attribute) and _is_module(source, call.func.value) and not _in_hook(source, call):
            receiver = ast.unparse(call.func.value)
            message = f"`{receiver}.forward(…)` passes the hooks of `{receiver}` by; `{receiver}(…)` runs them"
            yield rule.finding(call, message)


def _is_module(source: Source, receiver: ast.expr) -> bool:
    match receiver:
        case ast.Name(id="self" | "cls") | ast.Attribute(attr="module"):  # its own, or what DataParallel wraps
            return False
        case ast.Name(id=name):
            layers = _looped_over(source, receiver, name)
            if layers:
                return True
    made = held(source, receiver) if isinstance(receiver, (ast.Name, ast.Attribute)) else []
    return bool(made) and all(source.layer_kind(call) for call in made)


def _looped_over(source: Source, receiver: ast.expr, name: str) -> bool:
    """Whether `name` runs over the layers of an attribute: `for layer in self.layers`."""
    method = source.method_of(receiver)
    for above in source.tree.ancestors(receiver) if method is not None else ():
        if isinstance(above, ast.For) and name in {n.id for n in walk(above.target) if isinstance(n, ast.Name)}:
            match above.iter:
                case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                    return isinstance(above.target, ast.Name) and bool(method and method[0].layers(attr))
    return False


def _in_hook(source: Source, call: ast.Call) -> bool:
    function = source.function_of(call)
    return function is not None and "hook" in function.name


@rule.fix(
    "call the module itself",
    keeps=[parameters(), outputs(mode="train"), outputs(mode="eval"), gradients(mode="train")],
)
def call_the_module(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    return replace(call.func, ast.unparse(call.func.value))
