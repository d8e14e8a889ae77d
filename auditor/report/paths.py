"""Paths as the machines that read reports expect them: from the top of the repository."""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def project_root() -> Path:
    """The folder that a CI system checks out to, else the top of the git repository, else the current folder."""
    for variable in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        folder = os.environ.get(variable)
        if folder and Path.cwd().is_relative_to(Path(folder).resolve()):
            return Path(folder).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def in_project(path: str) -> str:
    """`path` relative to the project's root, with `/`; absolute where it lies outside, unchanged where it is no file's
    name (`<stdin>`)."""
    if path.startswith("<"):
        return path
    absolute = Path(os.path.abspath(path))
    root = project_root()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()
