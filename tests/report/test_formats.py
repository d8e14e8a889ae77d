"""Every output format on the same findings, read back by what reads it in earnest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from junitparser import Error, Failure, JUnitXml
from markdown_it import MarkdownIt

from auditor.finding import Finding
from auditor.report import Report
from auditor.report import paths as report_paths
from auditor.report.formats import ENDINGS, FORMATS, Style, render
from tests.cli import BAD, FIXED, ZEROS, auditor, repository
from tests.report.hostile import hostile


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two files with one finding each, one with notes, one that cannot be parsed, one that is clean."""
    for variable in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR", "GITHUB_SHA", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(BAD)
    Path("ümläut, x%.py").write_text(BAD.replace("return F", 's = "ä|`ö"; return F'), encoding="utf-8")
    Path("zeros.py").write_text(ZEROS)
    Path("broken.py").write_text("import torch  # dropout\ndef f(:\n")
    Path("clean.py").write_text(FIXED)
    report_paths.project_root.cache_clear()
    yield tmp_path
    report_paths.project_root.cache_clear()


def check(name: str, *arguments: str, **environment: str) -> str:
    result = auditor("check", "--output-format", name, *arguments, **environment)
    assert result.exit_code == 2  # broken.py
    return result.stdout


def rendered(report: Report, name: str) -> str:
    return "\n".join(render(report, name, Style()))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_everything_and_repeats_itself(name: str) -> None:
    output = check(name)
    assert output == check(name)
    shown = unquote(output).replace("\\", "")
    assert all(word in shown for word in ("net.py", "ümläut, x%.py", "zeros.py", "broken.py", "MOD004", "INI001"))
    assert "clean.py" not in shown


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_write_what_is_odd_and_nothing_at_all(name: str) -> None:
    assert "XYZ001" in rendered(hostile(), name)
    empty = rendered(Report(), name)
    assert "XYZ" not in empty


@pytest.mark.parametrize("name", FORMATS)
def test_output_file(name: str, folder: Path) -> None:
    printed = check(name)
    assert check(name, "--output-file", "report.out", FORCE_COLOR="1") == ""
    assert (folder / "report.out").read_text(encoding="utf-8") == printed


def test_output_file_that_cannot_be_written() -> None:
    result = auditor("check", "-o", "nowhere/report.json")
    assert result.exit_code == 2
    assert "nowhere/report.json: the report cannot be written: No such file or directory" in result.stderr


def test_reports_beside_the_output(folder: Path) -> None:
    names = [f"report{ending}" for ending in ENDINGS]
    result = auditor("check", "--output-format", "concise", *[part for name in names for part in ("--report", name)])
    assert result.stdout == check("concise")
    for name in names:
        assert (folder / name).read_text(encoding="utf-8") == check(ENDINGS[Path(name).suffix])
    refused = auditor("check", "--report", "report.doc")
    assert refused.exit_code == 2
    assert "its format is told by its ending: .json, .jsonl" in refused.stderr


def test_concise() -> None:
    lines = check("concise").splitlines()
    assert lines[0].startswith("net.py:7:16: MOD004 [*] `training` defaults to")
    assert lines[1].startswith("zeros.py:9:9: INI001 [*] ")
    assert lines[3] == "broken.py:2:1: could not be checked: syntax error: invalid syntax"
    assert lines[4].startswith("Found 3 errors in 5 files")
    assert check("concise", "--quiet").splitlines() == lines[:4]


def test_json_lines_are_the_items_of_json() -> None:
    assert [json.loads(line) for line in check("json-lines").splitlines()] == json.loads(check("json"))


@pytest.mark.parametrize("name", ["json", "json-lines", "sarif", "gitlab"])
def test_json_has_no_numbers_that_json_lacks(name: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for text in [rendered(hostile(), name)] if name != "json-lines" else rendered(hostile(), name).splitlines():
        json.loads(text, parse_constant=refuse)


def test_columns_are_characters() -> None:
    """`ast` counts bytes; whoever reads a report counts characters."""
    line = '        s = "ä|`ö"; return F.dropout(x, 0.5)'
    (item,) = (item for item in json.loads(check("json")) if item["filename"].startswith("ü") and item["code"])
    start, end = item["location"]["column"], item["end_location"]["column"]
    assert line[start - 1 : end - 1] == "F.dropout(x, 0.5)"
    text = check("text").splitlines()
    (at,) = (number for number, shown in enumerate(text) if shown.endswith(line))
    assert text[at + 1].index("^") == text[at].index("F.dropout")


# GitHub -------------------------------------------------------------------------------------------------------------


def commands(output: str) -> list[tuple[str, dict[str, str], str]]:
    """Workflow commands as the runner of GitHub Actions reads them."""

    def plain(text: str, more: tuple[str, ...] = ()) -> str:
        for code in (*more, "%0D", "%0A", "%25"):
            text = text.replace(code, chr(int(code[1:], 16)))
        return text

    found = []
    for line in output.splitlines():
        match = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
        assert match, line
        properties = dict(pair.split("=", 1) for pair in match[2].split(","))
        values = {key: plain(value, ("%3A", "%2C")) for key, value in properties.items()}
        found.append((match[1], values, plain(match[3])))
    return found


def test_github(folder: Path) -> None:
    first, third, second, problem = commands(check("github"))
    assert first[0] == "error"
    title = {"title": "auditor MOD004 functional-dropout-always-on"}
    assert first[1] == title | {"file": "net.py", "line": "7", "endLine": "7", "col": "16", "endColumn": "33"}
    assert first[2].endswith("\nfix (safe): pass `training=self.training`")
    assert second[1]["file"] == "ümläut, x%.py"
    assert third[1]["line"] == "9"
    assert problem[1]["file"] == "broken.py"
    (odd, plain, unread) = commands(rendered(hostile(), "github"))
    assert (odd[0], plain[0], unread[0]) == ("notice", "warning", "error")
    assert odd[2].startswith(hostile().findings[0].message)
    assert odd[1]["line"] == "1"


def test_paths_are_those_of_the_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "src/deep").mkdir(parents=True)
    (folder / "src/deep/net.py").write_text(BAD)
    monkeypatch.chdir(folder / "src")
    for setting in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR", ""):
        report_paths.project_root.cache_clear()
        if setting:
            monkeypatch.setenv(setting, str(folder))
        else:
            repository(folder)
        output = auditor("check", "deep", "--output-format", "github").stdout
        assert commands(output)[0][1]["file"] == "src/deep/net.py"
        if setting:
            monkeypatch.delenv(setting)
    assert json.loads(auditor("check", "deep", "--output-format", "gitlab").stdout)[0]["location"]["path"] == (
        "src/deep/net.py"
    )
    assert json.loads(auditor("check", "deep", "--output-format", "json").stdout)[0]["filename"] == "deep/net.py"


# GitLab -------------------------------------------------------------------------------------------------------------


def test_gitlab_has_what_gitlab_requires() -> None:
    issues = json.loads(check("gitlab")) + json.loads(rendered(hostile(), "gitlab"))
    for issue in issues:
        assert isinstance(issue["description"], str)
        assert isinstance(issue["check_name"], str)
        assert re.fullmatch(r"[0-9a-f]{32}", issue["fingerprint"])
        assert issue["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert not issue["location"]["path"].startswith("./")
        assert issue["location"]["lines"]["begin"] >= 1
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)


def test_gitlab_tells_equal_lines_and_equal_files_apart(folder: Path) -> None:
    (folder / "copy.py").write_text(BAD)
    (folder / "net.py").write_text(BAD + "        return F.dropout(x, 0.5)\n")
    issues = json.loads(check("gitlab", "--select", "MOD004"))
    assert len(issues) == 5
    assert len({issue["fingerprint"] for issue in issues}) == 5


# JUnit --------------------------------------------------------------------------------------------------------------


def test_junit() -> None:
    log = JUnitXml.fromstring(check("junit").encode())
    assert (log.tests, log.failures, log.errors) == (4, 3, 1)
    suites = {suite.name: list(suite) for suite in log}
    assert list(suites) == ["broken.py", "net.py", "zeros.py", "ümläut, x%.py"]
    (case,) = suites["net.py"]
    (failure,) = case.result
    assert isinstance(failure, Failure)
    assert failure.type == "MOD004"
    assert "7 |         return F.dropout(x, 0.5)" in failure.text
    assert isinstance(suites["broken.py"][0].result[0], Error)


def test_junit_of_advice_and_of_nothing_passes() -> None:
    log = JUnitXml.fromstring(rendered(hostile(), "junit").encode())
    assert (log.tests, log.failures, log.errors) == (3, 1, 1)
    log = JUnitXml.fromstring(rendered(Report(), "junit").encode())
    assert (log.tests, log.failures, log.errors) == (1, 0, 0)


# Markdown -----------------------------------------------------------------------------------------------------------


def cells(markdown: str) -> list[list[str]]:
    """The rows of all tables, as GitHub's Markdown has them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 4 - 1:
            rows[-1].append(" ".join(child.content for child in token.children or () if child.content))
    return rows


def test_markdown() -> None:
    output = check("markdown")
    head, *rows = cells(output)
    assert head == ["Severity", "Where", "Rule", "Finding"]
    assert [row[0] for row in rows] == ["error"] * 3
    assert [row[1] for row in rows] == ["net.py:7", "zeros.py:9", "ümläut, x%.py:7"]
    assert 's = "ä|`ö"; return F.dropout(x, 0.5)' in rows[2][3]
    assert "### Could not be checked\n\n- `broken.py:2`" in output


def test_markdown_of_odd_texts_keeps_its_table() -> None:
    output = rendered(hostile(), "markdown")
    html = MarkdownIt("commonmark").enable("table").render(output)
    assert html.count("<td>") == 8
    assert "<script>" not in html
    assert "<h3>Fixes not made</h3>" in html
    assert "<h3>Fixes proven</h3>" in html


def test_markdown_links_to_the_commit() -> None:
    environment = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "o/r", "GITHUB_SHA": "abc"}
    assert "[`net.py:7`](https://github.com/o/r/blob/abc/net.py#L7)" in check("markdown", **environment)


# Terminal -----------------------------------------------------------------------------------------------------------


def test_colours() -> None:
    def coloured(**environment: str) -> bool:
        return "\x1b[" in auditor("check", "net.py", **environment).output

    assert not coloured()
    assert coloured(FORCE_COLOR="1")
    assert not coloured(FORCE_COLOR="1", NO_COLOR="1")
    assert not coloured(FORCE_COLOR="")
    on_terminal = auditor("check", "net.py", color=True).output
    assert "\x1b[" in on_terminal
    assert "\x1b[" not in auditor("check", "net.py", color=True, NO_COLOR="1").output


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_long_lines_are_cut_around_what_is_marked(folder: Path, width: int) -> None:
    long = "a" * 90
    (folder / "net.py").write_text(BAD.replace("return F", f"{long} = 1; return F").replace("x, 0.5", "x, 0.5  "))
    (finding,) = (item for item in json_findings("net.py"))
    report = Report(findings=[finding])
    lines = [click.unstyle(line) for line in render(report, "text", Style(width=width))]
    shown = [line for line in lines if re.match(r" *\d* \|", line)]
    assert all(len(line) <= max(width, 24) + len(" MOD004") for line in shown)
    (at,) = (number for number, line in enumerate(shown) if "^" in line)
    assert shown[at - 1][shown[at].index("^") :].startswith("F.dropout(x")
    assert any(line.startswith("5 | class") for line in shown) == (width == 200)


def json_findings(path: str) -> list[Finding]:
    from auditor.pipeline import check_paths

    return check_paths(path).findings


def test_quiet_and_verbose(folder: Path) -> None:
    (folder / "broken.py").unlink()
    (folder / "net.py").write_text(BAD.replace("0.5)", "0.5)  # noqa"))
    quiet = auditor("check", "--quiet", "--select", "MOD004").output
    assert "MOD004" in quiet
    assert "Found" not in quiet
    assert auditor("check", "--quiet", "clean.py").output == ""
    assert "net.py:7:16: MOD004 silenced by a comment" in auditor("check", "--verbose").output


def test_statistics_have_text_only(folder: Path) -> None:
    (folder / "broken.py").unlink()
    assert "    2  MOD004  [*]  functional-dropout-always-on" in auditor("check", "--statistics").output
    refused = auditor("check", "--statistics", "--output-format", "sarif")
    assert refused.exit_code == 2
    assert "--statistics counts in text" in refused.stderr


def test_a_terminal_without_these_characters(folder: Path) -> None:
    (folder / "Ω.py").write_text(BAD)
    command = [sys.executable, "-m", "auditor", "check", "--isolated", "."]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    )
    assert done.returncode == 2, done.stderr
    assert b"\n?.py:7:16: MOD004" in done.stdout


def test_formats_are_imported_when_asked_for() -> None:
    program = (
        "import sys; from click.testing import CliRunner; import auditor.cli as c;"
        "CliRunner().invoke(c.cli, ['check', '--no-cache', 'net.py']);"
        "late = {'auditor.report.' + n for n in ('sarif', 'junit', 'gitlab', 'markdown', 'fingerprint')};"
        "late |= {'subprocess', 'xml.etree', 'hashlib', 'auditor.baseline', 'auditor.changes'};"
        "early = late & set(sys.modules); assert not early, early"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_exit_non_zero_on_fix(folder: Path) -> None:
    (folder / "broken.py").unlink()
    for options, code in (
        (("--fix",), 0),
        (("--fix", "--exit-non-zero-on-fix"), 1),
        (("--fix", "--exit-non-zero-on-fix", "--exit-zero"), 0),
    ):
        (folder / "net.py").write_text(BAD)
        assert auditor("check", "net.py", *options).exit_code == code
        assert (folder / "net.py").read_text() == FIXED
        assert auditor("check", "net.py", *options).exit_code == 0  # nothing left to fix
