"""`auditor check --watch`: the same run again whenever a file changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from auditor.settings import FILES
from auditor.static.files import SUFFIXES


def rerun(paths: Sequence[str], run: Callable[[], None]) -> None:
    """Call `run` now, and after every change of Python, notebook or settings files below `paths`, until interrupted.

    Raises click.ClickException where the library that watches files is not installed.
    """
    try:
        from watchfiles import watch
    except ImportError:
        raise click.ClickException(
            "--watch needs the library watchfiles: `pip install watchfiles`, or `pip install 'torch-auditor[watch]'`"
        ) from None
    there = [path for path in paths if Path(path).exists()]
    _once(run)
    if not there:
        raise click.ClickException(f"there is nothing to watch: no such file or folder: {', '.join(paths)}")
    for _ in watch(*there, watch_filter=lambda _, path: is_ours(path), raise_interrupt=False):
        _once(run)


def is_ours(path: str) -> bool:
    """Whether a change of this file may change what is found; what is written beside a file to replace it does not."""
    name = Path(path).name
    return (name.endswith(SUFFIXES) and not name.startswith(".")) or name in FILES


def _once(run: Callable[[], None]) -> None:
    """One run on a fresh screen; a mistake in the settings ends the run, not the watching."""
    if sys.stdout.isatty():
        click.clear()
    try:
        run()
    except SystemExit:
        pass
    except click.ClickException as error:
        error.show()
    click.echo(f"[{time.strftime('%H:%M:%S')}] watching for changes; Ctrl-C ends it", err=True)
