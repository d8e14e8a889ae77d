from __future__ import annotations

import json
from dataclasses import fields

import pytest

from auditor.fix.certificate import Certificate, ClaimResult, schema, verdict

HOLDS = ClaimResult("outputs stay equal", "equal", True, 0.0, 1e-16, 1e-10)
FAILS = ClaimResult("the forward repeats", "improve", False, "drew torch", "drew torch", detail="still random")
OPEN = ClaimResult("gradients stay equal", "equal", None, detail="the model before does not run")


def certificate(**changes: object) -> Certificate:
    values: dict = {
        "code": "MOD004",
        "name": "functional-dropout-always-on",
        "path": "model.py",
        "row": 7,
        "title": "pass `training=self.training`",
        "diff": "--- a\n+++ b\n",
        "target": "model.py::Net",
        "claims": (HOLDS, FAILS, OPEN),
        "verdict": "refused",
        "reason": "still random",
        "versions": {"torch": "2.13", "python": "3.11"},
        **changes,
    }
    return Certificate(**values)


def test_json_round_trip() -> None:
    made = certificate()
    assert Certificate.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_keys_come_in_the_order_of_the_schema_whatever_the_input_order() -> None:
    first, second = certificate(), certificate(versions={"python": "3.11", "torch": "2.13"})
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    assert list(first.to_json()) == list(schema()["properties"])


def test_the_schema_knows_every_field() -> None:
    properties = schema()["properties"]
    assert set(properties) == {field.name for field in fields(Certificate)}
    assert set(properties["claims"]["items"]["properties"]) == {field.name for field in fields(ClaimResult)}
    assert schema()["required"] == list(properties)
    assert schema()["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize(
    ("results", "expected", "reason"),
    [
        ([HOLDS], "validated", ""),
        ([HOLDS, OPEN, FAILS], "refused", "it does not hold that the forward repeats: still random"),
        (
            [HOLDS, OPEN],
            "unchecked",
            "it could not be checked that gradients stay equal: the model before does not run",
        ),
        ([], "unchecked", "the fix claims nothing"),
    ],
)
def test_verdict(results: list[ClaimResult], expected: str, reason: str) -> None:
    assert verdict(results) == (expected, reason)


def test_other_versions_and_verdicts_are_refused() -> None:
    with pytest.raises(ValueError, match="certificate of version 1"):
        Certificate.from_json({**certificate().to_json(), "version": 1})
    with pytest.raises(ValueError, match="unknown verdict 'perhaps'"):
        certificate(verdict="perhaps")
    assert certificate(verdict="validated").accepted
    assert not certificate().accepted


def test_figures_are_numbers_that_json_has() -> None:
    assert ClaimResult("x", "improve", False, float("nan"), float("inf")) == ClaimResult(
        "x", "improve", False, "nan", "inf"
    )
