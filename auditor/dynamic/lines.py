"""Which line of the user's code is running: the frames of torch, of installed packages and of ours are passed over."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sysconfig
import types
from pathlib import Path

from auditor.finding import Location
from auditor.loader import builtin_folder

AUDITOR = str(Path(__file__).parent.parent) + os.sep
RULES = str(builtin_folder()) + os.sep
STANDARD_LIBRARY = str(Path(sysconfig.get_path("stdlib"))) + os.sep


@functools.cache
def torch_folder() -> str:
    """Where torch is installed (it need not be in site-packages); it is found, not imported."""
    spec = importlib.util.find_spec("torch")
    return str(Path(spec.origin).parent) + os.sep if spec is not None and spec.origin else "<no torch>"


@functools.cache
def is_user_file(filename: str) -> bool:
    """Whether code of this file is the user's: neither torch's, nor ours, nor installed, nor made up (`<string>`)."""
    if filename.startswith(("<", AUDITOR, RULES, torch_folder())):
        return False
    return not _installed(filename) and not filename.startswith(STANDARD_LIBRARY)


def _installed(filename: str) -> bool:
    return "site-packages" in filename or "dist-packages" in filename


@functools.lru_cache(maxsize=65536)
def _instruction_location(code: types.CodeType, instruction: int) -> Location:
    row, end_row, column, end_column = next(itertools.islice(code.co_positions(), instruction // 2, None))
    if row is None:
        return Location(code.co_filename)
    return Location(code.co_filename, row, (column or 0) + 1, end_row or row, (end_column or column or 0) + 1)


def frame_location(frame: types.FrameType) -> Location:
    """The range of the expression that `frame` is evaluating: the call, when a callee is running."""
    return _instruction_location(frame.f_code, frame.f_lasti)


def user_location(frame: types.FrameType | None, path: str = "") -> Location | None:
    """The innermost line of the user's code on the stack from `frame` outwards; `path` counts as the user's.

    When all of it is installed code, the innermost line outside torch; None if there is none.
    """
    fallback: types.FrameType | None = None
    while frame is not None:
        filename = frame.f_code.co_filename
        if frame.f_code.co_name == "construct" and filename.startswith(AUDITOR):
            break  # beyond is whoever asked for the model
        if filename == path or is_user_file(filename):
            return frame_location(frame)
        if fallback is None and _installed(filename) and not filename.startswith((torch_folder(), AUDITOR)):
            fallback = frame
        frame = frame.f_back
    return frame_location(fallback) if fallback is not None else None
