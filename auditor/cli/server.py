"""`auditor server`: an LSP server for editors."""

from __future__ import annotations

import importlib.util

import click


@click.command()
@click.option("--stdio", is_flag=True, help="Speak on standard input and output; there is no other way.")
def server(stdio: bool) -> None:
    """Serve an editor: findings while you type, quick fixes, explanations. docs/editors.md says how to set it up."""
    if importlib.util.find_spec("pygls") is None:
        raise click.ClickException("the server needs pygls: pip install 'torch-auditor[server]'")
    from auditor.server.app import start

    start()
