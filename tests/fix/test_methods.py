"""Edits of methods, on live objects."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from auditor.fix.methods import difference, edit_methods

TEXT = """
import torch
from torch import nn


def shifted(x, by=1.0):
    return x + by


def twice(x):
    return shifted(shifted(x))


class Base(nn.Module):
    def forward(self, x):
        return 10 * x


class Net(Base):
    def __init__(self):
        super().__init__()
        self.__hidden = 3.0

    def forward(self, x):
        return super().forward(x) + self.__hidden

    def other(self, x):
        return twice(x)

    @staticmethod
    def fixed(x):
        return x


class Inherits(Net):
    pass


class Overrides(Net):
    def forward(self, x):
        return -x


def make(scale):
    class Local(nn.Module):
        def forward(self, x):
            return scale * x

    return Local()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TEXT as an imported module."""
    path = tmp_path / "edited_net.py"
    path.write_text(TEXT)
    made = ModuleType("edited_net")
    made.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "edited_net", made)
    exec(compile(TEXT, str(path), "exec"), made.__dict__)
    return made


def edit(module: ModuleType, model: torch.nn.Module, old: str, new: str) -> list[str]:
    assert old in TEXT
    return edit_methods(model, str(module.__file__), TEXT, TEXT.replace(old, new))


X = torch.ones(1)


def test_super_and_private_names(module: ModuleType) -> None:
    model = module.Net()
    done = edit(module, model, "+ self.__hidden", "- self.__hidden")
    assert done == ["the model: forward of Net edited"]
    assert float(model(X)) == 7
    assert float(module.Net()(X)) == 13
    assert isinstance(model, module.Net)


def test_only_layers_that_run_the_method(module: ModuleType) -> None:
    model = torch.nn.ModuleList([module.Net(), module.Inherits(), module.Overrides(), module.Base()])
    done = edit(module, model, "+ self.__hidden", "- self.__hidden")
    assert done == ["0: forward of Net edited", "1: forward of Inherits edited"]
    assert [float(layer(X)) for layer in model] == [7, 7, -1, 10]


def test_a_function_that_methods_call(module: ModuleType) -> None:
    model = module.Net()
    assert edit(module, model, "return x + by", "return x - by") == ["the model: other of Net edited"]
    assert float(model.other(X)) == -1
    assert float(module.Net().other(X)) == 3


def test_enclosing_variables_and_new_imports(module: ModuleType) -> None:
    model = module.make(4.0)
    text = TEXT.replace("import torch\n", "import torch\nimport math\n").replace("scale * x", "math.sqrt(scale) * x")
    edit_methods(model, str(module.__file__), TEXT, text)
    assert float(model(X)) == 2
    assert "math" not in vars(module)


def test_static_method(module: ModuleType) -> None:
    model = module.Net()
    edit(module, model, "def fixed(x):\n        return x", "def fixed(x):\n        return 5 * x")
    assert float(model.fixed(X)) == 5


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("self.__hidden = 3.0", "self.__hidden = 4.0", "how layers are built"),
        ("class Inherits(Net)", "class Inherits(Base)", "more than methods"),
        ("def other", "def another", "more than methods"),
        ("scale * x", "2 * x", "no layer of the model"),
    ],
)
def test_refused(module: ModuleType, old: str, new: str, reason: str) -> None:
    model = module.Net()
    with pytest.raises(ValueError, match=reason):
        edit(module, model, old, new)
    assert type(model) is module.Net


def test_a_file_changed_since_its_import(module: ModuleType) -> None:
    stale = TEXT.replace("return super().forward(x) + self.__hidden", "return super().forward(x) * self.__hidden")
    with pytest.raises(ValueError, match="has changed since"):
        edit_methods(module.Net(), str(module.__file__), stale, stale.replace("* self.__hidden", "- self.__hidden"))


def test_difference_names_callers() -> None:
    change = difference(TEXT, TEXT.replace("return x + by", "return x - by"))
    assert sorted(change.functions) == ["shifted", "twice"]
    assert sorted(change.methods) == ["Net.other"]
