"""Mixed precision by the names that are bound to one kind of device.

## What it finds
Uses of `torch.cuda.amp.autocast`, `GradScaler`, `custom_fwd`, `custom_bwd` and of their `torch.cpu.amp` twins.

## Why it matters
They are deprecated since torch 2.4 and warn at every construction. `torch.amp` has one of each for all devices, told by
an argument, so that a model that moves to another accelerator need not be rewritten.

## Example
    def step(model, x):
        with torch.cuda.amp.autocast(dtype=torch.bfloat16):
            return model(x)

## Use instead
    def step(model, x):
        with torch.amp.autocast("cuda", dtype=torch.bfloat16):
            return model(x)

## When to ignore it
Code that must run with torch before 2.4.

## References
- https://pytorch.org/docs/stable/amp.html
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, name_argument, prepend_argument, replace, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import Use, guarded, new_name, rename, uses
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API006",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="mixed precision by names that are bound to one kind of device",
    triggers=("cuda.amp", "cpu.amp", "cuda import amp", "cpu import amp"),
    since="2.4",
)

AUTOCAST = {
    f"torch.{device}.{home}.autocast": device for device in ("cuda", "cpu") for home in ("amp", "amp.autocast_mode")
}
SCALER = {
    f"torch.{device}.{home}.GradScaler": device for device in ("cuda", "cpu") for home in ("amp", "amp.grad_scaler")
}
CUSTOM = {
    f"torch.cuda.amp.{home}{name}": "cuda" for home in ("", "autocast_mode.") for name in ("custom_fwd", "custom_bwd")
}
DEVICES = {**AUTOCAST, **SCALER, **CUSTOM}
NEW = {name: "torch.amp." + name.rpartition(".")[2] for name in DEVICES}
PARAMETERS = ("enabled", "dtype", "cache_enabled")  # of the old autocast, by position


@rule.static
def bound_to_a_device(source: Source) -> Iterator[Finding]:
    for use, name in uses(source, DEVICES):
        if (_made(source, use) or name in CUSTOM) and not guarded(source, use):
            yield rule.finding(use, f"`{name}` is deprecated: `{NEW[name]}` is told the device")


def _made(source: Source, use: Use) -> bool:
    """Whether the use constructs one, which warns: naming the class in an annotation does not."""
    parent = source.tree.parent(use)
    return isinstance(parent, ast.Call) and parent.func is use


@rule.fix("say the device to `torch.amp`", keeps=[parameters(), outputs()])
def told_the_device(source: Source, finding: Finding) -> list[Edit] | None:
    use = source.node_at(finding.location, ast.Attribute, ast.Name)
    if not isinstance(use, Use):
        return None
    name = min(source.resolve(use))
    if name in CUSTOM and not _made(source, use):  # a decorator without parentheses
        code, imports = new_name(source, use, NEW[name])
        return [replace(use, f'{code}(device_type="cuda")'), *imports]
    return rename(source, use, NEW, _adapt)


def _adapt(source: Source, call: ast.Call) -> Sequence[Edit] | None:
    """The device goes first; what `autocast` took by position goes by name, since its order is another one now."""
    name = min(source.resolve(call.func))
    if name in CUSTOM:
        return [set_argument(call, "device_type", '"cuda"')]
    edits = []
    if name in AUTOCAST:
        if any(isinstance(argument, ast.Starred) for argument in call.args):
            return None
        edits = [name_argument(call, index, PARAMETERS[index]) for index in reversed(range(len(call.args)))]
    return [*edits, prepend_argument(call, f'"{DEVICES[name]}"')]
