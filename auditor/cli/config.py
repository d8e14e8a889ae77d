"""`auditor config`: show the settings."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from auditor.cli.options import config_option
from auditor.cli.running import complaining, nearest_settings, start_of


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--show-settings", is_flag=True, help="Show the settings in force (this is the default).")
@click.option("--show-files", is_flag=True, help="Show which files `auditor check` would read.")
@click.option("--schema", is_flag=True, help="Show the JSON schema of the settings.")
@config_option
def config(
    paths: tuple[str, ...], show_settings: bool, show_files: bool, schema: bool, config_file: Path | None
) -> None:
    """Show the settings in force for PATHS (default: the current folder) and where they come from."""
    if schema:
        from auditor.schema import FILE

        click.echo(FILE.read_text(encoding="utf-8"), nl=False)
        return
    nearest = nearest_settings({"config_file": config_file}, start_of(paths))
    if show_settings or not show_files:
        from auditor.report.catalogue import settings_table

        click.echo(settings_table(nearest.settings))
    if show_files:
        from auditor.static.files import discover

        with complaining():
            found, problems = discover(paths or (".",), nearest)
        for path in found:
            click.echo(path)
        for problem in problems:
            click.echo(f"{problem.path}: {problem.message}", err=True)
        sys.exit(2 if problems else 0)
