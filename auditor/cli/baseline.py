"""`auditor baseline`: record today's findings."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from auditor.cli.options import BASELINE, config_option, jobs_option
from auditor.cli.running import Progress, complaining, default_baseline, nearest_settings, start_of


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--audit", "run", is_flag=True, help="Run the models too: PATHS are targets, as of `auditor audit`.")
@click.option("--prune", is_flag=True, help="Only forget findings that are gone; record no new ones.")
@click.option("--baseline", metavar="FILE", help=f"The baseline's file (default: {BASELINE}).")
@config_option
@jobs_option
def baseline(
    paths: tuple[str, ...],
    run: bool,
    prune: bool,
    baseline: str | None,
    config_file: Path | None,
    jobs: int | None,
) -> None:
    """Record today's findings in a file: from then on, `check` and `audit` show only new ones.

    What the file has of other files than PATHS (default: the current folder) stays in it.
    """
    from auditor import baseline as records
    from auditor import pipeline

    if run and not paths:
        raise click.UsageError("name what to audit: `auditor baseline --audit model.py`")
    nearest = nearest_settings({"config_file": config_file}, start=start_of(paths), jobs=jobs)
    settings = nearest.settings
    file = baseline or settings.baseline or default_baseline(settings)
    settings = replace(settings, baseline=file if prune else "")
    with complaining():
        progress = Progress()
        if run:
            report = pipeline.audit_targets(paths, settings, progress=progress, nearest=nearest)
        else:
            report = pipeline.check_paths(paths or (".",), settings, progress=progress, nearest=nearest)
        progress.clear()
        entries = records.prune(report, file) if prune else records.record(report, file)
    from auditor.report.text import problem_lines

    for problem in report.problems:
        for line in problem_lines(problem):
            click.echo(line, err=True)
    gone = f"; {len(report.vanished)} forgotten" if prune else ""
    click.echo(f"{file}: {len(entries)} {'finding' if len(entries) == 1 else 'findings'} recorded{gone}.")
    sys.exit(2 if report.problems else 0)
