"""`auditor verify`: the proofs of certificates, run again on the files of today."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from auditor.cli import cli
from auditor.fix.certificate import FILE, Certificate, ClaimResult, content_hash, schema
from auditor.fix.engine import unified_diff
from auditor.fix.service import validate
from auditor.fix.verify import patched, read, verify
from auditor.settings import Settings

BEFORE = """import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5)
"""
AFTER = BEFORE.replace("0.5)", "0.5, training=self.training)")
MARKED = AFTER.replace("nn.Linear(8, 8)", "nn.Linear(8, 8)  # square")
CLAIM = ClaimResult("", "improve", True, kind="repeatable", options={"mode": "eval", "idempotent": False})


def ask(operation: str, **payload: Any) -> Any:
    assert operation == "validate"
    return validate(payload)


def certificate(path: Path, before: str = BEFORE, after: str = AFTER, **changes: Any) -> Certificate:
    made = Certificate(
        code="MOD004",
        name="functional-dropout-always-on",
        path=str(path),
        row=11,
        title="pass `training=self.training`",
        diff=unified_diff("net.py", before, after),
        target="Net",
        claims=(CLAIM,),
        verdict="validated",
        given=("4x8",),
        hash_before=content_hash(before),
        hash_after=content_hash(after),
    )
    return replace(made, **changes)


def test_the_shipped_schema_is_the_one_of_the_code_and_fits() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())
    data = json.loads(json.dumps(certificate(Path("net.py")).to_json()))
    jsonschema.validate(data, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "verdict": "perhaps"}, schema())


@pytest.mark.parametrize("text", [BEFORE, AFTER], ids=["fix not written", "fix written"])
def test_confirmed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(text)
    done, problems = verify([certificate(path)], Settings(), ask)
    assert not problems
    assert [(item.confirmed, item.verdict) for item in done] == [(True, "validated")]
    assert done[0].results[0].after == "repeats exactly"


def test_a_chain_of_fixes(tmp_path: Path) -> None:
    """The first certificate's texts are found through the second's diff."""
    path = tmp_path / "net.py"
    path.write_text(MARKED)
    chain = [certificate(path), certificate(path, AFTER, MARKED)]
    done, problems = verify(chain, Settings(), ask)
    assert not problems
    assert [item.verdict for item in done] == ["validated", "refused"], "the second gains nothing"


def test_a_claim_that_no_longer_holds(tmp_path: Path) -> None:
    """Both texts fit their hashes, but the fix does not do what the certificate says."""
    path = tmp_path / "net.py"
    path.write_text(BEFORE)
    wrong = BEFORE.replace("0.5)", "0.25)")
    done, _ = verify([certificate(path, BEFORE, wrong)], Settings(), ask)
    assert not done[0].confirmed
    assert "draws random numbers" in done[0].reason


@pytest.mark.parametrize(
    ("changes", "text", "reason"),
    [
        ({}, BEFORE + "# more\n", "the file has changed since"),
        ({"diff": unified_diff("net.py", AFTER, MARKED)}, BEFORE, "the file has changed since"),
        ({"how": "memory"}, BEFORE, "was mended in memory"),
        ({"claims": (), "reason": "no model"}, BEFORE, "never put to the test: no model"),
        ({"claims": (replace(CLAIM, kind="magic"),)}, BEFORE, "unknown claim 'magic'"),
    ],
)
def test_what_cannot_be_checked(tmp_path: Path, changes: dict[str, Any], text: str, reason: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(text)
    done, problems = verify([certificate(path, **changes)], Settings(), ask)
    assert not done
    assert reason in problems[0].message


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    done, problems = verify([certificate(tmp_path / "net.py")], Settings(), ask)
    assert not done
    assert "cannot be read" in problems[0].message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a\nb\nc\n", "a\nB\nc\n"),
        ("a\n", ""),
        ("", "a\nb\n"),
        ("a\nb", "a\nc"),
        ("x\n" * 30, "y\n" + "x\n" * 30 + "z\n"),
    ],
)
def test_patches_go_both_ways(old: str, new: str) -> None:
    diff = unified_diff("f", old, new)
    forwards, backwards = patched(old, diff), patched(new, diff, backwards=True)
    assert forwards is not None
    assert backwards is not None
    assert forwards.splitlines() == new.splitlines()
    assert backwards.splitlines() == old.splitlines()
    assert patched("something else\n", diff) is None or not old


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(AFTER)
    (tmp_path / "proof.json").write_text(json.dumps([certificate(Path("net.py")).to_json()]))
    result = CliRunner().invoke(cli, ["verify", "proof.json"])
    assert result.exit_code == 0, result.output
    assert "confirmed\n1 of 1 certificates confirmed." in result.output
    path.write_text(AFTER + "# more\n")
    result = CliRunner().invoke(cli, ["verify", "proof.json"])
    assert result.exit_code == 2
    assert "has changed since" in result.output


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("[3]", "holds no certificates"),
        ('[{"version": 1}]', "version 1: this one reads version 2"),
    ],
)
def test_files_that_hold_none(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "proof.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason):
        read(path)
    assert CliRunner().invoke(cli, ["verify", str(path)]).exit_code == 2
