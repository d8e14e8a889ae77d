from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

from auditor.fix import claims
from auditor.fix.claims import Claim

FACTORIES = [
    function
    for name, function in vars(claims).items()
    if inspect.isfunction(function) and not name.startswith("_") and function.__module__ == claims.__name__
]


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_every_claim_has_a_text_and_survives_json(factory) -> None:
    claim = factory()
    assert claim.kind == factory.__name__
    assert claim.must in ("equal", "improve")
    assert claim.text[0].islower()
    assert not claim.text.endswith(".")
    assert "{" not in claim.text
    assert Claim.from_json(json.loads(json.dumps(claim.to_json()))) == claim


def test_every_kind_has_a_factory() -> None:
    assert {factory.__name__ for factory in FACTORIES} == set(claims._KINDS)


def test_only_improve_claims_can_be_idempotent() -> None:
    for factory in FACTORIES:
        if "idempotent" in inspect.signature(factory).parameters:
            claim = factory(idempotent=True)
            assert claim.idempotent
            assert claim.must == "improve"


def test_texts_follow_the_options() -> None:
    assert claims.parameters(added=True, values=False).text.startswith("all existing parameters keep")
    assert claims.outputs(mode="train", where_finite=True).text == (
        "outputs in train mode stay equal wherever they were finite"
    )
    assert claims.head_rms(0.2, 5).text.endswith("[0.2, 5]")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown claim 'miracle'"):
        Claim.from_json({"kind": "miracle"})


def test_claims_are_cheap_to_import() -> None:
    code = "import auditor.fix.claims, sys; print(sorted({'torch', 'libcst', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
