"""The modes that the analysis gives a model at its last call, and the fixes that follow from its paths."""

from __future__ import annotations

import textwrap

import pytest

from auditor.fix.engine import fix_text
from auditor.static.modes.analysis import modes_of
from auditor.static.source import Source
from tests.fixtures import BY_CODE, ROOT

MODEL = """
import copy
import torch
from torch import nn
from elsewhere import helper, BaseTrainer, decorate

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.drop(self.body(x))
    def encode(self, x):
        return self.body(x)

class Frozen(Net):
    def train(self, mode=True):
        return super().train(False)

def test(net, x):
    return net(x)

def put_in_eval(net):
    net.eval()

def build():
    net = Net()
    net.eval()
    return net, 1
"""


def modes_at_last_call(code: str) -> set[str]:
    """The modes at the last call of `model` at module level, written as `model(x)` or through `test(model, x)`."""
    source = Source("file.py", MODEL + textwrap.dedent(code))
    calls = [call for call in modes_of(source).calls if call.scope is source.tree.root]
    last = max((call for call in calls if call.depends), key=lambda call: call.position.lineno)
    row = last.position.lineno
    return {setting.mode for call in calls if call.position.lineno == row and call.depends for setting in call.modes}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("model = Net()\nmodel(x)", "train"),
        ("model = Net().eval()\nmodel(x)", "eval"),
        ("model = Net().to('cuda').half()\nmodel(x)", "train"),
        ("model = nn.DataParallel(Net())\nmodel.module.eval()\nmodel(x)", "eval"),
        ("model = Net()\nalias = model\nalias.eval()\nmodel(x)", "eval"),
        ("model, other = Net(), Net()\nother.eval()\nmodel(x)", "train"),
        ("nets = {'a': Net()}\nnets['a'].eval()\nnets['a'](x)", "eval"),
        ("model = Net()\nfor net in [model, Net()]:\n    net.eval()\nmodel(x)", "eval"),
        ("model = Net()\nmodel.train(False)\nmodel(x)", "eval"),
        ("model = Net().eval()\nmodel.train(mode=True)\nmodel(x)", "train"),
        ("model = Net()\nmodel.train(flag_mode)\nmodel(x)", "unknown"),
        ("model = Net()\nnn.Module.eval(model)\nmodel(x)", "eval"),
        ("model = Net()\nput_in_eval(model)\ntest(model, x)", "eval"),
        ("model, _ = build()\ntest(model, x)", "eval"),
        ("model = Net()\ntwin = copy.deepcopy(model)\nmodel.eval()\ntwin(x)", "train"),
        ("model = Net()\nwas = model.training\nmodel.eval()\nmodel.train(was)\nmodel(x)", "train"),
        ("model = Net()\nwas = model.training\nmodel.eval()\nif was:\n    model.train()\nmodel(x)", "train"),
        ("models = [Net() for _ in y]\nmodels[0](x)", "train"),
        ("models = [Net() for _ in y]\nfor m in models:\n    m.eval()\nfor model in models:\n    model(x)", "eval"),
        ("models = {k: Net().eval() for k in y}\nmodels['a'](x)", "eval"),
        ("models = [Net() for _ in y]\nhelper(models)\nfor model in models:\n    model(x)", "unknown"),
        ("model = Net()\nhelper(model)\nmodel(x)", "unknown"),
        ("model = Net()\nhelper([model])\nmodel(x)", "unknown"),
        ("model = Net()\nmodel.set_mode('test')\nmodel(x)", "unknown"),
        ("model = Net()\nmodel.body.eval()\nmodel(x)", "train unknown"),
        ("model = Net()\nfor m in model.modules():\n    m.eval()\nmodel(x)", "train unknown"),
        ("model = Frozen()\nmodel(x)", "unknown"),
        ("model = Net()\nif flag:\n    model.eval()\nmodel(x)", "train eval"),
        ("model = Net()\nif flag:\n    model.eval()\nelse:\n    model.eval()\nmodel(x)", "eval"),
        ("model = Net()\nfor i in y:\n    model(x)\n    model.eval()", "train eval"),
        ("model = Net()\nfor i in y:\n    model.train()\n    model(x)\n    model.eval()", "train"),
        ("model = Net()\nwhile flag:\n    model.eval()\nmodel(x)", "train eval"),
        ("model = Net()\nfor i in y:\n    model.eval()\n    if i: continue\n    model.train()\nmodel(x)", "train eval"),
        ("model = Net()\ntry:\n    model.eval()\nfinally:\n    model.train()\nmodel(x)", "train"),
        ("model = Net()\nwith helper(model):\n    model(x)", "unknown"),
        ("model = Net()\nwith torch.no_grad():\n    model(x)", "train"),
        ("import torchvision\nmodel = torchvision.models.resnet18()\nmodel(x)", "train"),
    ],
)  # fmt: skip
def test_modes(code: str, expected: str) -> None:
    assert modes_at_last_call(code) == set(expected.split())


@pytest.mark.parametrize(
    ("statement", "expected"), [("self.net.eval()", "eval"), ("pass", "train"), ("self.prepare(self.net)", "unknown")]
)
def test_methods_change_what_their_object_holds(statement: str, expected: str) -> None:
    code = f"""
    class Trainer(object):
        def __init__(self, net):
            self.net = net.cuda()
        def validate(self):
            {statement}
        def run(self, x):
            self.validate()
            return self.net(x)

    model = Net()
    trainer = Trainer(model)
    trainer.run(x)
    """
    assert modes_at_last_call(code) == {expected}


def test_early_return_keeps_its_own_state() -> None:
    code = """
    def switch(net, flag):
        if flag:
            net.eval()
            return
        net.train()

    model = Net()
    switch(model, flag)
    model(x)
    """
    assert modes_at_last_call(code) == {"train", "eval"}


def test_recursion_and_outer_variables() -> None:
    code = """
    def down(n):
        if n:
            down(n - 1)
        model.eval()

    model = Net()
    down(3)
    model(x)
    """
    assert modes_at_last_call(code) == {"eval"}


def test_a_method_depends_on_its_mode_only_if_it_uses_such_layers() -> None:
    source = Source("file.py", MODEL + "model = Net()\nmodel.encode(x)\nmodel(x)\n")
    assert {call.method: call.depends for call in modes_of(source).calls} == {"encode": None, "": True}


@pytest.mark.parametrize(
    ("code", "fixture", "line"),
    [
        ("MOD001", "missing_eval/bad_trainer.py", "        self.model.train()"),
        ("MOD002", "train_mode_not_restored/bad_trainer.py", "        self.model.train()"),
    ],
)
def test_trainers_are_mended(code: str, fixture: str, line: str) -> None:
    """In a class that is no model, where no claim can be checked by a run."""
    path = ROOT / "fixtures" / "mode" / fixture
    text = path.read_text(encoding="utf-8")
    outcome = fix_text(str(path), text, [BY_CODE["MOD001"], BY_CODE["MOD002"]], unsafe=True)
    assert [finding.code for finding in outcome.fixed] == [code]
    assert not outcome.result.findings
    assert outcome.text.count(line) == text.count(line) + 1
