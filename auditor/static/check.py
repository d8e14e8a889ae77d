"""The static half: bytes that trigger a rule → one parse → facts → findings."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from auditor.finding import Finding, Problem
from auditor.loader import RuleError, choose, load, matches
from auditor.rule import Rule, RuleFailure
from auditor.settings import Settings
from auditor.static import files, suppress
from auditor.static.project import Link, digest_of, new_run, project
from auditor.static.source import Source, opened
from auditor.static.triggers import Triggers


class FileResult:
    """What one file gave."""

    def __init__(self, path: str, problems: Iterable[Problem] = ()) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self.silenced: list[Finding] = []
        self.problems = list(problems)
        self.parsed = False
        self.links: tuple[Link, ...] = ()  # what was looked up in other files of the project


def chosen_rules(settings: Settings) -> list[Rule]:
    """The rules that the settings select and that apply to the torch they target. Raises ValueError for a selector
    that names none."""
    from auditor.torch_version import applies

    loaded = load(settings.rules)
    try:
        rules = choose(loaded.rules, (*settings.select, *settings.extend_select), settings.ignore)
    except ValueError as error:
        if not loaded.problems:
            raise
        lost = "; ".join(f"{problem.path}: {problem.message}" for problem in loaded.problems)
        raise ValueError(f"{error} ({lost})") from error
    return [rule for rule in rules if applies(rule.since, rule.until, settings.target_torch)]


def rule_problems(settings: Settings) -> list[Problem]:
    """What is wrong with the user's own rules and with plug-ins."""
    return [replace(problem, path=files.display(problem.path)) for problem in load(settings.rules).problems]


def check_text(path: str, text: str, rules: Sequence[Rule], module: str = "") -> FileResult:
    """The findings of `rules` in `text`. A syntax error is a problem of the result, not an exception."""
    new_run()
    return _read(path, text, _triggers(tuple(rules)).wanted(text.encode("utf-8", "surrogatepass")), rules, module)


@functools.lru_cache(maxsize=4)
def _triggers(rules: tuple[Rule, ...]) -> Triggers:
    return Triggers(rules)


def _read(path: str, text: str, rules: Sequence[Rule], active: Sequence[Rule], module: str = "") -> FileResult:
    """The findings of `rules`, which are those of `active` that can have any in this text."""
    result = FileResult(path)
    if not rules:
        return result
    try:
        source = opened(path, text, module)
    except SyntaxError as error:
        result.problems.append(Problem(path, f"syntax error: {error.msg}", row=error.lineno or 0))
        return result
    except (ValueError, RecursionError, MemoryError) as error:
        result.problems.append(Problem(path, f"cannot be parsed: {error}"))
        return result
    result.parsed = True
    with project().looking_up(source.links):
        found = _apply(rules, source, result)
    result.links = tuple(sorted(source.links))
    unique = {(f.code, f.location, f.message): f for f in found}
    standing = drop_symptoms(sorted(unique.values(), key=lambda f: f.sort_key), rules)
    result.findings, result.silenced = suppress.split(standing, text)
    of_comments = [item for rule in rules for item in rule.read_comments(source, result.silenced, active)]
    if of_comments:
        kept, dropped = suppress.split(of_comments, text)
        result.findings = sorted([*result.findings, *kept], key=lambda f: f.sort_key)
        result.silenced += dropped
    return result


def _apply(rules: Sequence[Rule], source: Source, result: FileResult) -> list[Finding]:
    """What the rules find; one that fails costs the others nothing and becomes a problem of `result`."""
    found: list[Finding] = []
    for rule in rules:
        try:
            found += rule.read(source)
        except RecursionError:
            message = f"too deeply nested for {rule.code} {rule.name}; the rule was skipped"
            result.problems.append(Problem(result.path, message))
        except RuleError as error:
            result.problems.append(Problem(result.path, f"{rule.code} {rule.name} cannot be used: {error}"))
        except Exception as error:
            result.problems.append(Problem(result.path, str(RuleFailure(rule, error))))
    return found


def drop_symptoms(findings: Sequence[Finding], rules: Sequence[Rule]) -> list[Finding]:
    """`findings` without those that only show the effect of another one on the same lines or layers."""
    causes = {rule.code: rule.yields_to for rule in rules if rule.yields_to}
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    return [
        finding
        for finding in findings
        if not any(
            other.location.covers(finding.location) or _same_layer(other, finding)
            for code in causes.get(finding.code, ())
            for other in by_code.get(code, ())
        )
    ]


def _same_layer(one: Finding, other: Finding) -> bool:
    """Whether both speak of one layer of one model."""
    return not set(one.modules).isdisjoint(other.modules) and not set(one.models).isdisjoint(other.models)


def check_file(path: str, settings: Settings, rules: Sequence[Rule]) -> FileResult:
    """The findings in one file. What keeps it from being read is a problem of the result."""
    shown = files.display(path)
    try:
        content = files.read(path)
        script = files.text_of(path, content) if files.is_notebook(path) else None
        if script is not None:  # the JSON around it escapes what triggers look for
            content = script.encode("utf-8", "surrogatepass")
        wanted = rules_for(path, settings, _triggers(tuple(rules)).wanted(content))
        active = rules_for(path, settings, rules) if wanted else ()
        if not wanted:
            return FileResult(shown)
        text = files.decode(content) if script is None else script
    except OSError as error:
        return _unreadable(shown, error.strerror or str(error))
    except (ValueError, SyntaxError, LookupError) as error:
        return _unreadable(shown, f"cannot be decoded: {error}")
    return _read(shown, text, wanted, active)


def _unreadable(path: str, reason: str) -> FileResult:
    return FileResult(path, problems=[Problem(path, reason)])


def rules_for(path: str, settings: Settings, rules: Sequence[Rule]) -> list[Rule]:
    """Those of `rules` that the per-file ignores of the settings leave on for `path`."""
    if not settings.per_file_ignores:
        return list(rules)
    return [rule for rule in rules if not ignored_here(rule, path, settings)]


def ignored_here(rule: Rule, path: str, settings: Settings) -> bool:
    """Whether the per-file ignores of the settings switch `rule` off for `path`."""
    root = str(settings.root)
    return any(
        files.excluded(path, (pattern, f"*/{pattern}"), root) and any(matches(code, rule) for code in codes)
        for pattern, codes in settings.per_file_ignores.items()
    )


_CHUNK = 64  # files; for fewer, starting processes costs more than it saves


def check_files(
    paths: Sequence[str],
    settings: Settings,
    progress: Callable[[str], None] | None = None,
    finish: Callable[[FileResult], None] | None = None,
    finished: str = "",
) -> list[FileResult]:
    """One result per file, in the order of `paths`, whatever the number of jobs (0: one per processor), and whether it
    is found out anew or known from an earlier run. `finish` adds to results that are new what is to be kept with them;
    `finished` tells results so finished from others."""
    rules = chosen_rules(settings)
    new_run()
    if not settings.cache:
        results_anew = _check_all(paths, settings, rules, progress)
        for result in results_anew if finish is not None else ():
            finish(result)  # type: ignore[misc]
        return results_anew
    from auditor.static.cache import Cache

    cache = Cache(settings, rules, finished)
    results: dict[str, FileResult] = {}
    digests: dict[str, bytes] = {}
    for path in paths:
        try:
            content = files.read(path)
        except OSError:
            content = b"torch"  # to be read again, and reported
        if b"torch" not in content and not files.is_notebook(path):
            results[path] = FileResult(files.display(path))
        elif (known := cache.get(files.display(path), content)) is not None:
            results[path] = known
        else:
            digests[path] = digest_of(content)
    for path, result in zip(digests, _check_all(list(digests), settings, rules, progress), strict=True):
        results[path] = result
        if finish is not None:
            finish(result)
        if not result.problems:
            cache.put(result, digests[path])
    cache.save()
    return [results[path] for path in paths]


def _check_all(
    paths: Sequence[str], settings: Settings, rules: Sequence[Rule], progress: Callable[[str], None] | None
) -> list[FileResult]:
    jobs = _jobs(settings.jobs, len(paths))
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    results: list[FileResult] = []
    with ExitStack() as stack:
        checked: Iterator[list[FileResult]]
        if jobs == 1:
            checked = (_check_chunk(chunk, settings, rules) for chunk in chunks)
        else:
            from concurrent.futures import ProcessPoolExecutor

            pool = stack.enter_context(ProcessPoolExecutor(jobs))
            checked = pool.map(_check_chunk, chunks, [settings] * len(chunks))
        for chunk in checked:
            results += chunk
            if progress is not None:
                progress(f"checking ({len(results)} of {len(paths)})")
    return results


def _jobs(asked: int, count: int) -> int:
    if asked == 1 or count <= _CHUNK:
        return 1
    import os

    return min(asked or os.cpu_count() or 1, count // _CHUNK + 1)


def _check_chunk(paths: Sequence[str], settings: Settings, rules: Sequence[Rule] | None = None) -> list[FileResult]:
    rules = chosen_rules(settings) if rules is None else rules
    collecting = gc.isenabled()
    gc.disable()  # trees hold no cycles (see tree.py) and collecting in between costs more than parsing
    try:
        return [check_file(path, settings, rules) for path in paths]
    finally:
        if collecting:
            gc.enable()
