"""Programs nobody would write, and real ones that were damaged, never break the engine."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.loader import load_rules
from auditor.static.check import check_text
from tests.fixtures import ROOT

PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))

NAMES = st.sampled_from(["x", "y", "self", "model", "net", "loss", "optimizer", "drop", "weight", "training", "loader"])
LAYERS = st.sampled_from(
    ["Linear", "Conv2d", "Dropout", "BatchNorm1d", "LayerNorm", "Sequential", "ModuleList", "LSTM", "Softmax", "ReLU"]
)
METHODS = st.sampled_from(
    ["train", "eval", "backward", "step", "zero_grad", "zero_", "normal_", "mean", "to", "apply", "append", "dropout"]
)
FUNCTIONS = st.sampled_from(
    [
        "F.dropout",
        "F.softmax",
        "F.cross_entropy",
        "torch.rand",
        "nn.init.zeros_",
        "nn.Parameter",
        "torch.sqrt",
        "f",
        "Net",
    ]
)
CONSTANTS = st.sampled_from(["0", "0.5", "-1", "1e-8", "True", "None", "'mean'", "[]", "()", "..."])


def _binary(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "@", "**", "<", "is", "and", "or"])
    return st.builds("({} {} {})".format, inner, operators, inner)


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    given = st.lists(inner, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("nn.{}({})".format, LAYERS, given),
        st.builds("{}({})".format, FUNCTIONS, given),
        st.builds("{}.{}({})".format, inner.filter(lambda text: not text[0].isdigit()), METHODS, given),
        st.builds("{}({}, *{}, p={}, **{})".format, FUNCTIONS, inner, NAMES, inner, NAMES),
        st.builds("{}.{}".format, NAMES, NAMES),
        st.builds("{}[{}]".format, NAMES, inner),
        st.builds("[{} for {} in {} if {}]".format, inner, NAMES, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("(lambda {}: {})".format, NAMES, inner),
        st.builds("f'{{{}}}'".format, NAMES),
        _binary(inner),
    )


EXPRESSIONS = st.recursive(NAMES | CONSTANTS, _compound, max_leaves=8)
TARGETS = st.one_of(
    NAMES,
    st.builds("self.{}".format, NAMES),
    st.builds("{}[{}]".format, NAMES, EXPRESSIONS),
    st.builds("{}, *{}".format, NAMES, NAMES),
    st.builds("{}.weight.data".format, NAMES),
)


def indented(lines: list[str]) -> str:
    return "".join(f"    {line}\n" for text in lines for line in text.splitlines()) or "    pass\n"


def _blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    body = st.lists(inner, max_size=3).map(indented)
    heads = st.one_of(
        st.builds("if {}:".format, EXPRESSIONS),
        st.builds("for {} in {}:".format, NAMES, EXPRESSIONS),
        st.builds("while {}:".format, EXPRESSIONS),
        st.builds("with torch.no_grad(), {} as {}:".format, EXPRESSIONS, NAMES),
        st.builds(
            "def {}({}, *, {}=0.5, **more):".format, st.sampled_from(["forward", "evaluate", "g"]), NAMES, st.just("p")
        ),
        st.builds(
            "class {}({}):".format,
            st.sampled_from(["Net", "Other"]),
            st.sampled_from(["nn.Module", "Net", "Other", "x"]),
        ),
    )
    return st.one_of(
        st.builds("{}\n{}".format, heads, body),
        st.builds("try:\n{}except {} as e:\n{}finally:\n{}".format, body, NAMES, body, body),
        st.builds(
            "match {}:\n    case [{}, *_]:\n        pass\n    case _:\n        {}".format,
            NAMES,
            st.just("q"),
            EXPRESSIONS,
        ),
    )


SIMPLE = st.one_of(
    EXPRESSIONS,
    st.builds("{} = {}".format, TARGETS, EXPRESSIONS),
    st.builds("{} += {}".format, NAMES, EXPRESSIONS),
    st.builds("{}: int = {}".format, NAMES, EXPRESSIONS),
    st.builds("del {}".format, NAMES),
    st.sampled_from(["pass", "raise", "import torch.nn as nn", "from .x import *", "global x", "super().__init__()"]),
)
STATEMENTS = st.recursive(SIMPLE, _blocks, max_leaves=10)
PROGRAMS = st.lists(STATEMENTS, min_size=1, max_size=6).map(
    lambda lines: "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n" + "\n".join(lines) + "\n"
)


def problems(text: str, path: str = "generated.py") -> list[str]:
    return [problem.message for problem in check_text(path, text, load_rules()).problems]


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


@PATIENT
@given(PROGRAMS)
def test_generated_programs(text: str) -> None:
    assert not is_python(text) or problems(text) == []


FILES = sorted((ROOT / "fixtures").rglob("*.py"))


def damaged(text: str, generator: random.Random) -> str:
    """The text with some lines dropped, doubled or swapped, and a name replaced by another one of the file."""
    lines = text.splitlines()
    for _ in range(generator.randint(1, 4)):
        one, other = generator.randrange(len(lines)), generator.randrange(len(lines))
        match generator.randrange(4):
            case 0:
                lines[one] = ""
            case 1:
                lines.insert(one, lines[one])
            case 2:
                lines[one], lines[other] = lines[other], lines[one]
            case _:
                words = [word for line in (lines[one], lines[other]) for word in line.split() if word.isidentifier()]
                if len(words) > 1:
                    lines[one] = lines[one].replace(generator.choice(words), generator.choice(words))
    return "\n".join(lines) + "\n"


@PATIENT
@given(st.sampled_from(FILES), st.integers(0, 10**6))
def test_damaged_files(path: Path, seed: int) -> None:
    text = damaged(path.read_text(encoding="utf-8"), random.Random(seed))
    assert not is_python(text) or problems(text, str(path)) == []


LAYERED = """
class Net{0}(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5)

"""


def test_a_file_of_ten_thousand_lines_is_checked_whole() -> None:
    text = "import torch.nn.functional as F\nfrom torch import nn\n" + "".join(map(LAYERED.format, range(1000)))
    result = check_text("long.py", text, load_rules())
    assert not result.problems
    assert sum(finding.code == "MOD004" for finding in result.findings) == 1000


DEEP = {
    "attributes": "x = " + "a" + ".b" * 5000,
    "calls": "x = " + "f(" * 90 + "1" + ")" * 90,
    "chained calls": "x = a" + ".f()" * 3000,
    "sums": "x = " + " + ".join(["a"] * 3000),
    "blocks": "".join("    " * depth + "if x:\n" for depth in range(90)) + "    " * 90 + "pass",
    "elifs": "if x:\n    y = F.dropout(x)\n" + "elif x:\n    y = F.dropout(x)\n" * 900,
    "functions": "".join("    " * depth + f"def f{depth}(x):\n" for depth in range(80)) + "    " * 80 + "pass",
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting_is_read_or_refused_with_a_message(name: str) -> None:
    text = "import torch.nn.functional as F\nimport torch\nfrom torch import nn\n" + DEEP[name] + "\nF.dropout(1)\n"
    assert all("nested" in message or "cannot be parsed" in message for message in problems(text))
