"""Notebooks: findings by cell and line, fixes that touch nothing else, and what IPython alone understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from auditor.static.notebook import Notebook, cells_of, place
from tests.cli import auditor

NET = "import torch.nn.functional as F\nfrom torch import nn\n"
FORWARD = "class Net(nn.Module):\n    def forward(self, x):\n        return F.dropout(x, 0.5)"
MENDED = FORWARD.replace("0.5)", "0.5, training=self.training)")


def cell(source: Any, kind: str = "code") -> dict[str, Any]:
    outputs = {"outputs": [{"output_type": "stream", "name": "stdout", "text": ["F.dropout(x, 0.5)\n"]}]}
    return {"cell_type": kind, "metadata": {"é": [1.0, 2]}, "source": source} | (outputs if kind == "code" else {})


def notebook(*cells: dict[str, Any], **more: Any) -> str:
    document = {"cells": list(cells), "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4} | more
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("net.ipynb")
    path.write_text(notebook(cell("# Title", "markdown"), cell(lines(NET)), cell(lines(FORWARD))), encoding="utf-8")
    return path


def test_found_by_cell_and_line(net: Path) -> None:
    result = auditor("check", ".", "--isolated", "--output-format", "concise")
    assert result.exit_code == 1
    assert result.output.startswith("net.ipynb:cell 3:3:16: MOD004 [*]")
    frame = auditor("check", "net.ipynb", "--isolated").output
    assert "3 |         return F.dropout(x, 0.5)\n  |                ^^^^^^^^^^^^^^^^^ MOD004\n" in frame


def test_json_has_a_key_for_the_cell(net: Path) -> None:
    (record,) = json.loads(auditor("check", "net.ipynb", "--isolated", "--output-format", "json").output)
    assert (record["filename"], record["cell"], record["location"]) == ("net.ipynb", 3, {"row": 3, "column": 16})
    assert record["fix"]["edits"] == [
        {
            "content": ", training=self.training",
            "location": {"row": 3, "column": 32},
            "end_location": {"row": 3, "column": 32},
        }
    ]


@pytest.mark.parametrize("name", ["sarif", "github", "gitlab", "junit"])
def test_machines_get_the_line_of_the_file(net: Path, name: str) -> None:
    output = auditor("check", "net.ipynb", "--isolated", "--output-format", name).output
    row = net.read_text(encoding="utf-8").split("\n").index('    "        return F.dropout(x, 0.5)"') + 1
    assert f"{row}" in output
    assert "cell 3:3:16: `training`" in output


@pytest.mark.parametrize("name", ["markdown", "html", "json-lines"])
def test_other_formats_name_the_cell(net: Path, name: str) -> None:
    output = auditor("check", "net.ipynb", "--isolated", "--output-format", name).output
    assert "cell 3" in output or '"cell": 3' in output or '"cell":3' in output


def test_a_fix_changes_its_line_and_nothing_else(net: Path) -> None:
    before = net.read_text(encoding="utf-8")
    result = auditor("check", "net.ipynb", "--isolated", "--fix")
    assert "1 fix written" in result.output
    old = '"        return F.dropout(x, 0.5)"'
    assert net.read_text(encoding="utf-8") == before.replace(old, old.replace("0.5)", "0.5, training=self.training)"))


def test_source_as_one_string_and_escapes(tmp_path: Path) -> None:
    path = tmp_path / "net.ipynb"
    source = NET + "word = 'é \\u00e9 \\\\ \"'\n" + FORWARD
    path.write_text(json.dumps(json.loads(notebook(cell(source), cell([])))), encoding="utf-8")
    assert path.read_text(encoding="utf-8").isascii()
    auditor("check", str(path), "--isolated", "--fix")
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert json.loads(text)["cells"][0]["source"] == source.replace(FORWARD, MENDED)


def test_the_modes_of_one_script() -> None:
    """Cells see each other: what one defines, another one uses."""
    book = Notebook(notebook(cell("import torch"), cell("a = 1", "raw"), cell("torch.norm(a)")).encode())
    assert book.text == "pass  #%% cell 1\nimport torch\npass  #%% cell 3\ntorch.norm(a)\n"
    assert place(book.text.split("\n"), 4) == (3, 1)


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline\nx = 1",
        "!pip install torch \\\n    numpy\nx = 1",
        "files = !ls\nx = files",
        "a, b = %timeit -o f()",
        "%%bash\nls | grep x\nif [ -f y ]; then",
        "%%time\nx = 1\n%debug",
        "%%capture out\nprint(1)\n!ls",
        "for i in range(3):\n    !echo {i}\n    print(i)",
        "torch.norm?\n?torch\ntorch.norm??",
        "%%html\n<b>100%</b>\n'''",
        "if x:\n    %time f()\nelse:\n    pass",
        'text = """\n!not magic\n%neither\n"""\n%magic',
        "y = (a\n     % b)\n%magic",
        "\n\n%%writefile x.py\nclass",
        "await f()\n%magic",
        "print('really?')\n!ls",
    ],
)
def test_what_only_ipython_understands(source: str) -> None:
    book = Notebook(notebook(cell(lines(source))).encode())
    compile(book.text, "script", "exec", flags=0x2000)  # top-level await is allowed in notebooks
    assert book.text.count("\n") == source.count("\n") + 2
    assert "\n".join(cells_of(book.text.split("\n"))[1]) == source
    assert book.with_script(book.text) == book.raw


def test_strings_are_left_alone() -> None:
    source = 'text = """\n!not magic\n%neither\n"""\n%magic'
    assert '\n!not magic\n%neither\n"""\npass' in Notebook(notebook(cell(source)).encode()).text


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(alphabet="ab\n é\"\\%!{}[],:#'\t", max_size=30), max_size=4), st.booleans(), st.booleans())
def test_there_and_back(sources: list[str], listed: bool, ascii_only: bool) -> None:
    cells = [cell([*(line + "\n" for line in s.split("\n")[:-1]), s.split("\n")[-1]] if listed else s) for s in sources]
    raw = json.dumps({"cells": cells, "nbformat": 4}, ensure_ascii=ascii_only, indent=2)
    assume("  #%# " not in "".join(sources))
    book = Notebook(raw.encode())
    assert book.with_script(book.text) == raw
    shown = cells_of(book.text.split("\n"))
    assert ["\n".join(shown[item.number]) for item in book.cells] == [item.source for item in book.cells]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cells": [', "broken JSON in line 1"),
        ("[]", "no list of cells"),
        ('{"worksheets": []}', "older than 4"),
        ("", "broken JSON"),
        (notebook(cell("torch.norm(x)  #%# y")), "holds the marks"),
    ],
)
def test_what_is_no_notebook(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(content)
    result = auditor("check", str(path), "--isolated", "--fix")
    assert result.exit_code == 2
    assert message in result.output
    assert path.read_text() == content


def test_syntax_error_names_the_cell(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(notebook(cell("import torch"), cell("x = 1\ny = = torch.norm(x)")))
    result = auditor("check", str(path), "--isolated")
    assert result.exit_code == 2
    assert "x.ipynb:cell 2:2: could not be checked: syntax error" in result.output


def test_other_languages_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(notebook(cell("torch <- norm(x"), metadata={"kernelspec": {"language": "R"}}))
    assert auditor("check", str(path), "--isolated").exit_code == 0


def test_standard_input(net: Path) -> None:
    content = net.read_text(encoding="utf-8")
    arguments = ("check", "-", "--isolated", "--stdin-filename", "x.ipynb")
    assert "x.ipynb:cell 3:3:16: MOD004" in auditor(*arguments, stdin=content).output
    fixed = auditor(*arguments, "--fix", stdin=content)
    assert json.loads(fixed.stdout)["cells"][2]["source"] == lines(MENDED)


def test_audit_says_what_to_do(net: Path) -> None:
    result = auditor("audit", "net.ipynb", "--isolated")
    assert result.exit_code == 2
    assert "nbconvert" in result.output


def test_comments_silence_and_unused_ones_go(net: Path) -> None:
    source = [FORWARD + "  # noqa: MOD004\n", "y = 1  # noqa: API003"]
    net.write_text(notebook(cell(lines(NET)), cell("".join(source).splitlines(keepends=True))), encoding="utf-8")
    result = auditor("check", "net.ipynb", "--isolated", "--fix", "--fail-on", "info")
    assert result.exit_code == 0, result.output
    assert json.loads(net.read_text(encoding="utf-8"))["cells"][1]["source"][-1] == "y = 1"


TRAINING = (
    "import torch\nfrom torch import nn\nimport torch.nn.functional as F",
    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(4, 2)\n"
    "        self.drop = nn.Dropout(0.2)\n\n    def forward(self, x):\n        return self.fc(self.drop(x))",
    "net = Net()\noptimizer = torch.optim.SGD(net.parameters(), lr=0.1)",
    "for x, y in loader:\n    optimizer.zero_grad()\n    F.cross_entropy(net(x), y).backward()\n    optimizer.step()",
    "# how good is it?\nwith torch.no_grad():\n    right = (net(x).argmax(-1) == y).sum()",
)


def test_a_mode_is_followed_through_the_cells(tmp_path: Path) -> None:
    path = tmp_path / "net.ipynb"
    path.write_text(notebook(*map(cell, TRAINING)))
    found = auditor("check", str(path), "--isolated", "--output-format", "concise").output
    assert "cell 5:3:14: MOD001" in found
    auditor("check", str(path), "--isolated", "--fix", "--unsafe-fixes")
    sources = [item["source"] for item in json.loads(path.read_text())["cells"]]
    assert sources[:4] == list(TRAINING[:4])
    assert sources[4].count("net.eval()\n") == 1


def test_an_import_is_put_into_a_cell_of_python(tmp_path: Path) -> None:
    path = tmp_path / "net.ipynb"
    path.write_text(notebook(cell("%%bash\nls"), cell("from torch import nn, norm"), cell("n = norm(x, 2)")))
    auditor("check", str(path), "--isolated", "--fix")
    sources = [item["source"] for item in json.loads(path.read_text())["cells"]]
    assert sources[0] == "%%bash\nls"
    assert "import torch\n" in sources[1]
    assert sources[2] == "n = torch.linalg.vector_norm(x, 2)"
