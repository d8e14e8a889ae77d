"""Which models a file offers, how they are built, and what is said of those that cannot be."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor.dynamic.build import BuildLog
from auditor.dynamic.target import Target, find_targets, split_spec
from auditor.finding import Problem

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.lin = nn.Linear(width, 2)

    def forward(self, x):
        return self.lin(x)
"""


def write(folder: Path, text: str, name: str = "model.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def names(targets: list[Target]) -> list[str]:
    return [target.name for target in targets]


def build(target: Target) -> tuple[Any, BuildLog]:
    return target.build(seed=3)


def built(target: Target) -> Any:
    return build(target)[0]


def only(found: tuple[list[Target], list[Problem]]) -> Target:
    targets, problems = found
    assert problems == []
    assert len(targets) == 1
    return targets[0]


def failure(found: tuple[list[Target], list[Problem]]) -> Problem:
    targets, problems = found
    assert targets == []
    assert len(problems) == 1
    return problems[0]


def test_split_spec() -> None:
    assert split_spec("a/b.py") == ("a/b.py", "", True)
    assert split_spec("a/b.py::Net") == ("a/b.py", "Net", True)
    assert split_spec("pkg.module:Net") == ("pkg.module", "Net", False)
    assert split_spec("pkg.module") == ("pkg.module", "", False)


# Which ---------------------------------------------------------------------------------------------------------------


def test_a_class_with_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, NET)
    target = only(find_targets(str(path)))
    assert (target.name, target.path, target.row) == ("Net", str(path), 6)
    assert (target.arguments, target.arguments_from) == ("", "defaults")
    assert target.model_class == "model.Net"
    model, log = build(target)
    assert type(model).__name__ == "Net"
    location = log.location_of(model.lin)
    assert location is not None
    assert (location.path, location.row) == (str(path), 9)
    assert target.inputs(model).description == "4x4"


def test_parts_are_left_out_wholes_kept_imports_ignored(tmp_path: Path) -> None:
    write(tmp_path, NET, "other.py")
    path = write(
        tmp_path,
        """
        from torch import nn
        from other import Net

        class Block(nn.Module):
            def __init__(self, dim, heads):
                super().__init__()
                self.lin = nn.Linear(dim, dim)
            def forward(self, x):
                return self.lin(x)

        class First(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = Block(8, 2)
            def forward(self, x):
                return self.block(x)

        class Second(First):
            pass
        """,
    )
    targets, problems = find_targets(str(path))
    assert problems == []
    assert names(targets) == ["First", "Second"]
    assert only(find_targets(f"{path}::Net")).name == "Net"
    assert only(find_targets(f"{path}::Block")).arguments == "8, 2"  # as First calls it


def test_a_part_whose_whole_cannot_be_built_is_a_target(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from torch import nn

        class Part(nn.Module):
            def forward(self, x):
                return x

        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.part = Part()
                raise RuntimeError("no licence")
            def forward(self, x):
                return self.part(x)
        """,
    )
    targets, problems = find_targets(str(path))
    assert names(targets) == ["Part"]
    assert [problem.row for problem in problems] == [8]
    assert "Whole could not be built: Whole() raised RuntimeError: no licence" in problems[0].message
    assert "[tool.auditor.targets.Whole]" in problems[0].remedy


def test_containers_and_abstract_bases_are_no_targets(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        import abc
        from torch import nn

        class Base(nn.Module, abc.ABC):
            @abc.abstractmethod
            def encode(self, x): ...
            def forward(self, x):
                return self.encode(x)

        class Needy(nn.Module):
            def __init__(self, mystery: "Unheard"):
                super().__init__()
                self.part = mystery.part
            def forward(self, x):
                return x

        class Holder(nn.Module):
            pass

        class Net(Base):
            def encode(self, x):
                return x

        class Other(Needy):
            def __init__(self):
                nn.Module.__init__(self)
        """,
    )
    targets, problems = find_targets(str(path))
    assert names(targets) == ["Net", "Other"]
    assert problems == []


def test_factories_and_instances_where_classes_fail(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, secret):
                super().__init__()
                self.lin = nn.Linear(secret["width"], 2)
            def forward(self, x):
                return self.lin(x)

        def _make(width):
            net = Net({"width": width})
            return net

        def tiny():
            return _make(3)

        def train():
            raise SystemExit("never call me")
        """,
    )
    target = only(find_targets(str(path)))
    assert (target.name, target.model_class) == ("tiny", "model.Net")

    path = write(tmp_path, "from torch import nn\n\nnet = nn.Sequential(nn.Linear(3, 2))  # here\n")
    target = only(find_targets(str(path)))
    assert (target.name, target.row, target.arguments_from) == ("net", 3, "instance")
    model, log = build(target)
    again, _ = build(target)
    assert model is not again
    assert torch.equal(model[0].weight, again[0].weight)
    location = log.location_of(model[0])
    assert location is not None
    assert location.row == 3


def test_named_factory_with_arguments_and_instance(tmp_path: Path) -> None:
    path = write(tmp_path, NET + "\ndef make(width, depth=1):\n    return Net(width)\n\nmodel = Net(7)\n")
    assert only(find_targets(f"{path}::make")).arguments == "width=32"
    model, _ = build(only(find_targets(f"{path}::model")))
    assert model.lin.in_features == 7


def test_unknown_name(tmp_path: Path) -> None:
    path = write(tmp_path, NET + "\nclass Transformer(Net): pass\n\nsize = 3\n")
    assert failure(find_targets(f"{path}::Transfomer")).remedy == "did you mean 'Transformer'?"
    assert failure(find_targets(f"{path}::net")).remedy == "did you mean 'Net'?"
    assert "Net, Transformer" in failure(find_targets(f"{path}::Quux")).remedy
    assert "is a int, not a model" in failure(find_targets(f"{path}::size")).message


def test_a_function_that_returns_no_model(tmp_path: Path) -> None:
    path = write(tmp_path, NET + "\ndef size():\n    return 3\n")
    problem = failure(find_targets(f"{path}::size"))
    assert "returned int, not a torch.nn.Module" in problem.message


def test_no_model_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1\n")
    problem = failure(find_targets(str(path)))
    assert "no torch.nn.Module" in problem.message
    assert "::" in problem.remedy


# Arguments -----------------------------------------------------------------------------------------------------------


def test_configured_arguments_and_input(tmp_path: Path) -> None:
    path = write(tmp_path, NET)
    settings: Mapping[str, Mapping[str, Any]] = {"Net": {"kwargs": {"width": 9}, "input": "2x9"}}
    target = only(find_targets(str(path), settings))
    assert (target.arguments, target.arguments_from) == ("width=9", "configured")
    model, _ = build(target)
    inputs = target.inputs(model)
    assert (inputs.description, inputs.source) == ("2x9", "given")
    assert target.inputs(model, "3x9").description == "3x9"

    problem = failure(find_targets(str(path), {"Net": {"args": [1, 2, 3]}}))
    assert "Net(1, 2, 3) raised TypeError" in problem.message


def test_example_hooks(tmp_path: Path) -> None:
    text = NET + "\n    @classmethod\n    def example(cls):\n        return cls(11)\n"
    target = only(find_targets(str(write(tmp_path, text))))
    assert target.arguments_from == "example"
    assert built(target).lin.in_features == 11

    text = NET.replace("width=4", "width") + "\ndef example_model():\n    return Net(12)\n"
    target = only(find_targets(str(write(tmp_path, text))))
    assert (target.arguments, built(target).lin.in_features) == ("example_model()", 12)

    text = NET + "\n    @staticmethod\n    def example():\n        raise OSError('no weights')\n"
    problem = failure(find_targets(str(write(tmp_path, text))))
    assert "Net.example() failed: OSError: no weights" in problem.message


def test_example_inputs_of_the_file(tmp_path: Path) -> None:
    text = NET + "\ndef example_inputs():\n    return torch.ones(6, 4)\n"
    target = only(find_targets(str(write(tmp_path, text))))
    inputs = target.inputs(built(target))
    assert (inputs.description, inputs.source) == ("6x4", "hook")


def test_calls_in_the_file_show_the_arguments(tmp_path: Path) -> None:
    text = (
        NET.replace("width=4", "width")
        + """

SIZE = 13

if __name__ == "__main__":
    model = Net(SIZE)
    print(model(torch.randn(2, 5, 13)))
"""
    )
    target = only(find_targets(str(write(tmp_path, text))))
    assert (target.arguments, target.arguments_from) == ("13", "file")
    assert target.inputs(built(target)).description == "4x5x13"


@pytest.mark.parametrize(
    ("signature", "arguments"),
    [
        ("dim, num_heads, num_layers", "dim=32, num_heads=4, num_layers=2"),
        ("vocab_size: int, embed_dim: int, num_classes: int", "vocab_size=100, embed_dim=32, num_classes=10"),
        ("in_channels, out_channels, kernel_size", "in_channels=3, out_channels=16, kernel_size=3"),
        ("dropout: float, bias: bool", "dropout=0.1, bias=False"),
        ("p, norm_layer", "p=0.1, norm_layer=BatchNorm2d"),
        ("activation", "activation=ReLU()"),
        ("mode: Literal['a', 'b']", "mode='a'"),
        ("sizes: list[int]", "sizes=[32, 32]"),
        ("width: int | None, *, depth: int", "width=32, depth=2"),
        ("config: Config", "config=Config()"),
        ("config", "config=Config()"),
        ("needs: Needs", "needs=Needs(hidden_size=32)"),
    ],
)
def test_inferred_arguments(tmp_path: Path, signature: str, arguments: str) -> None:
    path = write(
        tmp_path,
        f"""
        from dataclasses import dataclass
        from typing import Literal
        from torch import nn

        @dataclass
        class Config:
            width: int = 5

        @dataclass
        class Needs:
            hidden_size: int

        class Net(nn.Module):
            def __init__(self, {signature}):
                super().__init__()
                self.given = {{k: v for k, v in locals().items() if k not in ("self", "__class__")}}
                self.lin = nn.Linear(3, 3)
            def forward(self, x):
                return self.lin(x)
        """,
    )
    target = only(find_targets(str(path)))
    assert target.arguments == arguments
    assert target.arguments_from == "inferred"


def test_sequences_where_integers_do_not_work(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, layers, num_classes):
                super().__init__()
                self.body = nn.Sequential(*[nn.Linear(n, n) for n in layers], nn.Linear(layers[0], num_classes))
            def forward(self, x):
                return self.body(x)
        """,
    )
    assert only(find_targets(str(path))).arguments == "layers=[2, 2, 2, 2], num_classes=10"


def test_an_unknown_configuration_is_invented_and_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, cfg):
                super().__init__()
                self.words = nn.Embedding(cfg["vocab_size"], cfg["n_embd"])
                self.drop = nn.Dropout(cfg.dropout)
            def forward(self, idx):
                return self.drop(self.words(idx))
        """,
    )
    assert only(find_targets(str(path))).arguments == "cfg=Config(vocab_size=100, n_embd=32, dropout=0.1)"


def test_models_of_the_file_fill_parameters_that_want_a_model(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        NET
        + """

class Wrapper(nn.Module):
    def __init__(self, net: nn.Module, scale: float):
        super().__init__()
        self.net, self.scale = net, scale
    def forward(self, x):
        return self.net(x) * self.scale
""",
    )
    assert only(find_targets(str(path))).arguments == "net=Net(), scale=1.0"


def test_what_cannot_be_inferred(tmp_path: Path) -> None:
    path = write(tmp_path, NET.replace("width=4", "backbone"))
    problem = failure(find_targets(str(path)))
    assert "no value could be inferred for backbone" in problem.message
    assert "example()" in problem.remedy


def test_arguments_are_made_anew_for_every_construction(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, channels: list[int]):
                super().__init__()
                self.lin = nn.Linear(channels.pop(), 2)
            def forward(self, x):
                return self.lin(x)
        """,
    )
    target = only(find_targets(str(path)))
    widths = {built(target).lin.in_features for _ in range(3)}
    assert widths == {128}


# Loading -------------------------------------------------------------------------------------------------------------


def test_relative_and_absolute_imports_in_a_package(tmp_path: Path) -> None:
    write(tmp_path, "", "pkg/__init__.py")
    write(tmp_path, "", "pkg/models/__init__.py")
    write(tmp_path, "WIDTH = 5\n", "pkg/sizes.py")
    path = write(
        tmp_path,
        "from ..sizes import WIDTH\nfrom pkg.sizes import WIDTH as again\n" + NET.replace("width=4", "width=WIDTH"),
        "pkg/models/net.py",
    )
    target = only(find_targets(str(path)))
    assert target.model_class == "pkg.models.net.Net"
    assert built(target).lin.in_features == 5


def test_relative_imports_without_a_package(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 6\n", "loose/sizes.py")
    path = write(
        tmp_path,
        "from .models.sub import X\nfrom .sizes import WIDTH\n" + NET.replace("width=4", "width=WIDTH"),
        "loose/net.py",
    )
    write(tmp_path, "from ..sizes import WIDTH as X\n", "loose/models/sub.py")
    assert built(only(find_targets(str(path)))).lin.in_features == 6


def test_sibling_imports_and_names_of_the_standard_library(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 8\n", "audit_sizes.py")
    path = write(tmp_path, "from audit_sizes import WIDTH\n" + NET.replace("width=4", "width=WIDTH"), "random.py")
    assert built(only(find_targets(str(path)))).lin.in_features == 8
    assert "random_state" not in dir(sys.modules["random"])
    assert hasattr(sys.modules["random"], "getstate")


def test_main_block_does_not_run(tmp_path: Path) -> None:
    path = write(tmp_path, NET + "\nif __name__ == '__main__':\n    raise RuntimeError('training')\n")
    only(find_targets(str(path)))


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 3\n", "audit_width.py")
    path = write(tmp_path, "from audit_width import WIDTH\n" + NET.replace("width=4", "width=WIDTH"))
    assert built(only(find_targets(str(path)))).lin.in_features == 3
    write(tmp_path, "WIDTH = 33\n", "audit_width.py")
    assert built(only(find_targets(str(path)))).lin.in_features == 33


def test_text_in_place_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, NET)
    target = only(find_targets(str(path), text=NET.replace("width=4", "width=21")))
    assert built(target).lin.in_features == 21
    assert "21" not in path.read_text()
    assert built(only(find_targets(str(path)))).lin.in_features == 4


def test_text_in_place_of_an_imported_file(tmp_path: Path) -> None:
    sizes = write(tmp_path, "WIDTH = 3\n", "audit_override.py")
    path = write(tmp_path, "from audit_override import WIDTH\n" + NET.replace("width=4", "width=WIDTH"))
    target = only(find_targets(str(path), text={str(sizes): "WIDTH = 17\n"}))
    assert built(target).lin.in_features == 17


def test_text_of_an_instance_is_kept_when_it_is_made_again(tmp_path: Path) -> None:
    path = write(tmp_path, "from torch import nn\nnet = nn.Linear(3, 2)\n")
    target = only(find_targets(f"{path}::net", text="from torch import nn\nnet = nn.Linear(5, 2)\n"))
    assert built(target).in_features == 5


def test_dotted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, NET, "audit_pkg/net.py")
    monkeypatch.chdir(tmp_path)
    assert only(find_targets("audit_pkg.net:Net")).path == str(tmp_path / "audit_pkg" / "net.py")
    assert only(find_targets("torch.nn:Identity")).name == "Identity"
    assert "no module named 'audit_nowhere'" in failure(find_targets("audit_nowhere:Net")).message


@pytest.mark.parametrize(
    ("text", "message", "remedy", "row"),
    [
        ("import nowhere_to_be_found\n", "no module named 'nowhere_to_be_found'", "install 'nowhere_to_be_found'", 1),
        ("x = 1\ndef f(:\n", "syntax error", "", 2),
        ("import sys\n\nsys.exit(3)\n", "exits (status 3)", "__main__", 3),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt", "__main__", 1),
        ("x = 1\nx / 0\n", "ZeroDivisionError", "__main__", 2),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args()\n",
            "exits (status 2)",
            "",
            4,
        ),
        ("from torch import nothing_here\n", "ImportError", "", 1),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, text: str, message: str, remedy: str, row: int) -> None:
    problem = failure(find_targets(str(write(tmp_path, text))))
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.row == row


def test_missing_and_unsuitable_files(tmp_path: Path) -> None:
    assert "no such file" in failure(find_targets(str(tmp_path / "none.py"))).message
    notebook = write(tmp_path, "{}", "model.ipynb")
    assert "Python file" in failure(find_targets(str(notebook))).message


def test_constructors_that_exit(tmp_path: Path) -> None:
    path = write(tmp_path, NET.replace("super()", "raise SystemExit(1)\n        super()"))
    assert "SystemExit: 1" in failure(find_targets(str(path))).message


def test_no_bytecode_is_left_beside_the_users_files(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 3\n", "audit_bytecode.py")
    path = write(tmp_path, "from audit_bytecode import WIDTH\n" + NET)
    only(find_targets(str(path)))
    assert not list(tmp_path.rglob("__pycache__"))


def test_the_module_itself_is_cheap_to_import() -> None:
    code = "import sys; import auditor.dynamic.target; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rules_of_the_user_stay_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(find_targets(str(write(tmp_path, NET))))
    rule = types.ModuleType("auditor_user_rules_0.mine")
    rule.__file__ = str(tmp_path / "mine.py")
    monkeypatch.setitem(sys.modules, rule.__name__, rule)
    only(find_targets(str(write(tmp_path, NET))))
    assert sys.modules[rule.__name__] is rule


def test_keywords_handed_on_are_filled_in(tmp_path: Path) -> None:
    text = """
        from torch import nn

        class Layers(nn.Module):
            def __init__(self, dim, depth, *, heads, causal=False):
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(dim, dim) for _ in range(depth * heads)])

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)
                return x

        class Decoder(Layers):
            def __init__(self, **kwargs):
                super().__init__(causal=True, **kwargs)
    """
    target = only(find_targets(f"{write(tmp_path, text)}::Decoder"))
    assert (target.arguments, target.arguments_from) == ("dim=32, depth=2, heads=4", "inferred")
    assert len(built(target).layers) == 8


def test_keywords_nobody_misses_are_not_invented(tmp_path: Path) -> None:
    text = """
        from torch import nn

        class Broken(nn.Module):
            def __init__(self, **kwargs):
                super().__init__()
                len()

            def forward(self, x):
                return x
    """
    targets, problems = find_targets(f"{write(tmp_path, text)}::Broken")
    assert targets == []
    assert "len() takes exactly one argument" in problems[0].message
