"""Cost of `auditor check`, as ratios within one run: against `ast.parse`, other linters and `python -c "import click"`.

    python benchmarks/static.py FOLDER [FOLDER …] [--runs 3] [--sample 40]

FOLDER: unpacked sources, such as site-packages. Reports CPU time, since wall time on shared machines drifts; each
figure is the minimum of several runs. Other linters are timed where they are installed beside this Python (`pip
install torchfix flake8 ruff transformers-mlinter`), the slow ones on a sample of the files.
"""

from __future__ import annotations

import argparse
import ast
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from auditor.loader import load_rules
from auditor.settings import Nearest, Settings
from auditor.static import check, files
from auditor.static.triggers import Triggers

LAYERED = """
class Net{0}(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5)

"""


def cpu_of_command(command: Sequence[str], runs: int = 7, **environment: str) -> float:
    """CPU seconds of a whole process and its children, the smallest of several runs; byte code is kept, as it is for
    users."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | environment

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=given)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(runs))


def cpu_of(function: Callable[[], object], runs: int = 3) -> float:
    """CPU seconds of a call, the smallest of several runs."""

    def once() -> float:
        gc.collect()
        start = time.process_time()
        function()
        return time.process_time() - start

    return min(once() for _ in range(runs))


def parse_all(texts: Sequence[str]) -> None:
    gc.disable()
    for text in texts:
        ast.parse(text)
    gc.enable()


def triggered(paths: Sequence[str], settings: Settings) -> dict[str, str]:
    """The files that the rules' triggers let through, with their texts."""
    triggers = Triggers(check.chosen_rules(settings))
    found = {}
    for path in paths:
        content = files.read(path)
        if triggers.wanted(content):
            try:
                found[path] = files.decode(content)
                ast.parse(found[path])
            except (ValueError, SyntaxError):
                found.pop(path, None)
    return found


def against_parsing(texts: Mapping[str, str], settings: Settings, runs: int) -> None:
    parsing = cpu_of(lambda: parse_all(list(texts.values())), runs)
    checking = cpu_of(lambda: check.check_files(list(texts), settings), runs)
    print(f"ast.parse of the triggered files   {parsing:7.2f} s")
    print(f"check of the triggered files       {checking:7.2f} s   {checking / parsing:5.2f} × ast.parse (goal: ≤ 3)")


def start_up(texts: Mapping[str, str], runs: int) -> None:
    one = max((path for path in texts if 250 <= texts[path].count("\n") <= 350), default=next(iter(texts)))
    click = cpu_of_command([sys.executable, "-c", "import click"], runs + 4)
    start = cpu_of_command([*AUDITOR, "--no-cache", one], runs + 4)
    print(f"python -c 'import click'           {click:7.3f} s")
    print(f"auditor check {Path(one).name:<20} {start:7.3f} s   {start / click:5.2f} × import click (goal: ≤ 2.5)")


AUDITOR = (sys.executable, "-m", "auditor", "check", "--isolated", "--jobs", "1")


def kept_between_runs(folders: Sequence[str], texts: Mapping[str, str], runs: int) -> None:
    """A first run, further ones with nothing changed, and one file with what it imports checked anew."""
    with tempfile.TemporaryDirectory() as cache:
        first = cpu_of_command([*AUDITOR, *folders], 1, AUDITOR_CACHE_DIR=cache)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        again = cpu_of_command([*AUDITOR, *folders], runs, AUDITOR_CACHE_DIR=cache)
        linking = sorted((path for path in texts if "no_grad" in texts[path]), key=lambda path: len(texts[path]))
        changed = linking[len(linking) // 2] if linking else next(iter(texts))
        alone = cpu_of_command([*AUDITOR, "--no-cache", changed], runs, AUDITOR_CACHE_DIR=cache)
    print(f"first run over all folders         {first:7.2f} s   peak memory {peak:.0f} MB (goal: < 600)")
    print(f"second run, nothing changed        {again:7.2f} s   (goal: < 1.5)")
    print(f"{Path(changed).name + ' anew, linked':<34} {alone:7.2f} s   (goal: < 0.5)")


def growth(runs: int) -> None:
    """Files of 5 000 and 10 000 lines."""
    costs = []
    for count in (500, 1000):
        text = "import torch.nn.functional as F\nfrom torch import nn\n" + "".join(map(LAYERED.format, range(count)))
        costs.append(cpu_of(lambda text=text: check.check_text("long.py", text, load_rules()), runs))  # type: ignore[misc]
    print(f"a file of 10 000 lines             {costs[1]:7.2f} s   {costs[1] / costs[0]:5.2f} × one of 5 000 lines")


PEERS = {
    "ruff": (("ruff", "check", "--isolated", "--no-cache"), False),
    "transformers-mlinter": (("mlinter",), True),
    "flake8": (("flake8", "--isolated", "--jobs", "1", "--select", "E,F,W"), True),
    "torchfix": (("torchfix",), True),
}


def peers(texts: Mapping[str, str], settings: Settings, runs: int, count: int) -> None:
    everything = sorted(texts)
    sample = everything[:: max(1, len(everything) // count)]
    for name, ((program, *options), slow) in PEERS.items():
        command = Path(sys.executable).with_name(program)
        if not command.exists():
            print(f"{name}: not installed beside {sys.executable}")
            continue
        some = sample if slow else everything
        ours = cpu_of(lambda some=some: check.check_files(some, settings), runs)  # type: ignore[misc]
        theirs = cpu_of_command([str(command), *options, *some], 1)
        print(f"{name} on {len(some)} files".ljust(34), f"{theirs:7.2f} s   {theirs / ours:7.2f} × ours ({ours:.2f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sample", type=int, default=40, help="files that slow linters are timed on")
    arguments = parser.parse_args()
    settings = Settings(exclude=(), respect_gitignore=False, jobs=1, cache=False)
    paths, _ = files.discover(arguments.folders, Nearest(settings))
    texts = triggered(paths, settings)
    lines = sum(text.count("\n") for text in texts.values())
    rules = sum(rule.reads_source for rule in check.chosen_rules(settings))
    print(f"{len(paths)} files; {len(texts)} pass a trigger of {rules} rules: {lines} lines")
    against_parsing(texts, settings, arguments.runs)
    start_up(texts, arguments.runs)
    kept_between_runs(arguments.folders, texts, arguments.runs)
    growth(arguments.runs)
    peers(texts, settings, arguments.runs, arguments.sample)


if __name__ == "__main__":
    main()
