"""`auditor verify`: runs the proofs of certificates again, on the files as they are now."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from auditor.finding import Problem
from auditor.fix.certificate import Certificate, ClaimResult, content_hash, verdict
from auditor.fix.proof import Ask
from auditor.settings import Settings
from auditor.static import files

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True, slots=True)
class Verification:
    """One certificate, checked again: the results of today and the verdict that follows from them."""

    certificate: Certificate
    results: tuple[ClaimResult, ...]
    verdict: str
    reason: str

    @property
    def confirmed(self) -> bool:
        return self.verdict == self.certificate.verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "certificate": self.certificate.to_json(),
            "results": [asdict(result) for result in self.results],
            "verdict": self.verdict,
            "reason": self.reason,
            "confirmed": self.confirmed,
        }


def read(path: Path) -> list[Certificate]:
    """The certificates of a file that `--certificate` wrote (a list), or of one; ValueError with the reason if none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        return [Certificate.from_json(item) for item in (data if isinstance(data, list) else [data])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no certificates: {type(error).__name__} {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def verify(
    certificates: Sequence[Certificate], settings: Settings, ask: Ask
) -> tuple[list[Verification], list[Problem]]:
    """Check the claims of each certificate again; what cannot be done (a file that has changed, …) is a problem.

    The texts before and after a fix come from the file and the certificates' diffs, and must have the hashes that the
    certificate names.
    """
    done: list[Verification] = []
    problems: list[Problem] = []
    for path in dict.fromkeys(certificate.path for certificate in certificates):
        own = [certificate for certificate in certificates if certificate.path == path]
        try:
            texts = _texts(files.decode(files.read(path)), own)
        except (OSError, ValueError, SyntaxError, LookupError) as error:
            problems.append(Problem(path, f"cannot be read: {error}"))
            continue
        for certificate in own:
            outcome = _verify(certificate, texts, settings, ask)
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                done.append(outcome)
    return done, problems


def _verify(certificate: Certificate, texts: Mapping[str, str], settings: Settings, ask: Ask) -> Verification | Problem:
    path, row = certificate.path, certificate.row
    what = f"{certificate.code} in {certificate.target or 'no model'}"
    if certificate.how == "memory":
        return Problem(path, f"{what} was mended in memory", "call auditor.rewrite on the same model and inputs", row)
    if not certificate.claims:
        return Problem(path, f"{what} was never put to the test: {certificate.reason}", row=row)
    before, after = texts.get(certificate.hash_before), texts.get(certificate.hash_after)
    if before is None or after is None:
        return Problem(path, f"{what}: the file has changed since this certificate was made", "audit it again", row)
    from auditor.dynamic.worker import WorkerError

    claims = [{"kind": result.kind, "options": dict(result.options)} for result in certificate.claims]
    try:
        proof = ask(
            "validate",
            path=path,
            before=before,
            after=after,
            target=certificate.target,
            configured=dict(settings.targets),
            input=list(certificate.given),
            device=certificate.device,
            dtype=certificate.dtype,
            compile=certificate.compiled,
            seed=certificate.seed,
            claims=claims,
        )
    except (WorkerError, ValueError) as error:  # ValueError: a claim that this version does not know
        return Problem(path, f"{what}: {error}", row=row)
    results = tuple(ClaimResult.from_json(result) for result in proof["results"])
    return Verification(certificate, results, *verdict(results))


# Texts ---------------------------------------------------------------------------------------------------------------


def _texts(text: str, certificates: Sequence[Certificate]) -> dict[str, str]:
    """The file's text and every text that the certificates' diffs lead to from it, forwards or backwards, by hash."""
    known = {content_hash(text): text}
    while True:
        more: dict[str, str] = {}
        for one in certificates:
            for start, end, backwards in (
                (one.hash_before, one.hash_after, False),
                (one.hash_after, one.hash_before, True),
            ):
                if start in known and end not in known and one.how == "source":
                    made = patched(known[start], one.diff, backwards)
                    if made is not None and content_hash(made) == end:
                        more[end] = made
        if not more:
            return known
        known |= more


def patched(text: str, diff: str, backwards: bool = False) -> str | None:
    """`text` with the changes of a unified diff of one file, exactly at its lines; None where they do not fit."""
    lines, result, at = text.splitlines(), list[str](), 0
    for line in diff.splitlines()[2:]:
        if hunk := _HUNK.match(line):
            start, length = (hunk[3], hunk[4]) if backwards else (hunk[1], hunk[2])
            begin = int(start) - (0 if length == "0" else 1)
            if not at <= begin <= len(lines):
                return None
            result += lines[at:begin]
            at = begin
            continue
        mark, content = line[:1], line[1:]
        mark = {"+": "-", "-": "+"}.get(mark, mark) if backwards else mark
        if mark == "\\":
            continue
        if mark in (" ", "-"):
            if at >= len(lines) or lines[at] != content:
                return None
            at += 1
        if mark in (" ", "+"):
            result.append(content)
    result += lines[at:]
    return "".join(f"{line}\n" for line in result)
