"""`--add-noqa`: what is found today is silenced where a comment can stand, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import auditor

NORMS = """\
import torch


def scale(x, y):
    a = torch.norm(x)
    b = torch.norm(x) + torch.norm(y)  # why
    c = torch.norm(x)  # noqa: E501
    d = torch.norm(x)  # noqa: API005,E501 (old)
    e = torch.norm(
        torch.qr(x)[0],
    )
    return a, b, c, d, e, 1 + \\
        torch.norm(x)
"""
SILENT = """\
import torch


def scale(x, y):
    a = torch.norm(x)  # noqa: API003
    b = torch.norm(x) + torch.norm(y)  # why  # noqa: API003
    c = torch.norm(x)  # noqa: E501, API003
    d = torch.norm(x)  # noqa: API005,E501, API003 (old)
    e = torch.norm(  # noqa: API003
        torch.qr(x)[0],  # noqa: API004
    )
    return a, b, c, d, e, 1 + \\
        torch.norm(x)  # noqa: API003
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_comments_are_added_once() -> None:
    Path("net.py").write_text(NORMS)
    result = auditor("check", "net.py", "--isolated", "--add-noqa", "--ignore", "SUP")
    assert result.exit_code == 0
    assert "8 findings silenced by `# noqa` in 1 file." in result.output
    assert Path("net.py").read_text() == SILENT
    again = auditor("check", "net.py", "--isolated", "--add-noqa", "--ignore", "SUP")
    assert "0 findings silenced" in again.output
    assert Path("net.py").read_text() == SILENT


def test_where_no_comment_can_stand() -> None:
    text = 'import torch\n\ndef f(x):\n    return f"""{torch.norm(x)}\n    """ + "\\\n"\n'
    Path("net.py").write_text(text)
    result = auditor("check", "net.py", "--isolated", "--add-noqa", "--fail-on", "info")
    assert result.exit_code == 1
    assert "net.py:4: no comment can stand on the lines of API003" in result.output
    assert Path("net.py").read_text() == text


def test_notebooks() -> None:
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "source": ["import torch\n", "torch.norm(x)"]}
    Path("net.ipynb").write_text(json.dumps({"cells": [cell], "nbformat": 4}))
    auditor("check", "net.ipynb", "--isolated", "--add-noqa")
    assert json.loads(Path("net.ipynb").read_text())["cells"][0]["source"][1] == "torch.norm(x)  # noqa: API003"


def test_not_for_standard_input() -> None:
    result = auditor("check", "-", "--add-noqa", stdin=NORMS)
    assert result.exit_code == 2
    assert "--add-noqa is about files" in result.output
