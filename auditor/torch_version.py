"""Which torch a project is written for: what its settings say, what its requirements allow, or what is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from auditor.settings import Settings

NEWEST = "2.13"
"""The newest torch that the rules know."""

Version = tuple[int, ...]
_BOUND = re.compile(r"(===?|>=|~=|>|\^|~|=)\s*v?(\d+(?:\.\d+)*)")
# `torch >= 2.1`, `torch[opt]==2.0`, conda's `pytorch::pytorch=2.1`; not `torchvision`, not `lightning-torch`.
_NAMED = r"(?<![\w.-])(?:pytorch::)?(?:torch|pytorch)(?![\w.-])\s*(?:\[[^\]]*\])?\s*\(?\s*"
_REQUIREMENT = re.compile(_NAMED + r"(?P<bounds>(?:[<>=!~^]{1,3}\s*v?\d[\w.*+]*\s*,?\s*)+)")


class Wanted(NamedTuple):
    """The lowest torch that is to be supported, and where that is said."""

    version: str
    why: str


def parse(text: str) -> Version:
    """`"2.4.1+cpu"` → (2, 4, 1). Raises ValueError for text that does not start with a version."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    if match is None:
        raise ValueError(f"{text!r} is no version of torch, such as 2.4")
    return tuple(int(part) for part in match[1].split("."))


def resolve(settings: Settings, start: Path | None = None) -> Settings:
    """`settings` with `target_torch`, and where it comes from, filled in for the project around `start`."""
    if settings.target_torch:
        parse(settings.target_torch)
        return replace(settings, target_torch_from=settings.target_torch_from or settings.file or "the settings")
    wanted = find((start or Path.cwd()).absolute())
    return replace(settings, target_torch=wanted.version, target_torch_from=wanted.why)


@cache
def find(start: Path) -> Wanted:
    """The lowest torch that the requirements nearest to `start` (upwards, as far as the repository) allow; else the
    one installed here; else the newest known."""
    folder = start if start.is_dir() else start.parent
    for candidate in (folder, *folder.parents):
        for path in _requirement_files(candidate):
            lowest = _lowest(_requirements(path))
            if lowest is not None:
                return Wanted(lowest, str(path))
        if (candidate / ".git").exists():
            break
    version = installed()
    if version:
        return Wanted(version, "the torch installed here")
    return Wanted(NEWEST, "the newest torch that the rules know: neither settings, requirements nor installation say")


def installed() -> str:
    """The version of the torch in this environment, read from its files; empty where there is none."""
    from importlib.util import find_spec

    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return ""
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            text = Path(folder, "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        if match := re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text):
            return match[1]
    return ""


def applies(since: str, until: str, version: str) -> bool:
    """Whether `version` lies in [since, until); an empty bound, or no version, bounds nothing."""
    target = parse(version or NEWEST)
    return not (since and target < parse(since)) and not (until and target >= parse(until))


def _requirement_files(folder: Path) -> Iterator[Path]:
    """Files of `folder` that may name torch, the most binding first."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for pattern in (
        r"pyproject\.toml",
        r"setup\.cfg",
        r"setup\.py",
        r"requirements[\w.-]*\.(txt|in)",
        r"(conda[\w-]*|environment[\w-]*)\.ya?ml",
    ):
        yield from (folder / name for name in names if re.fullmatch(pattern, name))


def _requirements(path: Path) -> list[str]:
    """The requirements of a file as text; none for a file that cannot be read."""
    try:
        content = path.read_bytes()
        if b"torch" not in content:
            return []
        text = content.decode()
        if path.name == "pyproject.toml":
            import tomllib

            return list(_of_pyproject(tomllib.loads(text)))
    except (OSError, ValueError):
        return []  # another tool's file: what is wrong with it is not for us to say
    lines = [line.partition("#")[0] for line in text.splitlines()]
    return [line for line in lines if not line.lstrip().startswith("-r")]


def _of_pyproject(document: Mapping[str, Any]) -> Iterator[str]:
    project, poetry = document.get("project", {}), document.get("tool", {}).get("poetry", {})
    yield from _texts(project.get("dependencies"))
    for group in project.get("optional-dependencies", {}).values():
        yield from _texts(group)
    for group in document.get("dependency-groups", {}).values():
        yield from _texts(group)
    tables = [poetry, *poetry.get("group", {}).values()]
    for table in tables:
        wanted = table.get("dependencies", {}).get("torch", "")
        for item in wanted if isinstance(wanted, list) else [wanted]:
            yield f"torch {item.get('version', '') if isinstance(item, Mapping) else item}"


def _texts(items: Any) -> Iterable[str]:
    return [item for item in items if isinstance(item, str)] if isinstance(items, list) else []


def _lowest(requirements: Iterable[str]) -> str | None:
    """The lowest version that any of the requirements on torch allows; None if none sets a lower bound."""
    lowest: list[str] = []
    for text in requirements:
        for match in _REQUIREMENT.finditer(text):
            bounds = [version for _, version in _BOUND.findall(re.sub(r"(!=|<=|<)\s*[\w.*+]+", "", match["bounds"]))]
            if bounds:
                lowest.append(max(bounds, key=parse))
    return min(lowest, key=parse) if lowest else None
