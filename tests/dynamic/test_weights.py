"""Files of trained weights: what is read, what is refused, what does not fit, and what is found in them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from auditor.dynamic.service import Audit, audit_file
from auditor.dynamic.weights import Fit, WeightsError, load_into, read
from auditor.settings import Settings
from auditor.static.check import chosen_rules
from tests.cli import auditor

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))
"""


class Net(nn.Module):
    """The same, to make weights with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)


def trained() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.norm(torch.randn(16, 4, 3, 3) * 2 + 1)
    return net


def state(**changes: Any) -> dict[str, Any]:
    return {**trained().state_dict(), **changes}


def audited(folder: Path, tensors: Any) -> Audit:
    (folder / "net.py").write_text(textwrap.dedent(NET))
    torch.save(tensors, folder / "net.pt")
    settings = Settings(weights=str(folder / "net.pt"))
    return audit_file(str(folder / "net.py"), chosen_rules(settings), settings)


def codes(found: Audit) -> list[str]:
    return [finding.code for finding in found.findings if finding.severity.name != "INFO"]


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"epoch": 3, "state_dict": tensors, "lr": 0.1},
        lambda tensors: {"model": {f"module.{name}": value for name, value in tensors.items()}},
        lambda tensors: {"state_dict": {f"model.{name}": value for name, value in tensors.items()}},
        lambda tensors: {f"_orig_mod.module.{name}": value for name, value in tensors.items()},
    ],
)
def test_a_state_dict_is_found_inside_a_checkpoint(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(state()), tmp_path / "net.pt")
    net = Net()
    fit = load_into(net, read(str(tmp_path / "net.pt")))
    assert (fit.missing, fit.unexpected, fit.mismatched) == ((), (), ())
    assert torch.equal(net.head.weight, trained().head.weight)


def test_safetensors_also_in_parts(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = state()
    names = list(tensors)
    save_file({name: tensors[name] for name in names[:3]}, tmp_path / "a.safetensors")
    save_file({name: tensors[name] for name in names[3:]}, tmp_path / "b.safetensors")
    index = {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert set(read(str(tmp_path / "a.safetensors"))) == set(names[:3])
    assert set(read(str(tmp_path / "model.safetensors.index.json"))) == set(names)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"net": Payload(str(tmp_path / "written"))}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="code in it is not run") as caught:
        read(str(tmp_path / "net.pt"))
    assert "state_dict" in caught.value.remedy
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pt", None, "there is no file"),
        ("text.pt", b"hello", "cannot be read"),
        ("cut.safetensors", b"\x08\x00\x00\x00", "cannot be read"),
        ("model.index.json", b"{}", "no index of weights"),
    ],
)
def test_bad_files_have_a_clear_message(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        read(str(tmp_path / name))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="no named tensors"):
        read(str(tmp_path / "net.pt"))


# Fitting -------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named_and_the_rest_is_loaded() -> None:
    tensors = state(**{"head.weight": torch.zeros(5, 4), "extra.weight": torch.zeros(1)})
    del tensors["conv.bias"], tensors["norm.num_batches_tracked"]
    fit = load_into(Net(), tensors)
    assert fit.missing == ("conv.bias",)
    assert fit.unexpected == ("extra.weight",)
    assert fit.mismatched == (("head.weight", (2, 4), (5, 4)),)
    assert "conv.weight" in fit.loaded
    messages = [message for message, _ in fit.complaints("net.pt")]
    assert messages == [
        "net.pt lacks `conv.bias`: these keep their initial values",
        "net.pt has other shapes for `head.weight` (5×4, not 2×4)",
        "net.pt has `extra.weight`, which the model has not: they are dropped",
    ]


def test_a_tied_weight_saved_once_is_not_missing() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

    assert load_into(Tied(), {"embed.weight": torch.ones(10, 4)}) == Fit(loaded=("embed.weight",))


def test_nothing_that_fits_is_a_problem_and_no_audit(tmp_path: Path) -> None:
    found = audited(tmp_path, {"other.weight": torch.zeros(3)})
    assert found.findings == []
    assert len(found.problems) == 1
    assert "belongs to it" in found.problems[0].message


# Findings ------------------------------------------------------------------------------------------------------------


def test_trained_weights_are_clean_and_not_judged_as_a_start(tmp_path: Path) -> None:
    found = audited(tmp_path, state(**{"head.weight": torch.full((2, 4), 300.0)}))
    assert found.problems == []
    assert codes(found) == []
    assert found.records[0]["weights_loaded"] == len(state())


def test_nan_in_a_checkpoint(tmp_path: Path) -> None:
    weight = trained().head.weight.detach().clone()
    weight[0, 1] = float("nan")
    found = audited(tmp_path, state(**{"head.weight": weight}))
    assert codes(found) == ["WGT001"]
    (finding,) = [finding for finding in found.findings if finding.code == "WGT001"]
    assert "1 of 8 entries of `head.weight`" in finding.message
    assert (finding.location.row, finding.modules) == (10, ("head",))


def test_running_statistics_that_were_never_updated(tmp_path: Path) -> None:
    fresh = {**state(), **{f"norm.{name}": value for name, value in nn.BatchNorm2d(4).state_dict().items()}}
    assert codes(audited(tmp_path, fresh)) == ["NRM012"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(textwrap.dedent(NET))
    tensors = state()
    del tensors["head.bias"]
    torch.save(tensors, "net.pt")
    result = auditor("audit", "net.py", "--weights", "net.pt")
    assert result.exit_code == 2
    assert "lacks `head.bias`" in result.output
    result = auditor("audit", "net.py", "--weights", "none.pt")
    assert result.exit_code == 2
    assert "there is no file none.pt" in result.output
