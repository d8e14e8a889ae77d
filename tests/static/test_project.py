"""Files of a project know what their imports stand for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from auditor.settings import Settings
from auditor.static.check import check_files
from auditor.static.project import Project, imported, new_run
from auditor.static.source import Source

NET = """
from torch import nn
from .base import Base

class Net(Base):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 2)
    def forward(self, x):
        return self.fc(self.norm(x))

def build():
    return Net()

def build_for_inference():
    return Net().eval()
"""
BASE = """
from torch import nn

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

class Plain:
    pass
"""
ENGINE = """
import torch

def evaluate(model, loader):
    correct = 0
    with torch.no_grad():
        for x, y in loader:
            correct += (model(x).argmax(1) == y).sum().item()
    return correct

def validate(model, loader):
    model.eval()
    return evaluate(model, loader)

def validate_and_go_on(model, loader):
    before = model.training
    model.eval()
    result = evaluate(model, loader)
    model.train(before)
    return result

def eval_net(model, loader):
    model.eval()
    return evaluate(model, loader)
"""
TEST = """
import torch
from shop.models import Net, build, build_for_inference
from shop.engine import evaluate, validate, validate_and_go_on

def run(loader):
    model = {made}
    model.load_state_dict(torch.load("net.pt"))
    print({evaluation}(model, loader))
"""
TRAIN = """
import torch
from torch import nn
from shop import engine
from shop.models import net as nets

def train(loader, test_loader):
    model = nets.Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        print(engine.{evaluation}(model, test_loader))
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project: a package `shop` below `src`, with a model, its base and functions that evaluate."""
    package = tmp_path / "src" / "shop"
    (package / "models").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (package / "__init__.py").touch()
    (package / "models" / "__init__.py").write_text("from .net import *\nfrom .net import build as build\n")
    (package / "models" / "net.py").write_text(NET)
    (package / "models" / "base.py").write_text(BASE)
    (package / "engine.py").write_text(ENGINE)
    monkeypatch.chdir(tmp_path)
    new_run()
    return tmp_path


def codes(path: Path) -> list[str]:
    (result,) = check_files([str(path)], Settings(cache=False))
    assert not result.problems
    return [finding.code for finding in result.findings]


@pytest.mark.parametrize(
    ("made", "evaluation", "expected"),
    [
        ("Net()", "evaluate", ["MOD001"]),
        ("build().cuda()", "evaluate", ["MOD001"]),
        ("build_for_inference()", "evaluate", []),
        ("Net().eval()", "evaluate", []),
        ("Net()", "validate", []),
        ("Net()", "validate_and_go_on", []),
        ("Net()", "evaluate_elsewhere", []),  # no such function: unknown
    ],
)
def test_models_and_evaluations_of_other_files(shop: Path, made: str, evaluation: str, expected: list[str]) -> None:
    file = shop / "predict_all.py"
    file.write_text(TEST.format(made=made, evaluation=evaluation))
    assert codes(file) == expected


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [("validate", ["MOD002"]), ("eval_net", ["MOD002"]), ("validate_and_go_on", []), ("evaluate", ["MOD001"])],
)
def test_training_goes_on_in_the_mode_that_another_file_leaves(
    shop: Path, evaluation: str, expected: list[str]
) -> None:
    file = shop / "main.py"
    file.write_text(TRAIN.format(evaluation=evaluation))
    assert codes(file) == expected


def test_a_class_is_a_module_if_its_base_in_another_file_is(shop: Path) -> None:
    text = "from .base import Base, Plain\n"
    text += "".join(f"class {name}:\n    def forward(self, x): ...\n" for name in ("A(Base)", "B(Plain)"))
    file = shop / "src" / "shop" / "models" / "other.py"
    file.write_text(text)
    assert [facts.name for facts in Source(str(file), text).module_classes] == ["A"]


@pytest.mark.parametrize(
    ("folder", "name", "found"),
    [
        ("src/shop", ".models.Net", "net.py"),
        ("src/shop/models", "..engine.evaluate", "engine.py"),
        ("src/shop/models", ".base.Base", "base.py"),
        ("src/shop", "shop.models.net.Net", "net.py"),
        (".", "shop.models.build", "net.py"),
        (".", "shop.models.Nothing", ""),
        (".", "torch.nn.Linear", ""),
        (".", "elsewhere.Net", ""),
    ],
)
def test_imports_are_found_as_python_finds_them(shop: Path, folder: str, name: str, found: str) -> None:
    source = Source(str(shop / folder / "asking.py"), "import torch")
    assert [Path(item.source.path).name for item in imported(source, [name])] == ([found] if found else [])


def test_folders_above_that_are_no_project_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "tools.py").write_text("class Net: ...\n")
    (tmp_path / "below" / "near.py").write_text("class Net: ...\n")
    new_run()
    source = Source(str(tmp_path / "below" / "asking.py"), "")
    assert [len(list(imported(source, [name]))) for name in ("near.Net", "tools.Net")] == [1, 0]


def test_imports_that_go_in_circles_end(shop: Path) -> None:
    (shop / "one.py").write_text("import torch\nfrom two import B\nclass A(B):\n  def forward(self, x): ...\n")
    (shop / "two.py").write_text("import torch\nfrom one import A\nclass B(A):\n  def forward(self, x): ...\n")
    (shop / "three.py").write_text("from four import *\n")
    (shop / "four.py").write_text("from three import *\n")
    assert codes(shop / "one.py") == codes(shop / "two.py") == []
    assert list(imported(Source(str(shop / "x.py"), ""), ["three.Net"])) == []


def test_an_answer_inside_a_circle_does_not_depend_on_who_asked_first(shop: Path) -> None:
    (shop / "one.py").write_text("from two import B\nclass A(B): ...\n")
    (shop / "two.py").write_text("from one import A\nclass B(A): ...\n")

    def answer(first: str) -> list[int | None]:
        project = Project()

        def depth(source: Source, node: ast.AST) -> int:
            (other,) = ("two.B",) if source.path.endswith("one.py") else ("one.A",)
            found = project.definition(source, other)
            inner = project.ask(depth, found) if found is not None else None
            return 1 + (inner or 0)

        asking = Source(str(shop / "asking.py"), "")
        order = sorted(["one.A", "two.B"], key=lambda name: name != first)
        found = {name: project.definition(asking, name) for name in order}
        answers = {name: project.ask(depth, item) for name, item in found.items() if item is not None}
        return [answers["one.A"], answers["two.B"]]

    assert answer("one.A") == answer("two.B") == [2, 2]


def test_files_of_the_project_that_cannot_be_read_are_unknown(shop: Path) -> None:
    (shop / "src" / "shop" / "models" / "net.py").write_text("class Net(\n")
    file = shop / "predict_all.py"
    file.write_text(TEST.format(made="Net()", evaluation="evaluate"))
    assert codes(file) == []


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("import torch.nn as nn", {"torch.nn.Module"}),
        ("from torch import nn", {"torch.nn.Module"}),
        ("from shop.other import *", {"torch.nn.Module"}),  # handed on twice
        ("from torch import nn\n__all__ = []", {".parts.nn.Module"}),  # not handed on
        ("nn = object()", {".parts.nn.Module"}),
        ("from .net import *", {".parts.nn.Module"}),  # a circle
    ],
)
def test_a_star_import_brings_what_the_other_file_imports(tmp_path: Path, parts: str, expected: set[str]) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, text in (("__init__", ""), ("parts", parts), ("other", "from torch import nn")):
        (folder / f"{name}.py").write_text(text)
    net = folder / "net.py"
    net.write_text(
        "from .parts import *\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    )
    source = Source(str(net), net.read_text())
    (node,) = source.tree.all(ast.ClassDef)
    assert source.resolve(node.bases[0]) == expected
    (call,) = [call for call in source.tree.all(ast.Call) if isinstance(call.func, ast.Name)]
    assert source.resolve(call.func) == set()  # `super` is Python's own
