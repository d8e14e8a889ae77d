"""The plain data that every stage passes on: where, how bad, what is wrong, what would mend it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.fix.edit import Fix


class Severity(enum.IntEnum):
    """How sure and how costly: `error` is wrong in ordinary use, `warning` in most uses, `info` is advice."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Severity:
        """The severity called `text`; ValueError for any other word."""
        try:
            return cls[text.upper()]
        except KeyError:
            raise ValueError(f"unknown severity {text!r}: use error, warning or info") from None


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A range in a file. Rows and columns count from 1; the end column is exclusive. Row 0: the file as a whole."""

    path: str
    row: int = 0
    column: int = 1
    end_row: int = 0
    end_column: int = 0

    def covers(self, other: Location) -> bool:
        """Whether `other` starts on one of this range's lines."""
        return self.path == other.path and self.row <= other.row <= max(self.row, self.end_row)


@dataclass(frozen=True, slots=True)
class Note:
    """One step of the path that led to a finding, such as the line that switched a mode."""

    location: Location
    message: str


READ = "read in source"
RUN = "seen in a run"


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect, whichever pipeline saw it.

    `modules` are the paths of the layers concerned in the running model (`"blocks.3.drop"`), `models` the names of the
    models in which it was seen in a run, `facts` the figures behind the verdict, `seen` how it was seen (READ, RUN or
    both).
    """

    code: str
    name: str
    message: str
    location: Location
    severity: Severity
    seen: tuple[str, ...] = (READ,)
    modules: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    fix: Fix | None = None

    @property
    def sort_key(self) -> tuple[Location, str, str]:
        return self.location, self.code, self.message

    def merged_with(self, other: Finding) -> Finding:
        """This finding, enriched by another sighting of the same defect.

        The location read in source wins (it has columns); so does the message of a run, since it carries the figures.
        """
        read, run = (self, other) if READ in self.seen else (other, self)
        return replace(
            read,
            message=run.message if RUN in run.seen else read.message,
            severity=max(self.severity, other.severity),
            seen=tuple(dict.fromkeys((*read.seen, *run.seen))),
            modules=tuple(dict.fromkeys((*self.modules, *other.modules))),
            models=tuple(dict.fromkeys((*self.models, *other.models))),
            notes=tuple(dict.fromkeys((*read.notes, *run.notes))),
            facts={**read.facts, **run.facts},
            fix=read.fix or run.fix,
        )


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, sorted, with every defect that was seen in several ways or in several layers named once."""
    merged: list[Finding] = []
    for finding in sorted(findings, key=lambda item: (item.code, READ not in item.seen, item.sort_key)):
        for index, known in enumerate(merged):
            if known.code == finding.code and RUN in finding.seen and known.location.covers(finding.location):
                merged[index] = known.merged_with(finding)
                break
        else:
            merged.append(finding)
    return sorted(merged, key=lambda item: item.sort_key)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that could not be done (a file not parsed, a target not built): never silent, and exit status 2."""

    path: str
    message: str
    remedy: str = ""
    row: int = 0


# Findings travel between the child process and its parent as JSON ---------------------------------------------------


def to_json(item: Finding | Problem) -> dict[str, Any]:
    """Plain data from which `finding_from_json` and `problem_from_json` make the item again (without its fix)."""
    if isinstance(item, Problem):
        return {"path": item.path, "message": item.message, "remedy": item.remedy, "row": item.row}
    return {
        "code": item.code,
        "name": item.name,
        "message": item.message,
        "location": _location_to_json(item.location),
        "severity": int(item.severity),
        "seen": list(item.seen),
        "modules": list(item.modules),
        "models": list(item.models),
        "notes": [[_location_to_json(note.location), note.message] for note in item.notes],
        "facts": dict(item.facts),
    }


def finding_from_json(data: Mapping[str, Any]) -> Finding:
    return Finding(
        code=data["code"],
        name=data["name"],
        message=data["message"],
        location=Location(*data["location"]),
        severity=Severity(data["severity"]),
        seen=tuple(data["seen"]),
        modules=tuple(data["modules"]),
        models=tuple(data["models"]),
        notes=tuple(Note(Location(*location), message) for location, message in data["notes"]),
        facts=dict(data["facts"]),
    )


def problem_from_json(data: Mapping[str, Any]) -> Problem:
    return Problem(**data)


def _location_to_json(location: Location) -> list[Any]:
    return [location.path, location.row, location.column, location.end_row, location.end_column]
