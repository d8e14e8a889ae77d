"""The magics in IPython itself, and a notebook run by Jupyter's own client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import auditor
from tests.integrations.models import SICK, WELL, Sick
from tests.report.test_html import Page

pytest.importorskip("IPython", reason="IPython is not installed")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    made.run_line_magic("load_ext", "auditor")
    yield made
    made.run_line_magic("reset", "-f")
    InteractiveShell.clear_instance()


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    return shown


def run(shell: Any, cell: str) -> None:
    assert shell.run_cell(cell, store_history=True).success


def test_a_cell_is_run_checked_and_its_models_audited(shell: Any, displayed: list[Any]) -> None:
    run(shell, "%%audit\n" + SICK + "\nwidth = 3")
    assert shell.user_ns["width"] == 3
    (report,) = displayed
    (finding,) = report.findings
    assert finding.code == "MOD004"
    assert finding.seen == ("read in source", "seen in a run")
    assert finding.location.path == "In [1]"
    assert finding.models == ("Sick",)
    assert "return F.dropout(self.fc(x), 0.5)" in str(report)
    assert "In [1]:12" in str(report)
    run(shell, "%%audit\n" + WELL)
    assert displayed[-1].findings == []
    assert [record["name"] for record in displayed[-1].audits] == ["Well"]


def test_options_comments_and_models_that_are_made(shell: Any, displayed: list[Any]) -> None:
    run(shell, "%%audit --ignore MOD004,MOD010\n" + SICK)
    assert displayed[-1].findings == []
    run(shell, "%%audit\n" + SICK.replace("0.5)", "0.5)  # noqa: MOD004"))
    assert displayed[-1].findings == []
    assert [finding.code for finding in displayed[-1].silenced].count("MOD004") >= 1
    run(shell, SICK)
    run(shell, "%%audit --input 2x8\nmodel = nn.Sequential(Sick())")
    (finding,) = displayed[-1].findings
    assert (finding.code, finding.modules) == ("MOD004", ("0",))


def test_a_live_model_on_a_line(shell: Any, displayed: list[Any]) -> None:
    run(shell, SICK + "\nmodel, batch = Sick(), torch.randn(4, 8)")
    run(shell, "%audit --select MOD model, batch")
    (finding,) = displayed[-1].findings
    assert (finding.code, finding.location.path, finding.location.row) == ("MOD004", "In [1]", 12)
    assert finding.fix is not None


def test_mistakes_in_use_are_one_line(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for line, message in (
        ("%audit model, batch", "NameError"),
        ("%audit 1, 2, 3", "name a model"),
        ("%%audit --selekt X\npass", "--selekt"),
        ("%%audit --select MOD04\npass", "did you mean"),
        ("%%audit model\npass", "options only"),
    ):
        run(shell, line)
        output = capsys.readouterr().out
        assert output.startswith("auditor: "), output
        assert message in output
        assert output.count("\n") == 1
    shell.run_cell("%%audit\n1 / 0")
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_reports_render_richly_and_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    report = auditor.audit(Sick(), torch.randn(4, 8))
    page = Page(report._repr_html_())
    assert "MOD004 functional-dropout-always-on" in page.text
    assert "Activation scale" not in page.text  # one layer makes no curve
    assert "4×8" in page.text
    assert all(link in page.ids for link in page.links)
    print(report)
    text = capsys.readouterr().out
    assert "MOD004" in text
    assert "\x1b" not in text
    assert repr(report) == str(report)


def test_a_notebook_in_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    from nbformat.v4 import new_code_cell, new_notebook

    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))))
    cells = ("%load_ext auditor", "%%audit\n" + SICK, "import auditor\nauditor.audit(Sick(), torch.randn(4, 8))")
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    for cell in notebook.cells[1:]:
        (output,) = [item for item in cell.outputs if "data" in item]
        assert "MOD004" in Page(output["data"]["text/html"]).text
        assert "MOD004" in output["data"]["text/plain"]
