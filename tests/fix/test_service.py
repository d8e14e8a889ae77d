from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from auditor.fix import claims as c
from auditor.fix.certificate import ClaimResult, verdict
from auditor.fix.service import _Memory, validate

BEFORE = """
import torch.nn as nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.second(F.dropout(self.first(x).relu(), 0.5))
"""
AFTER = BEFORE.replace("0.5)", "0.5, training=self.training)")
CLAIMS = [c.parameters(), c.outputs("train"), c.repeatable()]


def ask(tmp_path: Path, after: str, before: str = BEFORE, **changes: Any) -> dict[str, Any]:
    path = tmp_path / "model.py"
    path.write_text(before)
    payload = {
        "path": str(path),
        "before": before,
        "after": after,
        "target": "Net",
        "configured": {},
        "input": [],
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "claims": [claim.to_json() for claim in CLAIMS],
        **changes,
    }
    return json.loads(json.dumps(validate(payload)))


def judged(answer: dict[str, Any]) -> tuple[str, str]:
    return verdict([ClaimResult.from_json(result) for result in answer["results"]])


def test_a_right_fix_is_validated_with_its_costs(tmp_path: Path) -> None:
    answer = ask(tmp_path, AFTER)
    assert judged(answer) == ("validated", "")
    assert answer["inputs"].endswith("x8")
    assert set(answer["versions"]) == {"python", "torch", "platform"}
    assert answer["memory_before"] == answer["memory_after"] > 0
    assert answer["seconds_before"] > 0


def test_inputs_can_be_given(tmp_path: Path) -> None:
    assert ask(tmp_path, AFTER, input=["3x8"])["inputs"] == "3x8"


def test_a_wrong_fix_is_refused(tmp_path: Path) -> None:
    assert judged(ask(tmp_path, AFTER.replace("0.5", "0.4")))[0] == "refused"


@pytest.mark.parametrize(
    ("before", "after", "decided", "reason"),
    [
        (BEFORE, AFTER.replace("16, 4)", "16)"), "refused", "the model after the fix cannot be built"),
        (BEFORE, "import nothing_of_this_name", "refused", "the model after the fix cannot be built"),
        (BEFORE.replace("16, 4)", "16)"), AFTER, "unchecked", "the model before the fix cannot be built"),
        (BEFORE.replace("self.first(x)", "self.third(x)"), AFTER, "unchecked", "no inputs for the model before"),
        (BEFORE, AFTER.replace("self.first(x)", "self.third(x)"), "refused", "has no attribute 'third'"),
    ],
)
def test_models_that_do_not_run(tmp_path: Path, before: str, after: str, decided: str, reason: str) -> None:
    found = judged(ask(tmp_path, after, before))
    assert found[0] == decided
    assert reason in found[1]


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    model, x = nn.Sequential(*[nn.Linear(64, 64) for _ in range(10)]), torch.randn(64, 64)
    unit = 64 * 64 * 4
    with _Memory([*model.parameters(), x]) as inference, torch.no_grad():
        model(x)
    with _Memory([*model.parameters(), x]) as training:
        output = model(x)
    assert inference.peak == 2 * unit
    assert training.peak == 10 * unit
    del output
