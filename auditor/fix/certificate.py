"""The record of a fix that was put to the test: what was run, where, what was claimed, what was measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.fix.claims import Claim

VERSION = 2
VERDICTS = ("validated", "refused", "unchecked")
FILE = Path(__file__).parent.parent / "certificate.schema.json"
"""The schema as it is shipped: `make schema` writes it, tests/fix/test_certificate.py keeps it in step."""


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """One claim, checked. `holds` None: it could not be checked, and `detail` says why.

    `before` and `after` are the figures measured; for an equal-claim `after` is the largest relative difference and
    `before` 0. `tolerance` is what the difference was held against. `already`: what should improve was so before the
    fix and still is. `kind`, `options`: the claim as `Claim.from_json` reads it, so that it can be checked again.
    """

    claim: str
    must: str
    holds: bool | None
    before: float | str | None = None
    after: float | str | None = None
    tolerance: float | None = None
    detail: str = ""
    already: bool = False
    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, claim: Claim, holds: bool | None, **figures: Any) -> ClaimResult:
        """The result of checking `claim`."""
        return cls(claim.text, claim.must, holds, **figures, **claim.to_json())

    def __post_init__(self) -> None:
        for side in ("before", "after"):
            value = getattr(self, side)
            if isinstance(value, float) and not math.isfinite(value):  # JSON has no such numbers
                object.__setattr__(self, side, str(value))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClaimResult:
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


@dataclass(frozen=True, slots=True)
class Certificate:
    """A fix and its proof. `verdict`: all claims held (`validated`), one failed (`refused`), or one could not be
    checked (`unchecked`); `reason` says which. Times in seconds, memory in bytes, both of one forward and backward.

    `how`: a fix of `source`, whose unified diff is `diff`, from a text with the SHA-256 `hash_before` to one with
    `hash_after`; or of a model in `memory`, where `diff` says what was done to which layer. `modules`: paths
    of the layers concerned. `given`: the input specifications of the command line. `compiled`: whether outputs were
    compared under torch.compile as well.
    """

    code: str
    name: str
    path: str
    row: int
    title: str
    diff: str
    target: str
    claims: tuple[ClaimResult, ...] = ()
    verdict: str = "unchecked"
    reason: str = ""
    how: str = "source"
    modules: tuple[str, ...] = ()
    hash_before: str = ""
    hash_after: str = ""
    inputs: str = ""
    given: tuple[str, ...] = ()
    compiled: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds_before: float | None = None
    seconds_after: float | None = None
    memory_before: int | None = None
    memory_after: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"unknown verdict {self.verdict!r}: one of {', '.join(VERDICTS)}")

    @property
    def accepted(self) -> bool:
        """Whether the fix may be written."""
        return self.verdict == "validated"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`, keys always in the order of the schema."""
        data = asdict(self)
        data["claims"] = [asdict(result) for result in self.claims]
        data["modules"], data["given"] = list(self.modules), list(self.given)
        data["versions"] = dict(sorted(self.versions.items()))
        return {name: data[name] for name in schema()["properties"]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_json` gave; ValueError for another version of the format."""
        if data.get("version") != VERSION:
            raise ValueError(f"certificate of version {data.get('version')!r}: this one reads version {VERSION}")
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["claims"] = tuple(ClaimResult.from_json(result) for result in data["claims"])
        known |= {name: tuple(data[name]) for name in ("modules", "given")}
        return cls(**known)


def content_hash(text: str) -> str:
    """SHA-256 of a file's text, whatever its newlines."""
    return hashlib.sha256("\n".join(text.splitlines()).encode("utf-8", "surrogatepass")).hexdigest()


def verdict(results: Sequence[ClaimResult]) -> tuple[str, str]:
    """The verdict on a fix with these results, and its reason (empty when validated).

    Of several things that should improve, some may have been well already, as long as one does improve.
    """
    claim = failed_claim(results)
    for result in results:
        if result.claim == claim and result.holds is None:
            return "unchecked", f"it could not be checked that {claim}: {result.detail}"
        if result.claim == claim:
            return "refused", f"it does not hold that {claim}" + (f": {result.detail}" if result.detail else "")
    return ("validated", "") if results else ("unchecked", "the fix claims nothing")


def failed_claim(results: Sequence[ClaimResult]) -> str:
    """The claim that the verdict rests on when a fix is refused or unchecked; empty if there is none."""
    improves = any(result.must == "improve" and result.holds for result in results)
    failed = [result for result in results if not result.holds and not (result.already and improves)]
    return min(failed, key=lambda result: result.holds is None).claim if failed else ""


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a certificate."""
    text, number, integer = {"type": "string"}, {"type": ["number", "null"]}, {"type": ["integer", "null"]}
    figure = {"type": ["number", "string", "null"]}
    result = {
        "claim": {**text, "description": "what was claimed, one clause"},
        "must": {"enum": ["equal", "improve"]},
        "holds": {"type": ["boolean", "null"], "description": "null: it could not be checked"},
        "before": {**figure, "description": "figure measured before the fix"},
        "after": {**figure, "description": "figure measured after it; the relative difference, if it must be equal"},
        "tolerance": {**number, "description": "what the figure was held against"},
        "detail": text,
        "already": {"type": "boolean", "description": "what should improve was so before, and still is"},
        "kind": {**text, "description": "the claim's kind, and with which options it was checked"},
        "options": {"type": "object"},
    }
    properties: dict[str, Any] = {
        "version": {"const": VERSION},
        "code": {**text, "description": "code of the rule"},
        "name": {**text, "description": "name of the rule"},
        "path": {**text, "description": "file, as the user named it"},
        "row": {"type": "integer", "minimum": 0},
        "title": {**text, "description": "what the fix does"},
        "diff": {**text, "description": "unified diff of the fix; of one in memory, what was done to which layer"},
        "how": {"enum": ["source", "memory"]},
        "modules": {"type": "array", "items": text, "description": "paths of the layers concerned"},
        "hash_before": {**text, "description": "SHA-256 of the file's text, newlines as \\n, before the fix"},
        "hash_after": {**text, "description": "and after it"},
        "target": {**text, "description": "the model that was run"},
        "inputs": {**text, "description": "what it was called with"},
        "given": {"type": "array", "items": text, "description": "input specifications of the command line"},
        "compiled": {"type": "boolean", "description": "outputs were compared under torch.compile as well"},
        "claims": {"type": "array", "items": _object(result)},
        "verdict": {"enum": list(VERDICTS)},
        "reason": text,
        "device": text,
        "dtype": text,
        "seed": {"type": "integer"},
        "versions": {"type": "object", "additionalProperties": text},
        "seconds_before": {**number, "description": "one forward and backward"},
        "seconds_after": number,
        "memory_before": {**integer, "description": "peak bytes of tensors in one forward and backward"},
        "memory_after": integer,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Certificate of a validated fix",
        **_object(properties),
    }


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def main() -> None:
    """Write the shipped schema."""
    FILE.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
