"""`auditor check`: check source without running anything."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from auditor.cli.options import jobs_option, no_cache_option, shared
from auditor.cli.running import Progress, complaining, finish, fix_mode, nearest_settings, start_of

if TYPE_CHECKING:
    from auditor.report import Report


@click.command()
@click.argument("paths", nargs=-1)
@shared
@click.option("--stdin-filename", metavar="NAME", help="The name of the file read from standard input (path `-`).")
@jobs_option
@no_cache_option
@click.option("--force-exclude", is_flag=True, help="Leave out what the settings exclude even if it is named.")
@click.option("--add-noqa", is_flag=True, help="Silence what is found today by comments, and say how many were added.")
@click.option("--watch", "-w", is_flag=True, help="Check again whenever a file changes, until interrupted.")
def check(paths: tuple[str, ...], stdin_filename: str | None, watch: bool, **options: Any) -> None:
    """Check source files and folders (default: the current folder; `-`: standard input) without running anything."""
    if paths == ("-",):
        for option in ("changed_since", "add_noqa"):
            if options[option]:
                raise click.UsageError(f"--{option.replace('_', '-')} is about files; standard input is none")
        if watch:
            raise click.UsageError("--watch is about files; standard input is none")
        _check_stdin(stdin_filename or "<stdin>", options)
    elif watch:
        from auditor.cli.watch import rerun

        rerun(paths or (".",), partial(_check_paths, paths, options))
    else:
        _check_paths(paths, options)


def _check_stdin(name: str, options: dict[str, Any]) -> None:
    from auditor import pipeline

    nearest = nearest_settings(options)
    with complaining():
        report, fixed = pipeline.check_stdin(sys.stdin.buffer.read(), name, nearest.of(name), fix_mode(options))
        if options["fix"]:
            sys.stdout.buffer.write(fixed)
        finish(report, nearest.settings, options, to_stderr=options["fix"])


def _check_paths(paths: tuple[str, ...], options: dict[str, Any]) -> None:
    """One run; ends in SystemExit with its status."""
    from auditor import pipeline

    more = {"jobs": options["jobs"], "force_exclude": options["force_exclude"] or None}
    more["cache"] = False if options["no_cache"] else None
    nearest = nearest_settings(options, start=start_of(paths), **more)
    settings = nearest.settings
    with complaining():
        progress = Progress(options["quiet"])
        since = options["changed_since"]
        report = pipeline.check_paths(paths or (".",), settings, fix_mode(options), progress, since, nearest)
        progress.clear()
        if options["add_noqa"]:
            _silence(report)
        finish(report, settings, options)


def _silence(report: Report) -> None:
    """Turn the findings of the report into comments, as far as their lines can take one."""
    from auditor.fix.silence import silence

    found = [finding for finding in report.findings if not finding.code.startswith("SUP")]
    done, left, problems = silence(found)
    report.problems += problems
    report.silenced += done
    report.findings = [finding for finding in report.findings if finding not in done]
    files = len({finding.location.path for finding in done})
    click.echo(f"{len(done)} findings silenced by `# noqa` in {files} {'file' if files == 1 else 'files'}.", err=True)
    for finding in left:
        where = f"{finding.location.path}:{finding.location.row}"
        click.echo(f"{where}: no comment can stand on the lines of {finding.code}", err=True)
