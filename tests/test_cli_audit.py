"""`auditor audit` as a user meets it: targets, inputs, fixes, certificates, and models that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import auditor
from auditor.cli import cli
from auditor.fix.certificate import Certificate

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
BAD = HEAD + (
    "class Net(nn.Module):\n"
    "    def __init__(self, width=8):\n"
    "        super().__init__()\n"
    "        self.fc = nn.Linear(width, 8)\n"
    "\n"
    "    def forward(self, x):\n"
    "        return F.dropout(self.fc(x), 0.5)\n"
)
FIXED = BAD.replace("0.5)", "0.5, training=self.training)")
GOOD = FIXED.replace("class Net", "class Good")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def audit(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["audit", "--isolated", *arguments], prog_name="auditor")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_defect_seen_both_ways_is_one_finding(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    result = audit("net.py")
    assert result.exit_code == 1
    assert "net.py:12:16: MOD004 [*]" in result.output
    assert "read in source and seen in a run" in result.output
    assert "Found 1 error in 1 file" in result.output


def test_fix_is_proven_and_written(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    result = audit("net.py", "--fix", "--certificate", "proof.json")
    assert result.exit_code == 0, result.output
    assert (folder / "net.py").read_text() == FIXED
    assert "MOD004 fix proven" in result.output
    (record,) = json.loads((folder / "proof.json").read_text())
    certificate = Certificate.from_json(record)
    assert certificate.accepted
    assert certificate.target == "Net"
    assert all(claim.holds for claim in certificate.claims)


def test_a_fix_that_cannot_be_proven_is_not_written(folder: Path) -> None:
    """The drawn mask makes eval random whatever happens to the dropout: the gain cannot be shown."""
    text = BAD.replace("F.dropout(self.fc(x), 0.5)", "F.dropout(self.fc(x), 0.5) + torch.randn(8)")
    (folder / "net.py").write_text(text)
    result = audit("net.py", "--fix")
    assert result.exit_code == 1
    assert (folder / "net.py").read_text() == text
    assert "MOD004 fix not made" in result.output
    assert "it does not hold that" in result.output


def test_targets_by_name_by_function_and_by_module(folder: Path) -> None:
    text = BAD + "\n\ndef make():\n    return Net(4)\n\n\nready = Net(2)\n"
    (folder / "net.py").write_text(text)
    for target, width in (("net.py::Net", 8), ("net.py::make", 4), ("net.py::ready", 2), ("net:make", 4)):
        result = audit(target, "-v", "--select", "MOD004")
        assert result.exit_code == 1, result.output
        assert f"x{width}' (inferred)" in result.output


def test_given_inputs(folder: Path) -> None:
    (folder / "net.py").write_text(
        HEAD
        + "class Net(nn.Module):\n"
        + "    def __init__(self):\n"
        + "        super().__init__()\n"
        + "        self.embed = nn.Embedding(100, 8)\n"
        + "\n"
        + "    def forward(self, tokens, scale=None):\n"
        + "        return F.dropout(self.embed(tokens) * scale, 0.5)\n"
    )
    result = audit("net.py", "--input", "tokens=int:4x16:0-100", "--input", "scale=4x16x1", "--select", "MOD", "-v")
    assert result.exit_code == 1, result.output
    wrong = audit("net.py", "--input", "4y16", "--select", "MOD")
    assert wrong.exit_code == 2
    assert "4y16" in wrong.output


MISBEHAVING = {
    "raises.py": (HEAD + "raise RuntimeError('no weights here')\n", "no weights here"),
    "exits.py": (HEAD + "import sys\nsys.exit(3)\n", "exit"),
    "kills.py": (HEAD + "import os\nos._exit(5)\n", "5"),
    "missing.py": ("import torch\nimport a_package_that_is_not_there\n", "a_package_that_is_not_there"),
    "syntax.py": ("import torch  # dropout\ndef f(:\n", "syntax"),
    "crashes.py": (HEAD + "import ctypes\nctypes.string_at(0)\n", "SIG"),
    "no_model.py": ("import torch\n", "no torch.nn.Module"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_misbehaving_files_are_named_and_the_rest_is_audited(folder: Path, name: str) -> None:
    text, message = MISBEHAVING[name]
    (folder / name).write_text(text)
    (folder / "net.py").write_text(BAD)
    result = audit(name, "net.py", "--select", "MOD004")
    assert result.exit_code == 2
    assert message in result.output
    assert name in result.output
    assert "net.py:12:16: MOD004" in result.output
    assert "Traceback" not in result.output


def test_limits(folder: Path) -> None:
    (folder / "sleeps.py").write_text(HEAD + "import time\ntime.sleep(600)\n")
    (folder / "grows.py").write_text(HEAD + "held = []\nwhile True:\n    held.append(torch.ones(1 << 22))\n")
    slow = audit("sleeps.py", "--timeout", "2")
    assert slow.exit_code == 2
    assert "--timeout" in slow.output
    large = audit("grows.py", "--memory", "1.5", "--timeout", "60")
    assert large.exit_code == 2
    assert "--memory" in large.output


def test_model_that_needs_arguments_or_another_input(folder: Path) -> None:
    (folder / "needs.py").write_text(
        HEAD + "class Net(nn.Module):\n    def __init__(self, recipe):\n        super().__init__()\n"
        "        self.fc = recipe.build()\n\n    def forward(self, x):\n        return self.fc(x)\n"
    )
    result = audit("needs.py")
    assert result.exit_code == 2
    assert "recipe" in result.output
    assert "tool.auditor.targets.Net" in result.output
    (folder / "shape.py").write_text(BAD)
    wrong = audit("shape.py", "--input", "2x9")
    assert wrong.exit_code == 2
    assert "--input" in wrong.output


def test_what_a_model_prints_does_not_disturb_the_report(folder: Path) -> None:
    (folder / "net.py").write_text(BAD.replace("        return", "        print('hello' * 1000)\n        return"))
    result = audit("net.py", "--output-format", "json", "--select", "MOD004")
    (finding,) = json.loads(result.output)
    assert finding["code"] == "MOD004"
    assert finding["seen"] == ["read in source", "seen in a run"]
    assert finding["models"] == ["Net"]


def test_unknown_target(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    result = audit("net.py::Nett")
    assert result.exit_code == 2
    assert "did you mean 'Net'?" in result.output
    missing = audit("nowhere.py")
    assert missing.exit_code == 2
    assert "nowhere.py" in missing.output


def test_comments_silence_what_a_run_shows(folder: Path) -> None:
    (folder / "net.py").write_text(BAD.replace("0.5)", "0.5)  # noqa: MOD004, MOD010"))
    result = audit("net.py")
    assert result.exit_code == 0, result.output


def test_output_does_not_depend_on_the_hash_seed(folder: Path) -> None:
    (folder / "net.py").write_text(BAD + GOOD[len(HEAD) :])
    command = [sys.executable, "-m", "auditor", "audit", "--isolated", "net.py", "--output-format", "json"]
    outputs = {
        subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}, check=False).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())) == 1


def test_python_api(folder: Path) -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.norm(self.fc(x)), 0.5)

    model = Net()
    model.fc.eval()
    batch = torch.randn(4, 8)
    model(batch).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    random_state = torch.get_rng_state()
    report = auditor.audit(model, batch)
    assert [finding.code for finding in report.findings if finding.severity >= 2] == ["MOD004"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert (model.training, model.fc.training) == (True, False)
    (folder / "net.py").write_text(BAD)
    assert [finding.code for finding in auditor.check("net.py").findings] == ["MOD004"]
