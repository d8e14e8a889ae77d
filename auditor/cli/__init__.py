"""The command line: options in, a report out. One file per command; each is imported when it is called."""

from __future__ import annotations

import codecs
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
    codecs.register_error("auditor-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="auditor-plain")
    cli(prog_name="auditor")


# What a terminal that lacks a character is shown instead; a question mark for any other.
PLAIN = {
    **{"…": "...", "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "→": "->", "≥": ">=", "≤": "<=", "≈": "~"},
    **{"√": "sqrt", "²": "^2", "ε": "eps", "σ": "sigma", "Σ": "sum", "Π": "prod", "γ": "gamma", "β": "beta"},
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


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

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a command that does not exist."""
        if args and self.get_command(context, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.list_commands(context), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self.list_commands(context))}"
            context.fail(f"no such command {args[0]!r}; {hint}")
        return super().resolve_command(context, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="torch-auditor")
@click.pass_context
def cli(context: click.Context) -> None:
    """Find the silent mistakes in PyTorch models, fix them, and prove each fix."""
    if os.environ.get("NO_COLOR"):
        context.color = False
    elif os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        context.color = True
