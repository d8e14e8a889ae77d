"""Pages of the documentation, run as a reader would follow them.

A code block whose first line is a comment with a path is a file; a `console` block holds commands after `$ ` and what
they print, where `…` stands for anything. A page is followed from top to bottom in one folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fixtures import ROOT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"(?:#|//|--|;;) (\S+\.\w+)\n")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def follow(page: Path, folder: Path) -> int:
    """Do what a page says, in `folder`; the number of commands that were run. Fails where it prints something else."""
    commands = 0
    for language, text in blocks(page):
        if language == "console":
            for command, expected in _commands(text):
                commands += 1
                _expect(command, expected, folder)
        elif match := _PATH.match(text):
            path = folder / match[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.split("\n", 1)[1] if language == "python" else text, encoding="utf-8")
    return commands


def _commands(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _expect(command: str, expected: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "AUDITOR_CACHE_DIR": str(folder.parent / "cache"),
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    printed = (done.stdout + done.stderr).replace(str(folder), "")
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("…"))
    assert re.fullmatch(r"\s*" + pattern + r"\s*", printed, re.DOTALL), f"$ {command}\n{printed}"
