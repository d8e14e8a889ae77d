"""JUnit XML, which nearly every CI system shows: one suite per file, one failed case per finding.

Advice (severity `info`) is a case that passes, with its message as output; what could not be checked is an error.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import groupby

from auditor.finding import Finding, Problem, Severity
from auditor.report import Report
from auditor.report.text import frame
from auditor.report.texts import Texts

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


def render(report: Report) -> str:
    texts = Texts(report.texts)
    root = ET.Element("testsuites", name="auditor")
    cases: list[tuple[str, ET.Element]] = [
        (finding.location.path, _finding(finding, texts)) for finding in report.findings
    ]
    cases += [(problem.path, _problem(problem)) for problem in report.problems]
    if not cases:
        cases = [("auditor", ET.Element("testcase", classname="auditor", name="no findings"))]
    for path, group in groupby(sorted(cases, key=lambda case: case[0]), key=lambda case: case[0]):
        suite = ET.SubElement(root, "testsuite", name=_clean(path))
        suite.extend([case for _, case in group])
        _count(suite)
    _count(root)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode")


def _finding(finding: Finding, texts: Texts) -> ET.Element:
    location = finding.location
    case = _case(location.path, f"{finding.code} {finding.name} at {location.row}:{location.column}", location.row)
    detail = f"{location.path}:{location.row}:{location.column}: {finding.code} {finding.message}"
    text = "\n".join([detail, *frame(finding, texts[location.path], plain=True)])
    if finding.severity is Severity.INFO:
        ET.SubElement(case, "system-out").text = _clean(text)
    else:
        failure = ET.SubElement(case, "failure", type=finding.code, message=_clean(finding.message))
        failure.text = _clean(text)
    return case


def _problem(problem: Problem) -> ET.Element:
    case = _case(problem.path, "could not be checked", problem.row)
    error = ET.SubElement(case, "error", type="could-not-be-checked", message=_clean(problem.message))
    error.text = _clean(problem.remedy or problem.message)
    return case


def _case(path: str, name: str, row: int) -> ET.Element:
    module = path.removesuffix(".py").replace("/", ".").strip(".")
    return ET.Element("testcase", classname=_clean(module), name=_clean(name), file=_clean(path), line=str(row or 1))


def _count(parent: ET.Element) -> None:
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        parent.set(attribute, str(sum(1 for _ in parent.iter(tag))))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
