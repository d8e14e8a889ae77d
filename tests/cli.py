"""Calling the command line in this process, and sources with known findings."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner, Result

from auditor.cli import cli

BAD = """\
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)
"""
FIXED = BAD.replace("0.5)", "0.5, training=self.training)")
ZEROS = """\
from torch import nn


class Zeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Linear(8, 8, bias=False)
        self.up = nn.Linear(8, 8, bias=False)
        nn.init.constant_(self.down.weight, 0.0)
        nn.init.constant_(self.up.weight, 0.0)

    def forward(self, x):
        return self.up(self.down(x).tanh())
"""


def auditor(*arguments: str, stdin: str | bytes | None = None, color: bool = False, **environment: str) -> Result:
    runner = CliRunner(env=environment)
    return runner.invoke(cli, arguments, input=stdin, prog_name="auditor", catch_exceptions=False, color=color)


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody whose own settings do not matter; its output."""
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def repository(folder: Path) -> None:
    """Make `folder` a git repository whose first commit, on branch `main`, holds everything in it."""
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=first")
