"""The child process survives, or is survived, whatever user code does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from auditor.dynamic.worker import Worker, WorkerError

OPERATIONS = '''
import os
import sys


def echo(payload, progress):
    progress("halfway")
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return {"echo": payload, "pid": os.getpid()}


def load(payload, progress):
    """Find the targets of a file, and infer their inputs."""
    from auditor.dynamic.target import find_targets

    targets, problems = find_targets(payload["spec"])
    inputs = [target.inputs(target.build()[0]).description for target in targets]
    return {"names": [target.name for target in targets], "inputs": inputs, "problems": [p.message for p in problems]}


def broken(payload, progress):
    raise ZeroDivisionError("a bug of ours")


def unserialisable(payload, progress):
    return {"value": object()}
'''

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 2)
        {constructor}
    def forward(self, x):
        {forward}
        return self.lin(x)
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("operations")
    (folder / "worker_operations.py").write_text(OPERATIONS)
    names = ("echo", "load", "broken", "unserialisable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        operations = {name: f"worker_operations:{name}" for name in names}
        with Worker(timeout=60, memory=3, operations=operations) as made:
            yield made


def write(folder: Path, text: str) -> str:
    path = folder / "model.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def net(folder: Path, constructor: str = "pass", forward: str = "pass") -> str:
    return write(folder, NET.format(constructor=constructor, forward=forward))


def failure(worker: Worker, spec: str) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        worker.request("load", spec=spec)
    return caught.value


def processes_of(worker: Worker) -> list[psutil.Process]:
    pid = worker.request("echo")["pid"]
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended (a zombie has); waits a little for the system to notice."""
    for _ in range(100):
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.05)
    return False


# Answers -------------------------------------------------------------------------------------------------------------


def test_request_and_progress(worker: Worker) -> None:
    heard: list[str] = []
    worker.progress = heard.append
    answer = worker.request("echo", text="grüße\n", number=3)
    assert answer["echo"] == {"text": "grüße\n", "number": 3}
    assert answer["pid"] != os.getpid()
    assert heard == ["halfway"]
    assert worker.output == "to stdout\nto stderr\n"


def test_one_child_serves_many_requests(worker: Worker) -> None:
    assert worker.request("echo")["pid"] == worker.request("echo")["pid"]


def test_unknown_operation(worker: Worker) -> None:
    with pytest.raises(ValueError, match="no such operation: 'sing'"):
        worker.request("sing")


def test_an_error_of_ours_is_reported_and_the_child_lives_on(worker: Worker) -> None:
    pid = worker.request("echo")["pid"]
    with pytest.raises(WorkerError, match="auditor failed: ZeroDivisionError: a bug of ours") as caught:
        worker.request("broken")
    assert caught.value.kind == "crash"
    assert "Traceback" in caught.value.output
    with pytest.raises(WorkerError, match="not JSON serializable"):
        worker.request("unserialisable")
    assert worker.request("echo")["pid"] == pid


def test_the_parent_imports_no_torch() -> None:
    code = "import sys; import auditor.dynamic.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Files that behave ---------------------------------------------------------------------------------------------------


def test_a_model_is_found_and_fed(worker: Worker, tmp_path: Path) -> None:
    answer = worker.request("load", spec=net(tmp_path))
    assert answer == {"names": ["Net"], "inputs": ["4x3"], "problems": []}


def test_what_user_code_prints_is_kept_out_of_the_answers(worker: Worker, tmp_path: Path) -> None:
    answer = worker.request("load", spec=net(tmp_path, forward='print(\'{"id": 1, "result": 0}\')'))
    assert answer["names"] == ["Net"]
    assert '"result": 0' in worker.output


def test_floods_of_output_do_not_block(worker: Worker, tmp_path: Path) -> None:
    flood = "import sys\nfor _ in range(10):\n    print('x' * 1_000_000)\n    sys.stderr.write('y' * 1_000_000)\n"
    answer = worker.request("load", spec=write(tmp_path, flood + NET.format(constructor="pass", forward="pass")))
    assert answer["names"] == ["Net"]
    assert len(worker.output) <= 20_000


def test_standard_input_is_empty(worker: Worker, tmp_path: Path) -> None:
    answer = worker.request("load", spec=write(tmp_path, "answer = input('really? ')\n"))
    assert "EOFError" in answer["problems"][0]


def test_closed_and_replaced_streams_do_no_harm(worker: Worker, tmp_path: Path) -> None:
    text = "import os, sys\nsys.stdout = None\nsys.stderr.close()\nos.close(1)\n"
    answer = worker.request("load", spec=write(tmp_path, text + NET.format(constructor="pass", forward="pass")))
    assert answer["names"] == ["Net"]
    assert worker.request("load", spec=net(tmp_path))["names"] == ["Net"]
    worker.close()


def test_leaving_the_folder_and_changing_the_environment(worker: Worker, tmp_path: Path) -> None:
    text = "import os\nos.chdir('/')\nos.environ.clear()\n"
    answer = worker.request("load", spec=write(tmp_path, text + NET.format(constructor="pass", forward="pass")))
    assert answer["names"] == ["Net"]
    assert worker.request("echo", a=1)["echo"] == {"a": 1}


def test_running_threads_do_not_hold_the_process(worker: Worker, tmp_path: Path) -> None:
    text = "import threading, time\nthreading.Thread(target=lambda: time.sleep(1000)).start()\n"
    worker.request("load", spec=write(tmp_path, text + NET.format(constructor="pass", forward="pass")))
    processes = processes_of(worker)
    worker.close()
    assert gone(processes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_that_return_answer_nothing_and_forks_that_stay_are_ended(worker: Worker, tmp_path: Path) -> None:
    text = "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nos.fork()\n"
    answer = worker.request("load", spec=write(tmp_path, text + NET.format(constructor="pass", forward="pass")))
    assert answer["names"] == ["Net"]
    processes = processes_of(worker)
    assert len(processes) > 1
    worker.close()
    assert gone(processes)


# Files that do not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", "syntax error"),
        ("import sys\nsys.exit(3)\n", "exits (status 3)"),
        ("raise RuntimeError('out of luck')\n", "RuntimeError: out of luck"),
        ("import torch\nclass Net(torch.nn.Module):\n    def __init__(self, backbone): pass\n"
         "    def forward(self, x): pass\n", "no value could be inferred for backbone"),
    ],
)  # fmt: skip
def test_problems_of_a_file_are_answers(worker: Worker, tmp_path: Path, text: str, message: str) -> None:
    answer = worker.request("load", spec=write(tmp_path, text))
    assert answer["names"] == []
    assert message in answer["problems"][0]


def test_exit_in_the_forward_is_an_answer(worker: Worker, tmp_path: Path) -> None:
    error = failure(worker, net(tmp_path, forward="import sys; sys.exit(4)"))
    assert "SystemExit: 4" in str(error)


def test_time_limit_says_where_and_what_to_do(worker: Worker, tmp_path: Path) -> None:
    worker.request("echo")  # the limit counts from when the child is ready; imports of torch are behind us
    worker.timeout = 2
    try:
        spec = write(tmp_path, "import time\n\ndef wait():\n    time.sleep(1000)\n\nwait()\n")
        error = failure(worker, spec)
    finally:
        worker.timeout = 60
    assert error.kind == "timeout"
    assert "the time limit of 2 s was reached" in str(error)
    assert f"{spec}, line 4 (wait)" in str(error)
    assert "--timeout" in str(error)
    assert worker.request("load", spec=net(tmp_path))["names"] == ["Net"]


def test_memory_limit_says_where_and_what_to_do(worker: Worker, tmp_path: Path) -> None:
    worker.close()
    worker.memory = 1
    try:
        spec = write(tmp_path, "held = []\nwhile True:\n    held.append(bytearray(1 << 24))\n")
        error = failure(worker, spec)
        assert error.kind == "memory"
        assert "1 GB" in str(error)
        assert "--memory" in str(error)

        spec = net(tmp_path, constructor="self.big = torch.ones(1 << 33)")
        error = failure(worker, spec)
        assert error.kind == "memory"
        assert "--memory" in str(error)
    finally:
        worker.close()
        worker.memory = 3


def test_segmentation_fault_says_where(worker: Worker, tmp_path: Path) -> None:
    spec = net(tmp_path, forward="import ctypes; ctypes.string_at(0)")
    error = failure(worker, spec)
    assert error.kind == "crash"
    assert "SIGSEGV" in str(error)
    assert f"{spec}, line 11 (forward)" in str(error)
    assert "Segmentation fault" in error.output
    assert worker.request("load", spec=net(tmp_path))["names"] == ["Net"]


def test_ending_the_process_says_the_status(worker: Worker, tmp_path: Path) -> None:
    error = failure(worker, net(tmp_path, constructor="import os; os._exit(7)"))
    assert error.kind == "exit"
    assert "status 7" in str(error)
    assert "os._exit" in str(error)


def test_a_child_that_dies_between_requests_is_replaced(worker: Worker) -> None:
    (process, *_) = processes_of(worker)
    process.kill()
    process.wait()
    assert worker.request("echo")["pid"] != process.pid


def test_without_torch_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is missing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker() as worker, pytest.raises(WorkerError, match="libtorch is missing") as caught:
        worker.request("audit")
    assert caught.value.kind == "start"
    assert "pip install" in str(caught.value)


def test_an_interrupt_ends_the_child(worker: Worker) -> None:
    processes = processes_of(worker)

    def interrupt(message: str) -> Any:
        raise KeyboardInterrupt

    worker.progress = interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.request("echo")
    finally:
        worker.progress = lambda message: None
    assert gone(processes)


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import time\ndef run(payload, progress):\n    progress(''); time.sleep(1000)\n"
    )
    code = """
import os
from auditor.dynamic.worker import Worker
worker = Worker(operations={"run": "endless:run"})
worker.progress = lambda message: (print(worker._child.process.pid, flush=True), os.kill(os.getpid(), 9))
worker.request("run")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    pid = int(done.stdout)
    assert not psutil.pid_exists(pid) or gone([psutil.Process(pid)])
