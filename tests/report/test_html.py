"""The HTML report: one file that says everything, needs nothing, and breaks on nothing."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from auditor.finding import Location
from auditor.report.formats import Style, render
from auditor.report.html import fragment, numbers
from auditor.report.html.code import Code, diff, edited, parsed
from auditor.report.html.plot import Series, plot
from auditor.report.html.prose import prose
from tests.cli import BAD, FIXED, ZEROS, auditor
from tests.report.hostile import hostile

VOID = {"meta", "link", "br", "hr", "input", "img", "wbr"}
NET = (
    BAD.replace("from torch import nn", "import torch\nfrom torch import nn")
    .replace("    def forward", "    def __init__(self, width=8):\n        super().__init__()\n"
             "        self.fc = nn.Linear(width, 8)\n        self.norm = nn.BatchNorm1d(8)\n\n    def forward")
    .replace("F.dropout(x, 0.5)", "F.dropout(self.norm(self.fc(x)), 0.5)")
)  # fmt: skip


class Page(HTMLParser):
    """Checks that tags nest, and gathers ids, links, text and references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in given:
            self.ids.append(given["id"] or "")
        href = given.get("href") or ""
        if tag == "a" and href.startswith("#"):
            self.links.append(href[1:])
        if "src" in given or (tag == "link" and not href.startswith("data:")):
            self.loaded.append(str(given))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        return None

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def sound(text: str) -> Page:
    page = Page(text)
    assert [name for name, number in Counter(page.ids).items() if number > 1] == []
    assert sorted(set(page.links) - {*page.ids}) == []
    assert page.loaded == []
    assert "@import" not in text
    assert "url(" not in text
    return page


def test_check_writes_a_page_that_says_it_all(folder: Path) -> None:
    (folder / "net.py").write_text(BAD)
    (folder / "zeros.py").write_text(ZEROS)
    (folder / "broken.py").write_text("import torch  # dropout\ndef f(:\n")
    result = auditor("check", "--isolated", "--report", "report.html")
    assert result.exit_code == 2
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = sound(text)
    for words in (
        "MOD004",
        "net.py:7",
        "F.dropout(x, 0.5, training=self.training)",
        "INI001",
        "broken.py",
        "syntax error",
    ):
        assert words in page.text
    assert "Why it matters" in page.text
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    again = auditor("check", "--isolated", "--output-format", "html")
    assert again.stdout == text


def test_audit_shows_layers_curves_and_proofs(folder: Path) -> None:
    (folder / "net.py").write_text(NET)
    result = auditor("audit", "net.py", "--isolated", "--fix", "--unsafe-fixes", "--report", "r.html", "--exit-zero")
    assert result.exit_code == 0, result.output
    page = sound((folder / "r.html").read_text(encoding="utf-8"))
    assert "model-1-norm" in page.ids
    for words in ("Activation scale", "Gradient scale", "batch norm", "Train against eval mode", "proven", "written"):
        assert words in page.text
    assert "the forward in eval mode uses no random numbers and repeats exactly" in page.text
    assert "train, after the fixes" in page.text
    assert "50 %" in page.text


def test_nothing_found_is_a_page_too(folder: Path) -> None:
    (folder / "net.py").write_text(FIXED)
    auditor("check", "--isolated", "--report", "r.html")
    assert "All checks passed" in sound((folder / "r.html").read_text(encoding="utf-8")).text


def test_hostile_text_stays_text() -> None:
    report = hostile()
    report.audits.append({"name": "<b>Net", "path": "a&b.py"})
    text = "\n".join(render(report, "html", Style()))
    page = sound(text.encode("utf-8", "replace").decode())
    assert "<script> &" in page.text
    assert text.count("<script>") == 1
    assert "<b>Net" in page.text
    assert "NaN" in page.text


def test_a_deep_model_names_what_never_ran() -> None:
    """A list of layers is not called itself, a layer that nothing uses is; paths may break at their dots."""
    import torch
    from torch import nn

    from auditor.pipeline import audit_model

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)) for _ in range(2))
            self.idle = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    text = fragment(audit_model(Deep(), torch.randn(8, 4)))
    page = Page(text)
    assert page.text.count("never called") == 1
    assert "blocks.<wbr>1.<wbr>1</a>" in text
    assert "19 %" in page.text  # of two dropouts of a tenth


def test_fragment_for_notebooks_has_no_script() -> None:
    text = fragment(hostile())
    page = Page(text)
    assert "<script" not in text.replace("&lt;script", "")
    assert page.text.startswith("1 warning")


def test_code_is_marked_where_the_finding_is() -> None:
    lines = ["def f(x):", "    return drop('ü', x)  # note"]
    *_, row = Code(lines).frame(Location("f.py", 2, 12, 2, 24))
    assert re.sub(r"</?span[^>]*>", "", row.code).strip().startswith("return <mark>drop(&#39;ü&#39;, x)</mark>  # note")
    assert '<span class="k">return</span>' in row.code
    assert '<span class="c"># note</span>' in row.code
    assert Code(["x = '''never closed"]).frame(Location("f.py", 1))[0].code.striptags() == "x = '''never closed"
    assert Code(lines).frame(Location("f.py", 9)) == []


def test_diffs() -> None:
    before = ["a", "b", "c"]
    edits = [
        {"location": {"row": 2, "column": 1}, "end_location": {"row": 2, "column": 2}, "content": "x\ny"},
        {"location": {"row": 4, "column": 1}, "end_location": {"row": 4, "column": 1}, "content": "\nd"},
    ]
    after = edited(before, edits)
    assert after == ["a", "x", "y", "c", "d"]
    shown = [(row.kind, str(row.code)) for row in diff(before, after)]
    assert shown == [("", "a"), ("del", "b"), ("add", "x"), ("add", "y"), ("", "c"), ("add", "d")]
    ((path, rows),) = parsed("--- a/f.py\n+++ b/f.py\n@@ -3,2 +3,2 @@\n x\n-y < 1\n+y > 1\n")
    assert path == "f.py"
    assert [(row.number, row.kind, str(row.code)) for row in rows][1:] == [
        ("4", "del", 'y &lt; <span class="n">1</span>'),
        ("4", "add", 'y &gt; <span class="n">1</span>'),
    ]


def test_plots_place_values_on_a_logarithmic_scale() -> None:
    drawn = plot("Scale", ["a", "b", "c"], [Series("train", "train", {"a": 1.0, "b": 0.1, "c": 0.01})])
    assert drawn is not None
    first, second, third = drawn.curves[0].dots
    assert first.y < second.y < third.y
    assert second.y - first.y == pytest.approx(third.y - second.y, abs=0.1)
    assert drawn.summary == "Scale: train, 1 at a, 0.01 at c"
    odd = plot("Scale", ["a", "b"], [Series("train", "train", {"a": 0.0, "b": float("inf")})])
    assert odd is not None
    assert odd.zero == odd.curves[0].dots[0].y
    assert plot("Scale", ["a"], [Series("train", "train", {"a": 1.0})]) is None


def test_figures() -> None:
    assert [numbers.figure(x) for x in (None, 0.0, 0.03121, 4.1e-5, 1234567, float("inf"), "runs", True)] == [
        "–", "0", "0.0312", "4.1·10⁻⁵", "1\u202f234\u202f567", "∞", "runs", "True",
    ]  # fmt: skip
    assert [numbers.share(x) for x in (0.0, 0.004, 0.5, 0.9999, 1.0)] == ["0 %", "0.4 %", "50 %", "99.9 %", "100 %"]
    assert [numbers.short(x) for x in (650, 16448, 86_600_000)] == ["650", "16.4\u202fk", "86.6\u202fM"]


def test_explanations_become_html() -> None:
    text = prose("A rule.\n\n## Example\n    x = 1\n\n    y = 2\n\n## Refs\n- `a` https://x.org/b.\n- c\n  d")
    assert text.count("<pre>") == 1
    assert "<h4>Example</h4>" in text
    assert "<li><code>a</code> <a href" in text
    assert "<li>c d</li>" in text
