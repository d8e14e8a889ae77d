"""The command line: options in, a report out. One file per command; each is imported when it is called."""

from __future__ import annotations

import io
import os
import sys

import click

from auditor import __version__

COMMANDS = (
    "audit",
    "baseline",
    "check",
    "clean",
    "config",
    "new-rule",
    "rule",
    "rules",
    "server",
    "test-rules",
    "verify",
)


def main() -> None:
    """Entry point. Exit status: 0 clean, 1 findings, 2 the tool could not do what was asked."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets a question mark
            stream.reconfigure(errors="replace")
    cli(prog_name="auditor")


click.ClickException.exit_code = 2


class Commands(click.Group):
    """The command `some-name` is the function `some_name` of `auditor/cli/some_name.py`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        from importlib import import_module

        function = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"auditor.cli.{function}"), function)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="torch-auditor")
@click.pass_context
def cli(context: click.Context) -> None:
    """Find the silent mistakes in PyTorch models, fix them, and prove each fix."""
    if os.environ.get("NO_COLOR"):
        context.color = False
    elif os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        context.color = True
