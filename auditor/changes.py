"""Which lines of which files differ from a git revision."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from auditor.finding import Finding, Location

_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_ALL = range(1, 2**31)


class GitError(ValueError):
    """git is missing, there is no repository, or it does not know the revision."""


@dataclass(slots=True)
class Changes:
    """The changed rows of each changed file, by the file's real path."""

    rows: dict[str, list[range]] = field(default_factory=dict)

    def touches_file(self, path: str) -> bool:
        return os.path.realpath(path) in self.rows

    def touches(self, finding: Finding) -> bool:
        """Whether one of the finding's lines, or of its notes' lines, is changed. A finding about a whole file counts
        if anything in the file is changed."""
        return any(self._touches(place) for place in (finding.location, *(note.location for note in finding.notes)))

    def _touches(self, location: Location) -> bool:
        rows = self.rows.get(os.path.realpath(location.path), [])
        if not location.row:
            return bool(rows)
        last = max(location.row, location.end_row)
        return any(location.row < changed.stop and changed.start <= last for changed in rows)


def since(revision: str) -> Changes:
    """What the working tree (staged, unstaged and untracked) has changed since the last commit that HEAD and
    `revision` have in common. Raises GitError where that cannot be said."""
    try:
        top = os.fsdecode(_git("rev-parse", "--show-toplevel")).rstrip("\n")
    except GitError as error:
        raise GitError(f"--changed-since needs a git repository: {error}") from error
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}").decode().strip()
    except GitError:
        raise GitError(
            f"--changed-since: git knows no revision {revision!r}; in CI, fetch it first (`git fetch origin main`, or "
            "`fetch-depth: 0` for actions/checkout)"
        ) from None
    try:
        base = _git("merge-base", commit, "HEAD").decode().split("\n")[0]
    except GitError:
        raise GitError(
            f"--changed-since: HEAD and {revision!r} have no commit in common; is this a shallow clone? "
            "(`git fetch --unshallow`, or `fetch-depth: 0` for actions/checkout)"
        ) from None
    return Changes(_changed(top, base) | _untracked(top))


def _git(*arguments: str, folder: str | None = None) -> bytes:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise GitError(f"git cannot be run ({error.strerror})") from error
    if done.returncode:
        reason = os.fsdecode(done.stderr).strip().partition("\n")[0]
        raise GitError(reason or f"git {arguments[0]} failed with exit status {done.returncode}")
    return done.stdout


def _changed(top: str, base: str) -> dict[str, list[range]]:
    """The changed rows of tracked files. Every setting of the user's that could alter the output is overridden."""
    patch = _git(
        "-c", "core.quotePath=false", "diff", "--unified=0", "--no-color", "--no-ext-diff", "--no-textconv",
        "--no-relative", "--find-renames", "--ignore-submodules", "--diff-filter=d", "--src-prefix=a/",
        "--dst-prefix=b/", base, "--", "*.py", "*.pyi", "*.ipynb",
        folder=top,
    )  # fmt: skip
    rows: dict[str, list[range]] = {}
    here: list[range] = []
    lines = iter(patch.split(b"\n"))
    for line in lines:
        if line.startswith(b"+++ "):
            here = rows.setdefault(os.path.realpath(os.path.join(top, _name(line[4:]))), [])
        elif match := _HUNK.match(line):
            removed, start, added = int(match[1] or 1), int(match[2]), int(match[3] or 1)
            # where lines were only removed, what stands before and after the gap has changed its meaning
            here.append(range(start, start + added) if added else range(start, start + 2))
            _skip(lines, removed + added)
    return rows


def _skip(lines: Iterator[bytes], count: int) -> None:
    """Pass over the lines of a hunk: what the user's files say must not be taken for headers."""
    while count and (line := next(lines, None)) is not None:
        count -= not line.startswith(b"\\")  # "\ No newline at end of file" is not counted


def _name(header: bytes) -> str:
    """The path of a `+++` header: `b/…`, quoted as in C where it has unusual characters, else ended by a tab where it
    has spaces."""
    text = os.fsdecode(header)
    text = str(ast.literal_eval(text)) if text.startswith('"') else text.removesuffix("\t")
    return text.removeprefix("b/")


def _untracked(top: str) -> dict[str, list[range]]:
    names = _git("ls-files", "--others", "--exclude-standard", "-z", folder=top).split(b"\0")
    return {os.path.realpath(os.path.join(top, os.fsdecode(name))): [_ALL] for name in names if name}
