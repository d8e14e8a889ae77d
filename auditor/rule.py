"""What a rule file declares: who it is, what it looks for in source and in a run, and how it mends what it found."""

from __future__ import annotations

import ast
import enum
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from auditor.finding import READ, RUN, Finding, Location, Note, Severity

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.claims import Claim
    from auditor.fix.edit import Applicability, Edit, Fix
    from auditor.static.source import Source


class Category(enum.StrEnum):
    """What a user loses while the defect stands."""

    CORRECTNESS = "correctness"  # the model computes something else than was meant
    TRAINABILITY = "trainability"  # it computes the right thing but learns badly or not at all
    ROBUSTNESS = "robustness"  # it breaks on other batch sizes, dtypes or devices
    SIMPLICITY = "simplicity"  # torch has it built in, or it costs for nothing


class HasLocation(Protocol):
    """Facts of a run (a module, a node of the graph) that know the user's line they come from."""

    @property
    def location(self) -> Location: ...


StaticCheck = Callable[["Source"], Iterable[Finding]]
DynamicCheck = Callable[["Capture"], Iterable[Finding]]
FixFunction = Callable[["Source", Finding], "Edit | Sequence[Edit] | None"]


class Rule:
    """One rule. Created once per rule file as `rule = Rule(__name__, code=…, …)`.

    `triggers`: a file is shown to the static check only if it contains at least one of these strings.
    `yields_to`: codes of rules that name the cause of which this rule sees a symptom; where both speak of the same
    line or layer, only the cause is reported.
    `thresholds`: the numbers the verdict rests on, printed in the documentation.
    `since`: the first torch version the rule applies to.
    """

    def __init__(
        self,
        module: str,
        *,
        code: str,
        category: Category,
        severity: Severity,
        summary: str,
        triggers: Sequence[str] = (),
        yields_to: Sequence[str] = (),
        thresholds: Mapping[str, float] | None = None,
        since: str = "",
    ) -> None:
        self.module = module
        self.code = code
        self.category = category
        self.severity = severity
        self.summary = summary
        self.triggers = tuple(trigger.encode() for trigger in triggers)
        self.yields_to = tuple(yields_to)
        self.thresholds = dict(thresholds or {})
        self.since = since
        self.static_check: StaticCheck | None = None
        self.dynamic_check: DynamicCheck | None = None
        self.fix_function: FixFunction | None = None
        self.title = ""
        self.applicability: Applicability | None = None
        self.keeps: tuple[Claim, ...] = ()
        self.gains: tuple[Claim, ...] = ()

    @property
    def name(self) -> str:
        """Kebab-case name, from the file's name."""
        return self.module.rpartition(".")[2].replace("_", "-")

    @property
    def family(self) -> str:
        """The folder the rule lives in."""
        return self.module.split(".")[-2]

    @property
    def explanation(self) -> str:
        return (sys.modules[self.module].__doc__ or "").strip()

    @property
    def path(self) -> str:
        return sys.modules[self.module].__file__ or ""

    # What a rule file calls ----------------------------------------------------------------------------------------

    def static(self, check: StaticCheck) -> StaticCheck:
        """Decorator: the check that reads source."""
        self.static_check = check
        return check

    def dynamic(self, check: DynamicCheck) -> DynamicCheck:
        """Decorator: the check that looks at the running model."""
        self.dynamic_check = check
        return check

    def fix(
        self,
        title: str,
        *,
        applicability: str = "safe",
        keeps: Sequence[Claim] = (),
        gains: Sequence[Claim] = (),
    ) -> Callable[[FixFunction], FixFunction]:
        """Decorator: the function that turns a finding into edits (None: this one cannot be mended)."""

        def declare(function: FixFunction) -> FixFunction:
            from auditor.fix.edit import Applicability

            self.fix_function = function
            self.title = title
            self.applicability = Applicability(applicability)
            self.keeps = tuple(keeps)
            self.gains = tuple(gains)
            return function

        return declare

    def finding(
        self,
        where: ast.expr | ast.stmt | ast.arg | Location | HasLocation,
        message: str,
        *,
        severity: Severity | None = None,
        modules: Sequence[str] = (),
        notes: Sequence[Note] = (),
        **facts: Any,
    ) -> Finding:
        """A finding of this rule at an `ast` node, a `Location`, or anything with a `location`.

        The path of an `ast` node, and how the defect was seen, are filled in by `read` and `run` below.
        """
        if isinstance(where, ast.AST):
            location = span(where)
        else:
            location = where if isinstance(where, Location) else where.location
        return Finding(
            code=self.code,
            name=self.name,
            message=message,
            location=location,
            severity=self.severity if severity is None else severity,
            modules=tuple(modules),
            notes=tuple(notes),
            facts=facts,
        )

    # What the engine calls -----------------------------------------------------------------------------------------

    def wants(self, content: bytes) -> bool:
        """Whether a file with this content can have a static finding at all."""
        if self.static_check is None:
            return False
        return not self.triggers or any(trigger in content for trigger in self.triggers)

    def read(self, source: Source) -> Iterator[Finding]:
        """Findings of the static check."""
        if self.static_check is not None:
            for finding in self.static_check(source):
                yield replace(
                    finding,
                    seen=(READ,),
                    location=_in_file(finding.location, source.path),
                    notes=tuple(replace(note, location=_in_file(note.location, source.path)) for note in finding.notes),
                )

    def run(self, capture: Capture) -> Iterator[Finding]:
        """Findings of the dynamic check."""
        if self.dynamic_check is not None:
            for finding in self.dynamic_check(capture):
                yield replace(finding, seen=(RUN,))

    def mend(self, source: Source, finding: Finding) -> Fix | None:
        """The fix of one finding in `source`, or None."""
        if self.fix_function is None or self.applicability is None:
            return None
        from auditor.fix.edit import Edit, Fix

        edits = self.fix_function(source, finding)
        if not edits:
            return None
        edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        return Fix(self.title, edits, self.applicability, self.keeps, self.gains)


def span(node: ast.AST, path: str = "") -> Location:
    """The range of an `ast` node, columns in characters as `ast` gives them (UTF-8 bytes) plus one."""
    row, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
    end_row, end_column = getattr(node, "end_lineno", None) or row, getattr(node, "end_col_offset", None) or column
    return Location(path, row, column + 1, end_row, end_column + 1)


def _in_file(location: Location, path: str) -> Location:
    return location if location.path else replace(location, path=path)
