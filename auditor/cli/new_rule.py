"""`auditor new-rule`: begin a rule of your own."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.cli.options import config_option
from auditor.cli.running import complaining, settings_of


@click.command()
@click.argument("name")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="The folder of your rules.")
@click.option("--code", help="Three capital letters and three digits (default: the first USRnnn that is free).")
@config_option
def new_rule(name: str, folder: Path | None, code: str | None, config_file: Path | None) -> None:
    """Write a rule called NAME, such as print-in-forward, with fixtures: an example that works, to be made your own.

    It goes to the first folder of `rules` in the settings, else to `auditor_rules`.
    """
    from auditor.loader import load
    from auditor.scaffold import write
    from auditor.static.files import display

    settings = settings_of({"config_file": config_file}, start=folder if folder and folder.exists() else None)
    place = folder or Path(settings.rules[0] if settings.rules else "auditor_rules")
    extra = (*settings.rules, str(place)) if place.is_dir() else settings.rules
    with complaining():
        files = write(name, place, code, load(extra).rules)
    for file in files:
        click.echo(display(str(file)))
    shown = display(str(place))
    if str(place.absolute()) not in [str(Path(known).absolute()) for known in settings.rules]:
        click.echo(f'\nAdd `rules = ["{shown}"]` to [tool.auditor] in pyproject.toml, so that it is applied.')
    click.echo(f"\nIt works as it is: `auditor test-rules {shown}`. Now make it find what you are after.")
