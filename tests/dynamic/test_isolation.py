"""Whatever one model does, the next one is audited as if it had been alone, and the caller's process is as it was."""

from __future__ import annotations

import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import auditor
from auditor.dynamic.state import RandomState, Switches
from auditor.dynamic.worker import Worker, WorkerError
from auditor.settings import Settings

HEALTHY = """
    import torch
    from torch import nn

    class Healthy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))

        def forward(self, x):
            return self.layers(x)
"""
HOSTILE = """
    import os, sys, threading, time, socket
    import torch
    from torch import nn
    {at_import}

    class Hostile(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            {at_forward}
            return self.fc(x)
"""
CHANGES = (
    "torch.set_default_dtype(torch.float64)",
    "torch.use_deterministic_algorithms(True)",
    "torch.set_grad_enabled(False)",
    "torch.manual_seed(7)",
    "torch.set_num_threads(2)",
    "os.environ['CUDA_VISIBLE_DEVICES'] = '7'",
    "os.chdir('/')",
    "sys.path.clear()",
    "__import__('warnings').simplefilter('error')",
    "threading.Thread(target=time.sleep, args=(60,), daemon=False).start()",
    "open(os.path.join(os.path.dirname(__file__), 'left.txt'), 'w').write('x')",
    "sys.stdin.read()",
)
DEADLY = (
    "os.kill(os.getpid(), 11)",
    "os._exit(3)",
    "time.sleep(60)",
    "socket.create_server(('127.0.0.1', 0)).accept()",
    "os.fork() or time.sleep(60); os.wait()",
    "setattr(sys, 'hoard', [torch.ones(1 << 26) for _ in range(64)])",
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Worker(timeout=90, memory=3) as made:
            yield made


def request(worker: Worker, path: Path) -> dict[str, Any]:
    return worker.request("audit", spec=str(path), settings=Settings().to_json(), inputs=[], texts=None, facts=False)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture(scope="module")
def alone(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A healthy model and what an audit of it says."""
    path = written(tmp_path_factory.mktemp("healthy"), "healthy.py", HEALTHY)
    answer = request(worker, path)
    assert answer["problems"] == []
    assert answer["records"][0]["capture"]["train"]["rung"] == "record"
    return path, answer


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_model_is_audited_as_if_alone(
    worker: Worker, tmp_path: Path, alone: tuple[Path, dict[str, Any]], change: str
) -> None:
    request(worker, written(tmp_path, "hostile.py", HOSTILE.format(at_import=change, at_forward=change)))
    path, expected = alone
    assert request(worker, path) == expected


@pytest.mark.parametrize("act", DEADLY)
def test_what_ends_or_blocks_the_child_is_one_failure(
    tmp_path: Path, alone: tuple[Path, dict[str, Any]], act: str
) -> None:
    path, expected = alone
    hostile = written(tmp_path, "hostile.py", HOSTILE.format(at_import="pass", at_forward=act))
    with Worker(timeout=8, memory=3) as worker:
        with pytest.raises(WorkerError):
            request(worker, hostile)
        worker.timeout = 90
        assert request(worker, path) == expected


# In the caller's process ---------------------------------------------------------------------------------------------


class Live(nn.Module):
    """Turns switches, draws numbers, keeps a cache and, if asked, fails."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)
        self.head.weight.requires_grad_(False)
        self.fails = fails
        self.calls: list[int] = []
        self.conv.weight.grad = torch.ones_like(self.conv.weight)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        self.calls.append(len(x))
        self.conv.weight.data.add_(1.0)
        if self.fails:
            raise RuntimeError("broken")
        return self.head(self.drop(self.norm(self.conv(x))).mean(dim=(2, 3)) + torch.rand(4))


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "addresses": {name: tensor.data_ptr() for name, tensor in tensors.items()},
        "gradients": {name: None if t.grad is None else t.grad.clone() for name, t in tensors.items()},
        "learning": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: list(module._forward_hooks) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return bool(first == second)


@pytest.mark.parametrize("fails", [False, True])
def test_an_audit_in_process_leaves_everything_as_it_was(fails: bool) -> None:
    model, batch = Live(fails), torch.randn(4, 3, 8, 8)
    handle = model.conv.register_forward_hook(lambda *event: None)
    before, switches, generators = snapshot(model), Switches.now(), RandomState.now()
    given = batch.clone()
    report = auditor.audit(model, batch)
    assert bool(report.problems) == fails
    after = snapshot(model)
    assert [key for key in before if not same(before[key], after[key])] == []
    assert model.calls == []
    assert (Switches.now(), generators.changed()) == (switches, ())
    assert torch.equal(batch, given)
    handle.remove()


def test_the_network_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("auditor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)
    auditor.audit(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(4, 4))
