"""Whether fixes may be written: their claims, checked by running the models before and after, become certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from auditor.finding import Finding
from auditor.fix.certificate import Certificate, ClaimResult, content_hash, failed_claim, verdict
from auditor.fix.claims import Claim
from auditor.fix.engine import Verdict, unified_diff
from auditor.settings import ALL, Settings
from auditor.static.source import Source

# Sends one operation to the child process; raises WorkerError when the child dies of it.
Ask = Callable[..., Mapping[str, Any]]


class Prover:
    """Judges the fixes of one file.

    `records`: the audit records of the models the file offers. A fix is put to the test on every model that has its
    defect: those in which a run saw it, or else those that contain the class the finding stands in.
    """

    def __init__(
        self, ask: Ask, path: str, records: Sequence[Mapping[str, Any]], settings: Settings, inputs: Sequence[str]
    ) -> None:
        self.ask = ask
        self.path = path
        self.records = [record for record in records if "capture" in record]
        self.settings = settings
        self.inputs = list(inputs)
        self.certificates: list[Certificate] = []
        self.refusals: list[Certificate] = []
        self._devices: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that every fix is put to the test on."""
        if not self._devices:
            every = self.settings.device == ALL
            self._devices = tuple(self.ask("devices")["devices"]) if every else (self.settings.device,)
        return self._devices

    def judge(self, before: str, after: str, group: Sequence[Finding]) -> Verdict:
        """All claims of all fixes of `group`, made together, on every model concerned."""
        if before == after:
            return Verdict("the fix changes nothing")
        source = Source(self.path, before)
        concerned = {id(finding): self._models(finding, source) for finding in group}
        proofs = {
            (name, device): self._prove(
                name, device, before, after, _claims(f for f in group if name in concerned[id(f)])
            )
            for name in sorted({name for names in concerned.values() for name in names})
            for device in self.devices
        }
        texts = {
            "diff": unified_diff(self.path, before, after),
            "hash_before": content_hash(before),
            "hash_after": content_hash(after),
        }
        made = [
            self._certificate(finding, name, device, proofs.get((name, device)), texts)
            for finding in group
            for name in concerned[id(finding)] or [""]
            for device in self.devices
        ]
        refused = next((certificate for certificate in made if not certificate.accepted), None)
        if refused is not None:
            self.refusals += made
            return Verdict(refusal=refused.reason, broken=f"{refused.target}: {failed_claim(refused.claims)}")
        self.certificates += made
        return Verdict()

    def _models(self, finding: Finding, source: Source) -> list[str]:
        known = [record["name"] for record in self.records]
        if finding.models:
            return [name for name in known if name in finding.models]
        around = [name for name in source.classes_around(finding.location.row) if source.module_class(name)]
        if not around:  # a script, a training class: it concerns whatever model the file has
            return known
        return [record["name"] for record in self.records if set(around) & set(record["classes"])]

    def _prove(self, name: str, device: str, before: str, after: str, claims: Sequence[Claim]) -> Mapping[str, Any]:
        """What the child measured for these claims on the model called `name`."""
        from auditor.dynamic.worker import WorkerError

        try:
            return self.ask(
                "validate",
                path=self.path,
                before=before,
                after=after,
                target=name,
                configured=dict(self.settings.targets),
                input=self.inputs,
                device=device,
                compile=self.settings.compile,
                dtype=self.settings.dtype,
                seed=self.settings.seed,
                claims=[claim.to_json() for claim in claims],
            )
        except WorkerError as error:
            failed = [ClaimResult.of(claim, None, detail=str(error)) for claim in claims]
            return {"results": [asdict(result) for result in failed]}

    def _certificate(
        self, finding: Finding, model: str, device: str, proof: Mapping[str, Any] | None, texts: Mapping[str, str]
    ) -> Certificate:
        assert finding.fix is not None
        claimed = {claim.text for claim in (*finding.fix.keeps, *finding.fix.gains)}
        record: dict[str, Any] = {
            "code": finding.code,
            "name": finding.name,
            "path": self.path,
            "row": finding.location.row,
            "title": finding.fix.title,
            **texts,
            "target": model,
            "modules": finding.modules,
            "given": tuple(self.inputs),
            "compiled": self.settings.compile,
            "device": device,
            "dtype": self.settings.dtype,
            "seed": self.settings.seed,
        }
        if proof is None:
            reason = "no model that could be run contains this code"
            return Certificate(**record, verdict="unchecked", reason=reason)
        results = [ClaimResult.from_json(result) for result in proof["results"]]
        results = [result for result in results if result.claim in claimed]
        decided, reason = verdict(results)
        measured = {key: proof[key] for key in _MEASURED if key in proof}
        return Certificate(**record, **measured, claims=tuple(results), verdict=decided, reason=reason)


_MEASURED = ("inputs", "versions", "seconds_before", "seconds_after", "memory_before", "memory_after")


def _claims(findings: Iterable[Finding]) -> list[Claim]:
    """The claims of several fixes, each once, in order."""
    claims = [claim for finding in findings if finding.fix for claim in (*finding.fix.keeps, *finding.fix.gains)]
    return list(dict.fromkeys(claims))
