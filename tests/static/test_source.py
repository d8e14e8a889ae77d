"""The facts of a file: names, calls, arguments, constants, classes."""

from __future__ import annotations

import ast
import gc
import textwrap
import weakref

import pytest

from auditor.finding import Location
from auditor.static.modes.dependence import class_dependence
from auditor.static.source import HIDDEN, Source


def source(text: str) -> Source:
    return Source("file.py", textwrap.dedent(text))


def names_of(text: str) -> list[str]:
    """What the argument of each call of `show` resolves to."""
    read = source(text)
    return ["|".join(sorted(read.resolve(call.args[0]))) for call in read.calls_named("show")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch\nshow(torch.nn.Linear)", "torch.nn.Linear"),
        ("import torch.nn.functional as F\nshow(F.dropout)", "torch.nn.functional.dropout"),
        ("from torch import nn\nshow(nn.functional.dropout)", "torch.nn.functional.dropout"),
        ("from torch.nn import Linear as L\nshow(L)", "torch.nn.Linear"),
        ("import torch.nn\nshow(torch.nn.Linear)", "torch.nn.Linear"),
        ("from torch.nn.modules.dropout import Dropout\nshow(Dropout)", "torch.nn.Dropout"),
        ("from torch.nn import *\nshow(Linear)", "torch.nn.Linear"),
        ("from torch import nn\nConv = nn.Conv2d\nshow(Conv)", "torch.nn.Conv2d"),
        ("try:\n    from apex import LN\nexcept ImportError:\n    from torch.nn import LayerNorm as LN\nshow(LN)",
         "apex.LN|torch.nn.LayerNorm"),
        ("from torch import nn\ndef f(nn):\n    show(nn.Linear)", ""),
        ("from torch import nn\ndef f():\n    nn = other()\n    show(nn.Linear)", ""),
        ("from torch import nn\nConv = nn.Conv2d\nConv = 3\nshow(Conv)", ""),
        ("show(undefined.Linear)", ""),
        ("class Net: pass\nshow(Net)", "Net"),
    ],
)  # fmt: skip
def test_names(text: str, expected: str) -> None:
    assert names_of(text) == [expected]


def test_calls_to_finds_aliases_and_not_homonyms() -> None:
    read = source("""
        import torch.nn.functional as F
        from torch.nn.functional import dropout as drop
        from other import dropout
        F.dropout(x)
        drop(x)
        dropout(x)
        self.dropout(x)
    """)
    assert [call.lineno for call in read.calls_to("torch.nn.functional.dropout")] == [5, 6]


def test_argument_by_name_by_position_left_out_or_hidden() -> None:
    read = source("f(1, 2)\nf(b=2)\nf(1)\nf(*a)\nf(**k)\nf(1, *a)\nf(1, 2, **k)")
    calls = read.calls_named("f")
    found = [read.argument(call, "b", 1) for call in calls]
    values = [item.value if isinstance(item, ast.Constant) else item for item in found]
    assert values == [2, 2, None, HIDDEN, HIDDEN, HIDDEN, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("show(0.5)", 0.5),
        ("show(-(1 - 0.25) * 2)", -1.5),
        ("P = 0.1\ndef f():\n    show(P)", 0.1),
        ("def f(p=0.3):\n    show(p)", 0.3),
        ("def f(p=0.3):\n    p = g()\n    show(p)", None),
        ("def f(*, p=0.3):\n    show(p)", 0.3),
        ("def f(p):\n    show(p)", None),
        ("def f():\n    p = 0.2\n    show(p)", 0.2),
        ("def f():\n    p = 0.2\n    p = 0.3\n    show(p)", None),
        ("def f():\n    if a:\n        p = 0.2\n    show(p)", None),
        ("P = 0.1\ndef f():\n    P = g()\n    show(P)", None),
        ("show(1 / 0)", None),
        ("show(unknown)", None),
        ("show((1, 2 + 3))", (1, 5)),
        ("for p in ps:\n    show(p)", None),
        ("show('a' * 9)", None),
        ("show(10 ** 10 ** 10)", None),
    ],
)
def test_constants(text: str, expected: object) -> None:
    read = source(text)
    (call,) = read.calls_named("show")
    assert read.constant(call.args[0]) == expected


CLASSES = """
    import torch
    from torch import nn
    from elsewhere import Base, Thing

    class Net(nn.Module):
        rate = 0.25

        def __init__(self, p=0.4):
            super().__init__()
            self.p = p
            self.drop = nn.Dropout(self.p)
            self.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
            if p:
                self.norm = nn.BatchNorm1d(2)
            self.add_module("extra", nn.Linear(2, 2))
            setattr(self, "more", nn.Linear(2, 2))
            self.a, self.b = nn.Linear(1, 1), nn.ReLU()

        def forward(self, x):
            return show(self.p, self.rate)

    class Child(Net):
        def other(self):
            return 1

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.off = nn.Dropout(0.0)

    class Mystery(Base):
        def __init__(self):
            super().__init__()
            self.thing = Thing()

        def forward(self, x):
            return x

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

    class NoModule(Thing):
        def forward(self, x):
            return x
"""


def test_module_classes() -> None:
    read = source(CLASSES)
    assert [facts.name for facts in read.module_classes] == ["Net", "Child", "Plain", "Mystery"]
    net, child = read.module_class("Net"), read.module_class("Child")
    assert net is not None
    assert child is not None
    assert list(net.attributes) == ["p", "drop", "body", "norm", "extra", "more", "a", "b"]
    assert [read.layer_kind(call) for call in net.layers("body")] == [
        "torch.nn.Sequential", "torch.nn.Linear", "torch.nn.ReLU",
    ]  # fmt: skip
    assert net.attributes["norm"][0].conditional
    assert not net.attributes["drop"][0].conditional
    assert child.attributes["drop"] == net.attributes["drop"]
    assert child.method("forward") is net.forward


def test_mode_dependence() -> None:
    read = source(CLASSES)
    assert {facts.name: class_dependence(read, facts) for facts in read.module_classes} == {
        "Net": True, "Child": True, "Plain": False, "Mystery": None,
    }  # fmt: skip


def test_constants_of_a_class() -> None:
    read = source(CLASSES)
    (call,) = read.calls_named("show")
    assert [read.constant(argument) for argument in call.args] == [0.4, 0.25]


def test_node_at_finds_ranges_and_rows() -> None:
    read = source("x = f(\n    g(1),\n)\ny = h(2); z = f(3)")
    first, inner, second, third = sorted(read.tree.all(ast.Call), key=lambda call: (call.lineno, call.col_offset))
    assert read.node_at(Location("file.py", 2, 5, 2, 9), ast.Call) is inner
    assert read.node_at(Location("file.py", 4, 5, 4, 9), ast.Call) is second
    assert read.node_at(Location("file.py", 4, 15, 4, 19), ast.Call) is third
    assert read.node_at(Location("file.py", 1), ast.Call) is first
    assert read.node_at(Location("file.py", 3), ast.Call) is first
    assert read.node_at(Location("file.py", 9), ast.Call) is None


def test_a_closed_source_frees_its_tree_without_the_garbage_collector() -> None:
    read = source(CLASSES)
    assert [class_dependence(read, facts) for facts in read.module_classes]
    net = read.module_class("Net")
    assert net is not None
    root = weakref.ref(read.tree.root)
    gc.disable()
    try:
        read.close()
        del read, net
        assert root() is None
    finally:
        gc.enable()
