"""Which statements fill a layer's tensors, with what, and what is left unknown."""

from __future__ import annotations

import ast
import math
import textwrap

import pytest

from auditor.static.facts.chains import chains, unrolled
from auditor.static.facts.initial_signal import equal_pairs, predictions, reference_call
from auditor.static.facts.initialisers import Initialisers, spelled, write_of
from auditor.static.source import Source

PREAMBLE = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


def source_of(text: str) -> Source:
    return Source("net.py", PREAMBLE + textwrap.dedent(text))


def net(init: str, methods: str = "") -> Source:
    """A class with a Linear, a Conv2d, a BatchNorm2d and a Sequential, initialised by `init`."""
    body = textwrap.indent(textwrap.dedent(init), " " * 8)
    more = textwrap.indent(textwrap.dedent(methods), " " * 4)
    return Source(
        "net.py",
        f"""{PREAMBLE}
class Net(nn.Module):
    def __init__(self, flag=False):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.conv = nn.Conv2d(3, 6, 5)
        self.norm = nn.BatchNorm2d(6)
        self.seq = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
{body}

{more}
""",
    )


def starts(source: Source, name: str = "Net") -> dict[str, str]:
    """By layer (`fc`, `conv`, `norm`, `seq.0`, `seq.2`): the kind of distribution that its weight starts with."""
    facts = source.module_class(name)
    assert facts is not None
    initialisers = Initialisers(source, facts)
    found = {}
    for attribute, (held,) in facts.attributes.items():
        value = held.value
        assert isinstance(value, ast.Call)
        parts = {attribute: value}
        if source.layer_kind(value) == "torch.nn.Sequential":
            parts = {f"{attribute}.{index}": part for index, part in enumerate(value.args)}  # type: ignore[misc]
        for path, call in parts.items():
            if source.layer_kind(call) != "torch.nn.ReLU":
                found[path] = initialisers.start(call)[0].kind
    return found


def changed(source: Source) -> dict[str, str]:
    return {path: kind for path, kind in starts(source).items() if kind != "default"}


LINEARS = {"fc": "zero", "seq.0": "zero", "seq.2": "zero"}


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("pass", {}),
        ("nn.init.zeros_(self.fc.weight)", {"fc": "zero"}),
        ("self.fc.weight.data.zero_()", {"fc": "zero"}),
        ("self.fc.weight.data = torch.zeros(4, 8)", {"fc": "zero"}),
        ("self.fc.weight = nn.Parameter(torch.zeros(4, 8))", {"fc": "zero"}),
        ("with torch.no_grad():\n    self.fc.weight.fill_(0.5)", {"fc": "constant"}),
        ("with torch.no_grad():\n    self.fc.weight.copy_(other)", {"fc": "unknown"}),
        ("nn.init.zeros_(self.fc.bias)", {}),
        ("self.fc.weight.data[0].zero_()", {"fc": "unknown"}),
        ("self.fc.weight.requires_grad_(False)", {}),
        ("nn.init.xavier_uniform_(self.seq[-1].weight)", {"seq.2": "xavier"}),
        ("nn.init.zeros_(self.fc.weight)\nnn.init.orthogonal_(self.fc.weight)", {"fc": "orthogonal"}),
        ("if flag:\n    nn.init.zeros_(self.fc.weight)", {"fc": "unknown"}),
        ("for m in self.modules():\n    if isinstance(m, nn.Linear):\n        nn.init.zeros_(m.weight)", LINEARS),
        ("for m in self.modules():\n    if type(m) == nn.Linear:\n        nn.init.zeros_(m.weight)", LINEARS),
        (
            "for m in self.modules():\n    if isinstance(m, (nn.Linear, nn.Conv2d)):\n        nn.init.zeros_(m.weight)",
            {**LINEARS, "conv": "zero"},
        ),
        (
            "for m in self.modules():\n    if not isinstance(m, nn.Linear):\n        continue\n"
            "    m.weight.data.zero_()",
            LINEARS,
        ),
        (
            "for m in self.modules():\n    if isinstance(m, nn.Conv2d):\n        nn.init.kaiming_normal_(m.weight)\n"
            "    elif isinstance(m, nn.BatchNorm2d):\n        nn.init.ones_(m.weight)",
            {"conv": "kaiming", "norm": "constant"},
        ),
        (
            "for m in self.modules():\n    if isinstance(m, nn.Linear) and m.bias is not None:\n"
            "        nn.init.zeros_(m.weight)",
            LINEARS,
        ),
        (
            "for m in self.modules():\n    if isinstance(m, nn.Linear) and m.out_features == 3:\n"
            "        nn.init.zeros_(m.weight)",
            dict.fromkeys(LINEARS, "unknown"),
        ),
        ("for m in self.children():\n    if isinstance(m, nn.Linear):\n        m.weight.data.zero_()", {"fc": "zero"}),
        ("for m in [self.fc, self.seq[0]]:\n    nn.init.zeros_(m.weight)", {"fc": "zero", "seq.0": "zero"}),
        (
            "for m in self.seq:\n    if isinstance(m, nn.Linear):\n        nn.init.zeros_(m.weight)",
            {"seq.0": "zero", "seq.2": "zero"},
        ),
        (
            "for p in self.parameters():\n    nn.init.normal_(p)",
            dict.fromkeys([*LINEARS, "conv", "norm"], "normal"),
        ),
        (
            "for name, p in self.named_parameters():\n    if 'bias' in name:\n        nn.init.zeros_(p)",
            {},
        ),
        (
            "self.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Linear) else None)",
            dict.fromkeys([*LINEARS, "conv", "norm"], "unknown"),
        ),
    ],
)
def test_constructor(init: str, expected: dict[str, str]) -> None:
    assert changed(net(init)) == expected


def test_applied_method_and_function() -> None:
    method = "def _init(self, m):\n    if isinstance(m, nn.Linear):\n        nn.init.zeros_(m.weight)"
    assert changed(net("self.apply(self._init)", method)) == LINEARS
    function = "def init(m):\n    if isinstance(m, nn.Linear):\n        nn.init.zeros_(m.weight)\n"
    source = net("self.apply(init)")
    assert changed(Source("net.py", source.text + function)) == LINEARS


def test_class_name_of_the_layer() -> None:
    function = """
def init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        m.weight.data.normal_(0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        m.weight.data.normal_(1.0, 0.02)
"""
    source = Source("net.py", net("self.apply(init)").text + function)
    assert changed(source) == {"conv": "normal", "norm": "normal"}


def test_method_that_nobody_calls_leaves_it_unknown() -> None:
    method = "def later(self):\n    nn.init.zeros_(self.fc.weight)"
    assert changed(net("pass", method)) == {"fc": "unknown"}
    assert changed(net("self.later()", method)) == {"fc": "zero"}


def test_helper_function() -> None:
    source = net("zero(self.fc)")
    text = source.text + "def zero(layer):\n    nn.init.zeros_(layer.weight)\n    return layer\n"
    assert changed(Source("net.py", text)) == {"fc": "zero"}


def test_owner_and_outside() -> None:
    part = """
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Part()
            {init}
    """
    lines = ("for m in self.modules():", "    if isinstance(m, nn.Linear):", "        m.weight.data.zero_()")
    loop = ("\n" + " " * 12).join(lines)
    assert starts(source_of(part.format(init=loop)), "Part") == {"fc": "zero"}
    assert starts(source_of(part.format(init="pass")), "Part") == {"fc": "default"}
    init = "def init(m):\n    if isinstance(m, nn.Linear):\n        m.weight.data.zero_()\n"
    outside = init + "\nnet = Whole()\nnet.apply(init)\n"
    text = textwrap.dedent(part.format(init="pass")) + outside
    assert starts(Source("net.py", PREAMBLE + text), "Part") == {"fc": "zero"}


def test_unknown_base() -> None:
    source = source_of(
        """
        from elsewhere import Base

        class Net(Base):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 4)

            def forward(self, x):
                return self.fc(x)
        """
    )
    assert starts(source) == {"fc": "unknown"}


@pytest.mark.parametrize(
    ("call", "moment"),
    [
        ("nn.init.normal_(w.weight, 0.0, 0.5)", 0.25),
        ("nn.init.normal_(w.weight, std=0.5)", 0.25),
        ("nn.init.uniform_(w.weight, -1, 1)", 1 / 3),
        ("w.weight.data.uniform_(0, 1)", 1 / 3),
        ("nn.init.constant_(w.weight, 0.5)", 0.25),
        ("nn.init.xavier_normal_(w.weight)", 2 / 30),
        ("nn.init.xavier_normal_(w.weight, gain=nn.init.calculate_gain('tanh'))", 25 / 9 * 2 / 30),
        ("nn.init.kaiming_normal_(w.weight)", 2 / 10),
        ("nn.init.kaiming_normal_(w.weight, a=5**0.5)", None),
        ("nn.init.kaiming_uniform_(w.weight, a=1)", 1 / 10),
        ("nn.init.kaiming_normal_(w.weight, mode='fan_out', nonlinearity='relu')", 2 / 20),
        ("nn.init.orthogonal_(w.weight)", 1 / 20),
        ("nn.init.trunc_normal_(w.weight, std=0.02)", 0.0004),
        ("nn.init.trunc_normal_(w.weight, std=5)", None),
        ("nn.init.normal_(w.weight, std=anything)", None),
        ("w.weight.copy_(other)", None),
    ],
)
def test_second_moment(call: str, moment: float | None) -> None:
    """For a fan-in of 10 and a fan-out of 20."""
    source = Source("net.py", PREAMBLE + call)
    (node, *_) = source.tree.all(ast.Call)
    write = write_of(source, node)
    assert write is not None
    found = write.distribution.second_moment(10, 20)
    assert found == (None if moment is None else pytest.approx(moment))


def test_no_write() -> None:
    source = Source("net.py", PREAMBLE + "x.relu_()\nprint(m.weight)\nnn.init.calculate_gain('relu')\n")
    writes = [write_of(source, node) for node in source.tree.all(ast.Call)]
    assert [write.name for write in writes if write] == [""]  # `x`, which is no layer's


def test_spelled() -> None:
    assert spelled(source_of(""), "torch.nn.init") == "nn.init"
    assert spelled(Source("a.py", "import torch as th"), "torch.nn.init") == "th.nn.init"
    assert spelled(Source("a.py", "from torch.nn import init"), "torch.nn.init") == "init"
    assert spelled(Source("a.py", "import numpy"), "torch.nn.init") == ""


DEEP = """
class Net(nn.Module):
    def __init__(self, width=64, depth={depth}):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std={std})
                nn.init.zeros_(m.bias)

    def forward(self, x):
        for layer in self.layers:
            x = {step}
        return self.head(x)
"""


def test_chain_of_a_module_list() -> None:
    source = source_of(DEEP.format(depth=8, std=0.1, step="F.relu(layer(x))"))
    (chain,) = chains(source, source.module_classes[0])
    links = unrolled(source, chain)
    assert chain.whole
    assert links is not None
    assert len(links) == 9
    assert [link.activation for link in links] == ["relu"] * 8 + ["linear"]


def test_prediction() -> None:
    (small,) = predictions(source_of(DEEP.format(depth=8, std=0.01, step="F.relu(layer(x))")))
    assert math.log10(small.signal.head_input) == pytest.approx(8 * math.log10(64 * 1e-4 / 2), abs=1e-6)
    assert small.vanishes
    assert not small.explodes
    (large,) = predictions(source_of(DEEP.format(depth=8, std=1.0, step="F.relu(layer(x))")))
    assert large.explodes
    (right,) = predictions(source_of(DEEP.format(depth=8, std=(2 / 64) ** 0.5, step="F.relu(layer(x))")))
    assert not right.vanishes
    assert not right.explodes


@pytest.mark.parametrize(
    "step", ["x + F.relu(layer(x))", "F.layer_norm(layer(x), (64,))", "layer(x) * 0.5", "f(layer(x))"]
)
def test_no_prediction(step: str) -> None:
    assert not list(predictions(source_of(DEEP.format(depth=8, std=0.01, step=step))))


def test_no_prediction_for_unknown_width_or_depth() -> None:
    text = DEEP.format(depth=8, std=0.01, step="F.relu(layer(x))")
    assert not list(predictions(source_of(text.replace("width=64", "width"))))
    assert not list(predictions(source_of(text.replace("width=64, depth=8", "depth, width=64"))))


def test_equal_pairs() -> None:
    text = DEEP.format(depth=2, std=0, step="F.relu(layer(x))")
    (pair,) = equal_pairs(source_of(text), zero=True)
    assert not pair.biased
    assert pair.activation == "relu"
    (biased,) = equal_pairs(source_of(text.replace("nn.init.zeros_(m.bias)", "pass")), zero=True)
    assert biased.biased
    assert not list(equal_pairs(source_of(text), zero=False))


def test_reference_call() -> None:
    assert reference_call("gelu", "m.weight") == 'kaiming_normal_(m.weight, nonlinearity="relu")'
    assert reference_call("tanh", "w") == "xavier_normal_(w, gain=5 / 3)"
    assert reference_call("", "w") == "xavier_normal_(w)"
