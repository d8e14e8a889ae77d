"""A layer that writes out RMSNorm or LayerNorm, which torch has built in.

## What it finds
A class whose `forward` computes x / √(mean(x²) + ε) · γ over the last axis, or (x − μ) / √(σ² + ε) · γ + β, however it
is spelled: `rsqrt`, division by a root, `F.normalize(x) * sqrt(d)`, with or without the detour through float32, with
weight `1 + w`, in helper methods. A run confirms it: outputs and gradients are compared in float64 on rows of scale
1e-3 to 1e3.

## Why it matters
Nothing is wrong with the result. The built-in function is one call that upcasts half precision by itself, returns the
dtype of its input, and keeps fewer intermediate tensors for the backward pass; and what is not written by hand cannot
have ε in the wrong place. The fix keeps the class and the names of its parameters, so that checkpoints load; in new
code use `nn.RMSNorm(dim, eps)` itself.

## Example
    class RMSNorm(nn.Module):
        def __init__(self, dim, eps=1e-6):
            super().__init__()
            self.eps = eps
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight

## Use instead
    class RMSNorm(nn.Module):
        def __init__(self, dim, eps=1e-6):
            super().__init__()
            self.eps = eps
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

## When to ignore it
Where bit-equal results with an older run in half precision matter (the order of rounding differs by one unit in the
last place), or a torch older than 2.4 must be supported. An input in half precision with a weight in float32 gives
half precision, where some hand-written forms give float32. At rows that are exactly zero the gradient of
`F.normalize` differs by a factor, at a size (1e12) that is useless either way.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.RMSNorm.html
- Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019
- Ba, Kiros and Hinton, "Layer Normalization", 2016
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Severity
from auditor.fix.claims import ROWS, gradients, outputs, parameters, state_dict_keys
from auditor.fix.edit import Edit, remove, replace
from auditor.rule import Category, Rule
from auditor.static.facts.arithmetic import hand_written_norm
from auditor.static.facts.spelling import spelled
from auditor.static.source import Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.surgery import Surgery

rule = Rule(
    __name__,
    code="NRM008",
    category=Category.SIMPLICITY,
    severity=Severity.INFO,
    summary="hand-written RMSNorm or LayerNorm",
    triggers=("sqrt", "normalize(", "-0.5", "0.5)"),
    thresholds={"relative difference, float64": 1e-10, "relative difference where it casts to float32": 5e-6},
    since="2.4",
)

NAMES = {"rms_norm": "RMSNorm", "layer_norm": "LayerNorm"}


@rule.static
def written_out(source: Source) -> Iterator[Finding]:
    """A module class whose own `forward` has exactly the form of a built-in norm."""
    for facts in source.module_classes:
        if facts.forward is None or isinstance(source.tree.parent(facts.node), (ast.If, ast.Try)):
            continue  # a class defined on a condition is a fallback for versions without the built-in one
        norm = hand_written_norm(source, facts)
        if norm is not None:
            yield rule.finding(facts.node, _message(facts.name, norm.function, norm.epsilon))


@rule.dynamic
def computes_the_same(capture: Capture) -> Iterator[Finding]:
    """A layer of the user's own that gives what the reference gives, and calls no built-in norm itself."""
    from auditor.dynamic.capture import class_location
    from auditor.dynamic.norms import measured_norm

    seen: set[type] = set()
    for path, facts in capture.modules.items():
        shape = facts.in_shape.get("eval") or facts.in_shape.get("train")
        cls = type(facts.module)
        if facts.kind.startswith("torch.") or not shape or cls in seen or any(facts.module.children()):
            continue
        seen.add(cls)
        mode = "eval" if facts.in_shape.get("eval") else "train"
        calls = {node.operation for node in capture.nodes(mode) if node.module == path}
        location = class_location(cls)
        if not calls or calls & {"rms_norm", "layer_norm"} or (_installed(location.path) and not capture.in_memory):
            continue
        norm = measured_norm(facts.module, shape[-1], len(shape))
        if norm is not None:
            paths = [p for p, other in capture.modules.items() if type(other.module) is cls]
            message = _message(cls.__name__, norm.function, f"{norm.epsilon:g}")
            yield rule.finding(location, message, modules=paths, epsilon=norm.epsilon, difference=norm.error)


def _message(name: str, function: str, epsilon: str) -> str:
    return (
        f"`{name}` writes out {NAMES[function]} (ε = `{epsilon}` under the root); "
        f"`F.{function}` gives the same outputs and gradients in one call"
    )


def _installed(path: str) -> bool:
    return not path or "site-packages" in path or "dist-packages" in path


@rule.fix(
    "call the built-in function, keeping the class and its parameters",
    applicability="unsafe",
    keeps=[
        parameters(),
        state_dict_keys(),
        outputs(mode="eval"),
        outputs(mode="train"),
        gradients(mode="train", rows=tuple(row for row in ROWS if row != "zero")),
    ],
)
def call_the_built_in(source: Source, finding: Finding) -> list[Edit] | None:
    node = source.node_at(finding.location, ast.ClassDef)
    facts = source.module_class(node) if isinstance(node, ast.ClassDef) else None
    norm = hand_written_norm(source, facts) if facts is not None else None
    if facts is None or facts.forward is None or norm is None:
        return None
    functional, imports = spelled(source, "torch.nn.functional", facts.forward)
    body = [statement for statement in facts.forward.body if not _is_docstring(statement)]
    return [replace(body[0], f"return {norm.call(functional)}"), *map(remove, body[1:]), *imports]


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@rule.rewrite(title="use the built-in layer, with the same parameters and ε")
def built_in_layers(surgery: Surgery, finding: Finding) -> None:
    for path in finding.modules:
        surgery.use_built_in_norm(path)
