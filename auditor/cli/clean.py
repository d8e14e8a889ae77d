"""`auditor clean`: forget what is kept between runs."""

from __future__ import annotations

import click

from auditor.cli.running import complaining


@click.command()
def clean() -> None:
    """Delete everything that is kept between runs: what files gave, and the index of the rules."""
    from auditor.loader import cache_folder
    from auditor.static import cache

    with complaining():
        try:
            deleted = cache.clean()
        except OSError as error:
            raise click.ClickException(f"{error.filename}: cannot be deleted: {error.strerror}") from error
    click.echo(f"{cache_folder()}: {len(deleted)} {'file' if len(deleted) == 1 else 'files'} deleted.")
