"""`auditor rules`: list the rules."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.cli.options import config_option
from auditor.cli.running import rules_of, settings_of


@click.command()
@click.option("--output-format", type=click.Choice(("text", "json")), default="text")
@config_option
def rules(output_format: str, config_file: Path | None) -> None:
    """List all rules."""
    from auditor.report.catalogue import table

    click.echo(table(rules_of(settings_of({"config_file": config_file})), output_format))
