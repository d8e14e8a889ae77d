"""A rule to begin with: small, whole, and passing its tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from auditor.loader import CODE, FIXTURES
from auditor.rule import Rule

NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)+"

RULE = '''"""A call of `print` in a model's `forward`.

## What it finds
A statement that is nothing but a call of the built-in `print`, in the `forward` of an `nn.Module`.

## Why it matters
It runs for every batch, waits for the device when it shows a tensor, and cannot be compiled.

## Example
    class Net(nn.Module):
        def forward(self, x):
            print(x.shape)
            return self.fc(x)

## Use instead
    class Net(nn.Module):
        def forward(self, x):
            return self.fc(x)

## When to ignore it
While you are looking for a mistake.

## References
- https://docs.pytorch.org/docs/stable/notes/cuda.html#asynchronous-execution
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, remove
from auditor.rule import Category, Rule
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="{code}",
    category=Category.SIMPLICITY,
    severity=Severity.WARNING,
    summary="a call of `print` in a model's `forward`",
    triggers=("print",),  # a file that has none of these is not looked at
)


@rule.static
def prints(source: Source) -> Iterator[Finding]:
    """A call of the built-in, on its own, in a method called `forward`."""
    for call in source.calls_named("print"):
        builtin, alone = isinstance(call.func, ast.Name), isinstance(source.statement_of(call), ast.Expr)
        method = source.method_of(call)
        if builtin and alone and method is not None and method[1].name == "forward":
            yield rule.finding(call, "this prints for every batch")


@rule.fix("remove the call", keeps=[parameters(), outputs(mode="train"), outputs(mode="eval")])
def leave_it_out(source: Source, finding: Finding) -> Edit | None:
    call = source.node_at(finding.location, ast.Call)
    return remove(source.statement_of(call)) if call is not None else None
'''

BAD = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        print(x.shape)  # expect: {code}
        return self.fc(x)
"""

GOOD = '''\
"""Near misses: each line here looks like the defect and is none."""

from torch import nn

print("loading")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        print(self.fc)

    def forward(self, x):
        y = self.fc(x)
        self.print(y)
        return y

    def print(self, value):
        self.last = value


class Printer:
    def forward(self, x):
        print(x)
'''


def write(name: str, folder: Path, code: str | None, known: Sequence[Rule]) -> list[Path]:
    """Write the files of a new rule into `folder`; their paths. Raises ValueError, before anything is written, for a
    name or a code that is none or is taken."""
    name = name.replace("_", "-")
    code = code or _free(known)
    if not re.fullmatch(NAME, name):
        raise ValueError(f"{name!r} is no name for a rule: use two or more words such as print-in-forward")
    if not re.fullmatch(CODE, code):
        raise ValueError(f"{code!r} is no code for a rule: use three capital letters and three digits")
    if taken := next((rule for rule in known if rule.code == code or rule.name == name), None):
        raise ValueError(f"{code} {name} clashes with {taken.code} {taken.name}")
    stem = name.replace("-", "_")
    bad = BAD.format(code=code)
    fixed = "".join(line for line in bad.splitlines(keepends=True) if "print(" not in line)
    fixtures = folder / FIXTURES / stem
    texts = {folder / f"{stem}.py": RULE.format(code=code)}
    texts |= {fixtures / "bad.py": bad, fixtures / "fixed.py": fixed, fixtures / "good.py": GOOD}
    if there := next((path for path in texts if path.exists()), None):
        raise ValueError(f"{there} exists already")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _free(known: Sequence[Rule]) -> str:
    codes = {rule.code for rule in known}
    return next(code for code in (f"USR{number:03}" for number in range(1, 1000)) if code not in codes)
