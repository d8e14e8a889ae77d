"""A device written into the forward of a module.

## What it finds
`.cuda()`, `.to("cuda")`, `device="cuda:0"` or `torch.cuda.FloatTensor(…)` in the `forward` of a module, or in a method
of its own that it calls, where no condition looks at the device first.

## Why it matters
The module runs on that one device whatever `model.to(device)` says: it raises on a machine without CUDA, when it is
exported or tested on a CPU, and on the second GPU of a job ("expected all tensors to be on the same device").

## Example
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(8, 8, batch_first=True)

        def forward(self, x):
            start = torch.zeros(1, x.size(0), 8).cuda()
            return self.rnn(x, start)[0]

## Use instead
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(8, 8, batch_first=True)

        def forward(self, x):
            start = torch.zeros(1, x.size(0), 8, device=x.device)
            return self.rnn(x, start)[0]

## When to ignore it
In a module around a kernel that exists for CUDA alone.

## References
- https://pytorch.org/docs/stable/notes/cuda.html#device-agnostic-code
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import parameters, runs
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule
from auditor.static.facts.device_literals import DeviceLiteral, device_literals
from auditor.static.source import Source
from auditor.static.tree import walk

rule = Rule(
    __name__,
    code="REG005",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="device written into a forward",
    triggers=("cuda",),
)

TENSOR_ATTRIBUTES = frozenset({"size", "shape", "device", "dtype", "dim", "view", "reshape", "new_zeros", "unsqueeze"})


@rule.static
def ties_to_cuda(source: Source) -> Iterator[Finding]:
    """A device literal that every run of the forward reaches."""
    for facts in source.module_classes:
        for found in device_literals(source, facts):
            message = (
                f"`{found.written}` in `{found.method.name}` ties `{facts.name}` to CUDA, whatever device it is on"
            )
            yield rule.finding(found.call, message)


@rule.fix(
    "use the device of the input",
    applicability="display-only",  # where there is no CUDA, what it was before cannot be run
    keeps=[parameters()],
    gains=[runs("eval", idempotent=True)],
)
def follow_the_input(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    for facts in source.module_classes:
        for found in device_literals(source, facts):
            if found.call is call:
                name = _input(found)
                return _follow(found.call, name) if name else None
    return None


def _input(found: DeviceLiteral) -> str:
    """The first parameter of the method that is surely a tensor."""
    for parameter in found.method.args.args[1:]:
        for node in walk(found.method):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=attr) if name == parameter.arg:
                    if attr in TENSOR_ATTRIBUTES:
                        return name
    return ""


def _follow(call: ast.Call, name: str) -> Edit | None:
    match call.func:
        case ast.Attribute(value=value, attr="cuda" | "to"):
            return replace(call, f"{ast.unparse(value)}.to({name}.device)")
        case ast.Attribute(attr="device"):
            return replace(call, f"{name}.device")
    for keyword in call.keywords:
        if keyword.arg == "device":
            return replace(keyword.value, f"{name}.device")
    return None
