"""How values flow through forward."""

from __future__ import annotations

import textwrap

from auditor.static.flow import Flow, Op
from auditor.static.source import Source

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


def flow(text: str) -> Flow:
    source = Source("file.py", HEAD + textwrap.dedent(text))
    traced = source.flow(source.module_classes[-1])
    assert traced is not None
    return traced


def chain(op: Op | None) -> list[str]:
    """From an operation along its only users, by layer or target name."""
    names = []
    while op is not None:
        names.append(op.layer_kind.rpartition(".")[2] or op.target or op.kind)
        op = op.only_user()
    return names


def test_layers_in_order() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
                self.norm = nn.BatchNorm1d(2)

            def forward(self, x):
                y = self.fc(x)
                y = F.relu(self.norm(y))
                return y.view(-1)
    """)
    assert chain(traced.ops[0]) == ["x", "Linear", "BatchNorm1d", "torch.nn.functional.relu", "view", "output"]


def test_sequential_is_opened() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                layers = [nn.Linear(2, 2), nn.ReLU()]
                self.a = nn.Sequential(*layers)
                self.b = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Softmax(dim=1))

            def forward(self, x):
                return self.b(self.a(x))
    """)
    assert chain(traced.ops[0]) == ["x", "Linear", "ReLU", "Linear", "Tanh", "Softmax", "output"]


def test_module_list_in_a_loop() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)])

            def forward(self, x):
                for i, layer in enumerate(self.layers):
                    x = layer(x)
                return x
    """)
    assert chain(traced.ops[0]) == ["x", "Linear", "ReLU", "Linear", "output"]


def test_a_residual_has_two_users() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)

            def forward(self, x):
                return x + self.fc(x)
    """)
    start = traced.ops[0]
    assert start.only_user() is None
    assert sorted(user.kind for user in start.users) == ["layer", "operator"]


def test_branches_are_joined() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
                self.drop = nn.Dropout(0.1)
                self.out = nn.Linear(2, 2)

            def forward(self, x, flag=False):
                x = self.fc(x)
                if flag:
                    x = self.drop(x)
                return self.out(x)
    """)
    out = next(op for op in traced.layer_ops() if op.target == "out")
    assert sorted(op.target for op in out.inputs[0]) == ["drop", "fc"]


def test_helper_methods_are_entered() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
                self.out = nn.Linear(2, 2)

            def embed(self, value, scale=1):
                return self.fc(value) * scale

            def forward(self, x):
                return self.out(self.embed(x))
    """)
    assert chain(traced.ops[0]) == ["x", "Linear", "operator", "Linear", "output"]


def test_loops_feed_back() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = nn.Linear(2, 2)

            def forward(self, x):
                for _ in range(3):
                    x = self.cell(x)
                return x
    """)
    (cell,) = traced.layer_ops()
    assert cell in cell.inputs[0]


def test_recursion_and_unknown_calls_end() -> None:
    traced = flow("""
        class Net(nn.Module):
            def step(self, x, n):
                return self.step(unknown(x), n - 1)

            def forward(self, x):
                return self.step(x, 3)
    """)
    assert traced.outputs


def test_an_escaping_value_has_another_user() -> None:
    traced = flow("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)
                self.norm = nn.BatchNorm1d(2)

            def forward(self, x):
                y = self.fc(x)
                self.kept = y
                return self.norm(y)
    """)
    fc = next(op for op in traced.layer_ops() if op.target == "fc")
    assert fc.only_user() is None
