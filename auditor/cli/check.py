"""`auditor check`: check source without running anything."""

from __future__ import annotations

import sys
from typing import Any

import click

from auditor.cli.options import jobs_option, shared
from auditor.cli.running import Progress, complaining, finish, fix_mode, nearest_settings, start_of


@click.command()
@click.argument("paths", nargs=-1)
@shared
@click.option("--stdin-filename", metavar="NAME", help="The name of the file read from standard input (path `-`).")
@jobs_option
@click.option("--force-exclude", is_flag=True, help="Leave out what the settings exclude even if it is named.")
def check(
    paths: tuple[str, ...], stdin_filename: str | None, jobs: int | None, force_exclude: bool, **options: Any
) -> None:
    """Check source files and folders (default: the current folder; `-`: standard input) without running anything."""
    from auditor import pipeline

    nearest = nearest_settings(options, start=start_of(paths), jobs=jobs, force_exclude=force_exclude or None)
    settings, mode = nearest.settings, fix_mode(options)
    with complaining():
        if paths == ("-",):
            if options["changed_since"]:
                raise click.UsageError("--changed-since compares files; standard input is none")
            text, name = sys.stdin.buffer.read(), stdin_filename or "<stdin>"
            report, fixed = pipeline.check_stdin(text, name, nearest.of(name), mode)
            if options["fix"]:
                sys.stdout.buffer.write(fixed)
            finish(report, settings, options, to_stderr=options["fix"])
        else:
            progress = Progress(options["quiet"])
            report = pipeline.check_paths(paths or (".",), settings, mode, progress, options["changed_since"], nearest)
            progress.clear()
            finish(report, settings, options)
