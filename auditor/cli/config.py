"""`auditor config`: show the settings."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.cli.options import config_option
from auditor.cli.running import settings_of


@click.command()
@config_option
def config(config_file: Path | None) -> None:
    """Show the settings in force and where they come from."""
    from auditor.report.catalogue import settings_table

    click.echo(settings_table(settings_of({"config_file": config_file})))
