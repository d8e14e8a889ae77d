"""Cost of `auditor check`, as ratios within one run: against `ast.parse`, TorchFix and `python -c "import click"`.

    python benchmarks/static.py FOLDER [--torchfix]

FOLDER: unpacked sources, such as site-packages. Reports CPU time, since wall time on shared machines drifts; each
figure is the minimum of several runs. TorchFix (`pip install torchfix flake8`) is slow: it is timed on a sample.
"""

from __future__ import annotations

import argparse
import ast
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from auditor.settings import Nearest, Settings
from auditor.static import check, files
from auditor.static.triggers import Triggers


def cpu_of_command(command: Sequence[str], runs: int = 7) -> float:
    """CPU seconds of a whole process, the smallest of several runs."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--torchfix", action="store_true")
    arguments = parser.parse_args()
    settings = Settings(exclude=(), respect_gitignore=False, jobs=1)
    paths, _ = files.discover([arguments.folder], Nearest(settings))
    texts = triggered(paths, settings)
    lines = sum(text.count("\n") for text in texts.values())
    print(f"{len(paths)} files, {len(texts)} pass a trigger: {lines} lines")

    parsing = cpu_of(lambda: parse_all(list(texts.values())))
    checking = cpu_of(lambda: check.check_files(list(texts), settings))
    everything = cpu_of(lambda: check.check_files(paths, settings), runs=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"ast.parse of the triggered files   {parsing:7.2f} s")
    print(f"check of the triggered files       {checking:7.2f} s   {checking / parsing:5.2f} × ast.parse (goal: ≤ 3)")
    print(f"check of all files                 {everything:7.2f} s   {everything / parsing:5.2f} × ast.parse")
    print(f"peak memory                        {peak:7.0f} MB")

    one = max((path for path in texts if 250 <= texts[path].count("\n") <= 350), default=next(iter(texts)))
    click = cpu_of_command([sys.executable, "-c", "import click"])
    start = cpu_of_command([sys.executable, "-m", "auditor", "check", "--isolated", one])
    print(f"python -c 'import click'           {click:7.3f} s")
    print(f"auditor check {Path(one).name:<20} {start:7.3f} s   {start / click:5.2f} × import click (goal: ≤ 2.5)")

    if arguments.torchfix:
        sample = sorted(texts)[:: max(1, len(texts) // 40)]
        ours = cpu_of(lambda: check.check_files(sample, settings))
        theirs = cpu_of_command([os.path.join(os.path.dirname(sys.executable), "torchfix"), *sample], runs=1)
        print(
            f"TorchFix on {len(sample)} of the files        {theirs:7.2f} s   {theirs / ours:5.0f} × ours (goal: ≥ 50)"
        )


if __name__ == "__main__":
    main()
