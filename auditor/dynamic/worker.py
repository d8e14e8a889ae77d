"""The child process in which user code runs, and the parent's handle on it.

Requests and answers are lines of JSON on the pipes that the child was started with as stdin and stdout; its first act
is to move these away, so that what user code prints goes to a spool file and what it reads is empty. The parent kills
the child, with all it has forked, at a time or memory limit, and starts a fresh one for the next request.

On Windows there are no process groups and no traceback on timeout; the process tree is ended through psutil.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

OPERATIONS = {
    "audit": "auditor.dynamic.service:audit",
    "validate": "auditor.fix.service:validate",
    "devices": "auditor.fix.service:devices",
}
START_SECONDS = 180.0
TICK = 0.05
SPOOL_LIMIT = 16 << 20
SHOWN = 20_000  # characters of the child's output that are kept
GIGABYTE = 1 << 30
MORE_MEMORY = "raise it with `--memory` if the model really is that large"
DUMP_SIGNAL = getattr(signal, "SIGUSR1", None)

Progress = Callable[[str], None]


class WorkerError(Exception):
    """A request that got no answer.

    `kind`: "timeout", "memory", "crash" (a signal, or an error inside auditor), "exit" (the code ended the process) or
    "start". The message is one sentence that says what to do; `output` is the end of what the child printed.
    """

    def __init__(self, kind: str, message: str, output: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.output = output


# The parent's side ---------------------------------------------------------------------------------------------------


class Worker:
    """Runs requests in a child process, which is started when first needed and after every failure.

    `timeout` is in seconds per request, counted from when the child is ready; `memory` in GB (2**30 bytes) for the
    child and what it forks. `progress` is called with each message of a running request. `operations` adds names to
    OPERATIONS: each is `module:function`, called as `function(payload, progress)` and returning JSON data.
    """

    def __init__(
        self,
        *,
        timeout: float = 120.0,
        memory: float = 8.0,
        progress: Progress | None = None,
        operations: Mapping[str, str] | None = None,
        start_timeout: float = START_SECONDS,
    ) -> None:
        self.timeout = timeout
        self.memory = memory
        self.progress = progress or (lambda message: None)
        self.operations = {**OPERATIONS, **(operations or {})}
        self.start_timeout = start_timeout
        self.output = ""
        self._child: _Child | None = None
        self._requests = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and everything it started."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def request(self, op: str, **payload: Any) -> dict[str, Any]:
        """Run the operation `op` and return its answer; raises WorkerError if there is none.

        Afterwards `output` is the end of what the child printed meanwhile.
        """
        if op not in self.operations:
            raise ValueError(f"no such operation: {op!r}")
        function = self.operations[op]
        if self._child is None or not self._child.alive:
            self.close()
            self._child = self._start()
        child = self._child
        self._requests += 1
        child.clear_output()
        try:
            child.send({"id": self._requests, "function": function, "payload": payload})
            answer = self._wait(child, self._requests, self.timeout)
        except BaseException:
            self.close()
            raise
        self.output = child.output()
        failure = answer.get("failure")
        if failure is not None:
            raise WorkerError(failure["kind"], self._explained(failure), self.output)
        result: dict[str, Any] = answer["result"]
        return result

    def _start(self) -> _Child:
        child = _Child(self.memory)
        try:
            answer = self._wait(child, 0, self.start_timeout)
        except WorkerError as error:
            child.kill()
            raise WorkerError("start", f"the child process did not start: {error}", error.output) from None
        except BaseException:
            child.kill()
            raise
        if "failure" in answer:
            output = child.output()
            child.kill()
            raise WorkerError("start", answer["failure"]["message"], output)
        return child

    def _wait(self, child: _Child, number: int, seconds: float) -> dict[str, Any]:
        """The answer to request `number`, within limits."""
        deadline = time.monotonic() + seconds
        while True:
            message = child.receive(TICK)
            if message is None:
                self._check(child, deadline, seconds)
            elif message.get("id") != number:
                continue  # from a process that user code forked in mid-request
            elif "progress" in message:
                self.progress(message["progress"])
            else:
                return message

    def _check(self, child: _Child, deadline: float, seconds: float) -> None:
        """Raise WorkerError if the child is dead or over a limit."""
        code = child.poll()
        if code is not None:
            raise self._died(child, code)
        child.trim_output()
        if child.resident() > self.memory * GIGABYTE:
            where = child.whereabouts()
            raise WorkerError(
                "memory", f"the memory limit of {self.memory:g} GB was exceeded{where}; {MORE_MEMORY}", child.output()
            )
        if time.monotonic() > deadline:
            where = child.whereabouts()
            advice = "raise it with `--timeout` if the code just needs longer"
            raise WorkerError(
                "timeout", f"the time limit of {seconds:g} s was reached{where}; {advice}", child.output()
            )

    def _died(self, child: _Child, code: int) -> WorkerError:
        output = child.output()
        if code >= 0:
            advice = "remove the call that does so (`os._exit`, `quit`) from what an import or a forward runs"
            return WorkerError("exit", f"the code ended its process with status {code}; {advice}", output)
        name = signal.Signals(-code).name
        where = _place(output)
        if name == "SIGKILL":
            advice = (
                f"so it goes when memory runs out: use a smaller model, or lower `--memory` from {self.memory:g} GB"
            )
            return WorkerError("crash", f"the process was killed from outside (SIGKILL){where}; {advice}", output)
        advice = "native code failed: try the line alone in `python -X faulthandler`"
        return WorkerError("crash", f"the process crashed with {name}{where}; {advice}", output)

    def _explained(self, failure: Mapping[str, str]) -> str:
        if failure["kind"] == "memory":
            return f"{failure['message']} under the memory limit of {self.memory:g} GB; {MORE_MEMORY}"
        return failure["message"]


class _Child:
    """One child process, its pipes and its spool file."""

    def __init__(self, memory: float) -> None:
        # Appending, so that writing goes on at the start after the parent has emptied the file.
        descriptor, name = tempfile.mkstemp(prefix="auditor-", suffix=".log")
        os.close(descriptor)
        self.spool = open(name, "a+b")  # noqa: SIM115 - lives as long as the child
        self.spool_name = name
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.spool,
            env=_environment(),
            start_new_session=True,
        )
        self.family: list[Any] = []
        self.looks = 0
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # a line that is not ours, printed while Python started
                    message = json.loads(line)
                    if isinstance(message, dict):
                        self.messages.put(message)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def poll(self) -> int | None:
        """The exit status, once all messages have been read."""
        code = self.process.poll()
        if code is not None and self.messages.empty():
            time.sleep(TICK)  # the reader may still hold the last line
            return code if self.messages.empty() else None
        return None

    def send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_check` finds out why
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any] | None:
        try:
            return self.messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def resident(self) -> int:
        """Bytes of memory in use by the child and its descendants."""
        psutil = _psutil()
        if psutil is None:
            return 0
        if self.looks % 8 == 0:  # listing all processes of the system takes long
            self.family = _tree(self.process.pid)
        self.looks += 1
        total = 0
        for process in self.family:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def whereabouts(self) -> str:
        """Where the user's code is, as the child's own traceback tells: ` in file.py, line 3`, or nothing."""
        if DUMP_SIGNAL is None or not self.alive:
            return ""
        before = len(self.output())
        os.kill(self.process.pid, DUMP_SIGNAL)
        for _ in range(20):
            time.sleep(TICK)
            if len(self.output()) != before:
                time.sleep(TICK)
                break
        return _place(self.output())

    # Output ------------------------------------------------------------------------------------------------------

    def output(self) -> str:
        """The end of what the child has printed since `clear_output`."""
        self.spool.seek(0, os.SEEK_END)
        self.spool.seek(max(0, self.spool.tell() - SHOWN))
        return self.spool.read(SHOWN).decode(errors="replace")

    def clear_output(self) -> None:
        self.spool.truncate(0)

    def trim_output(self) -> None:
        if os.fstat(self.spool.fileno()).st_size > SPOOL_LIMIT:
            self.clear_output()

    def kill(self) -> None:
        """End the process, its group and all its descendants; return when it is gone."""
        psutil = _psutil()
        descendants = _tree(self.process.pid)[1:] if psutil is not None else []
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for process in descendants:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.spool.close()
        with contextlib.suppress(OSError):
            os.unlink(self.spool_name)


def _psutil() -> Any:
    """The module, or None: it comes with the extra that brings torch."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _tree(pid: int) -> list[Any]:
    psutil = _psutil()
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _environment() -> dict[str, str]:
    """The parent's, with auditor importable, no plotting windows and no bytecode written beside the user's files."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in paths and "site-packages" not in root:
        paths.append(root)
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **fixed}


FRAME = re.compile(r'^  File "(.+?)", line (\d+) in (.+)$', re.MULTILINE)


def _place(output: str) -> str:
    """` in file.py, line 3 (forward)`: the innermost user frame of the last traceback that faulthandler wrote."""
    from auditor.dynamic.lines import is_user_file

    traceback_text = output.rpartition("(most recent call first):")[2]
    for file, row, function in FRAME.findall(traceback_text if traceback_text != output else ""):
        if is_user_file(file):
            return f" in {file}, line {row} ({function})"
    return ""


# The child's side ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve requests until the parent closes the pipe."""
    requests, answers = _take_pipes()
    process = os.getpid()

    def send(message: Mapping[str, Any]) -> None:
        if os.getpid() != process:
            os._exit(0)  # user code forked, and the copy came back here
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    faulthandler.enable()
    if DUMP_SIGNAL is not None:
        faulthandler.register(DUMP_SIGNAL)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        importlib.import_module("torch")
    except Exception as error:
        remedy = "install it where auditor is installed: `pip install torch-auditor[torch]`"
        message = f"torch cannot be imported ({type(error).__name__}: {error}); {remedy}"
        send({"id": 0, "failure": {"kind": "start", "message": message}})
        os._exit(1)
    _limit_memory(float(sys.argv[1]))
    send({"id": 0, "ready": True})
    for line in requests:
        request = json.loads(line)
        number = request["id"]
        answer = _answer(request, lambda text: send({"id": number, "progress": text}))  # noqa: B023 - used at once
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # user code may have closed or replaced it
                stream.flush()
        send({"id": number, **answer})
    os._exit(0)  # threads that user code left running must not hold the process back


def _answer(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run one operation; whatever it raises is described."""
    try:
        module, _, name = request["function"].partition(":")
        result = getattr(importlib.import_module(module), name)(request["payload"], progress)
        json.dumps(result)
        return {"result": result}
    except SystemExit as error:
        message = (
            f"the code called `sys.exit({error.code!r})`; remove it from what an import, constructor or forward runs"
        )
        return {"failure": {"kind": "exit", "message": message}}
    except BaseException as error:
        if out_of_memory(error):
            return {"failure": {"kind": "memory", "message": "memory ran out"}}
        traceback.print_exc()
        message = f"auditor failed: {type(error).__name__}: {error}; please report this with the output of `--verbose`"
        return {"failure": {"kind": "crash", "message": message}}


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python or in torch's CPU allocator."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the pipes under other numbers; stdin becomes empty, stdout goes where stderr goes."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="replace")  # type: ignore[union-attr]
    return requests, answers


def _end_with_parent(parent: int) -> None:
    """Exit when the parent has died without saying so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _limit_memory(gigabytes: float) -> None:
    """A second fence against a jump between two looks of the parent; and no core files.

    Linux only. Not where there is a GPU: its driver maps address space that it never uses.
    """
    status = Path("/proc/self/status")
    if not status.exists() or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    match = re.search(r"VmData:\s+(\d+) kB", status.read_text())
    if match:
        limit = int(match.group(1)) * 1024 + int(1.25 * gigabytes * GIGABYTE)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    # Under its real name, so that user code and operations that import this module get the same one.
    from auditor.dynamic import worker

    worker.main()
