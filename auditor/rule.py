"""What a rule file declares: who it is, what it looks for in source and in a run, and how it mends what it found."""

from __future__ import annotations

import ast
import enum
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, overload

from auditor.finding import READ, RUN, Finding, Location, Note, Severity

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture
    from auditor.fix.claims import Claim
    from auditor.fix.edit import Applicability, Edit, Fix
    from auditor.fix.surgery import Surgery
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


CommentCheck = Callable[["Source", Sequence[Finding], "Sequence[Rule]"], Iterable[Finding]]
StaticCheck = Callable[["Source"], Iterable[Finding]]
DynamicCheck = Callable[["Capture"], Iterable[Finding]]
FixFunction = Callable[["Source", Finding], "Edit | Sequence[Edit] | Fix | None"]
RewriteFunction = Callable[["Surgery", Finding], "Iterable[Claim] | None"]


class Rule:
    """One rule. Created once per rule file as `rule = Rule(__name__, code=…, …)`.

    `triggers`: a file is shown to the static check only if it contains at least one of these strings; for several
    strings in a tuple, all of them.
    `yields_to`: codes of rules that name the cause of which this rule sees a symptom; where both speak of the same
    line or layer, only the cause is reported.
    `thresholds`: the numbers the verdict rests on, printed in the documentation.
    `since`, `until`: the torch versions the rule applies to, the first included, the second not; empty: all.
    """

    def __init__(
        self,
        module: str,
        *,
        code: str,
        category: Category,
        severity: Severity,
        summary: str,
        triggers: Sequence[str | Sequence[str]] = (),
        yields_to: Sequence[str] = (),
        thresholds: Mapping[str, float] | None = None,
        since: str = "",
        until: str = "",
    ) -> None:
        self.module = module
        self.code = code
        self.category = category
        self.severity = severity
        self.summary = summary
        needed = [(trigger,) if isinstance(trigger, str) else trigger for trigger in triggers]
        self.triggers = tuple(tuple(part.encode() for part in together) for together in needed)
        self.yields_to = tuple(yields_to)
        self.thresholds = dict(thresholds or {})
        self.since = since
        self.until = until
        self.reads_source = False
        self.runs_model = False
        self.fixes = False
        self.static_check: StaticCheck | None = None
        self.comment_check: CommentCheck | None = None
        self.dynamic_check: DynamicCheck | None = None
        self.fix_function: FixFunction | None = None
        self.rewrite_function: RewriteFunction | None = None
        self.title = ""
        self.applicability: Applicability | None = None
        self.keeps: tuple[Claim, ...] = ()
        self.gains: tuple[Claim, ...] = ()
        self.rewrite_title = ""
        self.rewrite_keeps: tuple[Claim, ...] | None = None
        self.rewrite_gains: tuple[Claim, ...] | None = None

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
        """The docstring of the rule's file."""
        return (sys.modules[self.loaded().module].__doc__ or "").strip()

    @property
    def path(self) -> str:
        """The rule's file."""
        return sys.modules[self.loaded().module].__file__ or ""

    def loaded(self) -> Rule:
        """This rule with its checks and its fix (see IndexedRule)."""
        return self

    # What a rule file calls ----------------------------------------------------------------------------------------

    def static(self, check: StaticCheck) -> StaticCheck:
        """Decorator: the check that reads source."""
        self.static_check, self.reads_source = check, True
        return check

    def comments(self, check: CommentCheck) -> CommentCheck:
        """Decorator: the check of the comments that silence findings. It is given what they silenced, and the rules
        that could have been silenced in this file, and runs when all other checks of the file are done."""
        self.comment_check, self.reads_source = check, True
        return check

    def dynamic(self, check: DynamicCheck) -> DynamicCheck:
        """Decorator: the check that looks at the running model."""
        self.dynamic_check, self.runs_model = check, True
        return check

    def fix(
        self,
        title: str,
        *,
        applicability: str = "safe",
        keeps: Sequence[Claim] = (),
        gains: Sequence[Claim] = (),
    ) -> Callable[[FixFunction], FixFunction]:
        """Decorator: the function that turns a finding into edits (None: this one cannot be mended).

        It may return a whole `Fix`, where a finding needs another title or other claims than the rule declares.
        """

        def declare(function: FixFunction) -> FixFunction:
            from auditor.fix.edit import Applicability

            self.fix_function, self.fixes = function, True
            self.title = title
            self.applicability = Applicability(applicability)
            self.keeps = tuple(keeps)
            self.gains = tuple(gains)
            return function

        return declare

    @overload
    def rewrite(self, function: RewriteFunction) -> RewriteFunction: ...
    @overload
    def rewrite(
        self, *, title: str = "", keeps: Sequence[Claim] | None = None, gains: Sequence[Claim] | None = None
    ) -> Callable[[RewriteFunction], RewriteFunction]: ...

    def rewrite(
        self,
        function: RewriteFunction | None = None,
        *,
        title: str = "",
        keeps: Sequence[Claim] | None = None,
        gains: Sequence[Claim] | None = None,
    ) -> RewriteFunction | Callable[[RewriteFunction], RewriteFunction]:
        """Decorator: the function that mends a finding on a model in memory, for `auditor.rewrite`.

        It gets a `Surgery` (a copy of the model and what a run of it showed) and a finding of the dynamic check, whose
        `modules` are the paths of the layers concerned, and replaces or changes layers through the surgery's methods:

            @rule.rewrite
            def groups_in_memory(surgery: Surgery, finding: Finding) -> None:
                for path in finding.modules:
                    surgery.replace(path, to_group_norm(surgery.module(path)))

        Title and claims are those of `@rule.fix`, unless given here. It may return (or yield) further claims that hold
        in this case, and raises ValueError with the reason where it cannot do it. A rule needs none if the edits of its
        fix change methods only: `auditor.rewrite` carries those out on the classes of the model.
        """

        def declare(function: RewriteFunction) -> RewriteFunction:
            self.rewrite_function = function
            self.rewrite_title = title
            self.rewrite_keeps = None if keeps is None else tuple(keeps)
            self.rewrite_gains = None if gains is None else tuple(gains)
            return function

        return declare if function is None else declare(function)

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

    def read(self, source: Source) -> Iterator[Finding]:
        """Findings of the static check."""
        check = self.loaded().static_check
        if check is not None:
            for finding in check(source):
                yield replace(
                    finding,
                    seen=(READ,),
                    location=_in_file(finding.location, source.path),
                    notes=tuple(replace(note, location=_in_file(note.location, source.path)) for note in finding.notes),
                )

    def read_comments(self, source: Source, silenced: Sequence[Finding], active: Sequence[Rule]) -> Iterator[Finding]:
        """Findings of the check of comments."""
        check = self.loaded().comment_check
        if check is not None:
            for finding in check(source, silenced, active):
                yield replace(finding, location=_in_file(finding.location, source.path))

    def run(self, capture: Capture) -> Iterator[Finding]:
        """Findings of the dynamic check."""
        check = self.loaded().dynamic_check
        if check is not None:
            for finding in check(capture):
                yield replace(finding, seen=(RUN,))

    def mend(self, source: Source, finding: Finding) -> Fix | None:
        """The fix of one finding in `source`, or None."""
        rule = self.loaded()
        if rule.fix_function is None or rule.applicability is None:
            return None
        from auditor.fix.edit import Edit, Fix

        try:
            edits = rule.fix_function(source, finding)
        except Exception as error:  # the file with the finding must not suffer from a mistake in a rule
            raise RuleFailure(rule, error) from error
        if edits is None or isinstance(edits, Fix):
            return edits
        edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        return Fix(rule.title, edits, rule.applicability, rule.keeps, rule.gains) if edits else None

    def operate(self, surgery: Surgery, finding: Finding) -> Fix | None:
        """Mend one finding on the model of `surgery`; the fix has no edits. None: this rule knows no way in memory.

        Raises ValueError with the reason where this finding cannot be mended.
        """
        rule = self.loaded()
        if rule.rewrite_function is None:
            return None
        from auditor.fix.edit import Applicability, Fix

        further = list(rule.rewrite_function(surgery, finding) or ())
        known = {claim.kind for claim in (*rule.keeps, *rule.gains, *further)}
        further += [claim for claim in dict.fromkeys(surgery.claims) if claim.kind not in known]
        keeps = rule.keeps if rule.rewrite_keeps is None else rule.rewrite_keeps
        gains = rule.gains if rule.rewrite_gains is None else rule.rewrite_gains
        keeps = (*keeps, *(claim for claim in further if claim.must == "equal"))
        gains = (*gains, *(claim for claim in further if claim.must == "improve"))
        return Fix(rule.rewrite_title or rule.title, (), rule.applicability or Applicability.UNSAFE, keeps, gains)


class RuleFailure(Exception):
    """A rule's own code raised an error: a mistake in the rule, not in the file it was shown."""

    def __init__(self, rule: Rule, error: Exception) -> None:
        where = f" ({os.path.basename(rule.path)}:{row})" if (row := row_of(error, rule.path)) else ""
        super().__init__(f"{rule.code} {rule.name} failed: {type(error).__name__}: {error}{where}")


def row_of(error: BaseException, path: str) -> int:
    """The line of the file `path` that raised `error`, or that is no Python; 0 if the file is not to blame."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 0
    row, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            row = trace.tb_lineno
        trace = trace.tb_next
    return row


class IndexedRule(Rule):
    """A rule known from the index of rule files: its file is executed when its checks or its fix are first needed, so
    that a command that needs three rules does not pay for a hundred."""

    def __init__(self, module: str, entry: Mapping[str, Any], load: Callable[[], Rule]) -> None:
        super().__init__(
            module,
            code=entry["code"],
            category=Category(entry["category"]),
            severity=Severity(entry["severity"]),
            summary=entry["summary"],
            triggers=entry["triggers"],
            yields_to=entry["yields_to"],
            since=entry["since"],
            until=entry["until"],
        )
        self.reads_source = entry["reads_source"]
        self.runs_model = entry["runs_model"]
        self.fixes = entry["fixes"]
        self._load = functools.cache(load)

    def loaded(self) -> Rule:
        return self._load()


def index_entry(rule: Rule) -> dict[str, Any]:
    """What an IndexedRule is made from, as JSON data."""
    return {
        "code": rule.code,
        "category": str(rule.category),
        "severity": int(rule.severity),
        "summary": rule.summary,
        "triggers": [[part.decode() for part in together] for together in rule.triggers],
        "yields_to": list(rule.yields_to),
        "since": rule.since,
        "until": rule.until,
        "reads_source": rule.reads_source,
        "runs_model": rule.runs_model,
        "fixes": rule.fixes,
    }


def span(node: ast.AST, path: str = "") -> Location:
    """The range of an `ast` node, columns in characters as `ast` gives them (UTF-8 bytes) plus one."""
    row, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
    end_row, end_column = getattr(node, "end_lineno", None) or row, getattr(node, "end_col_offset", None) or column
    return Location(path, row, column + 1, end_row, end_column + 1)


def _in_file(location: Location, path: str) -> Location:
    return location if location.path else replace(location, path=path)
