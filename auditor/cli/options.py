"""The options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from auditor.report.formats import ENDINGS, FORMATS

BASELINE = ".auditor-baseline.json"


def _list(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`--select A,B --select C` → (A, B, C)."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _endings(context: click.Context, parameter: click.Parameter, files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        if file.suffix not in ENDINGS:
            raise click.BadParameter(f"{file}: its format is told by its ending: {', '.join(ENDINGS)}")
    return files


class Choice(click.Choice[str]):
    """A choice that says which of its words was probably meant."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        from difflib import get_close_matches

        close = get_close_matches(str(value), [str(choice) for choice in self.choices], 1)
        hint = f"did you mean {close[0]!r}?" if close else f"it is one of {', '.join(map(str, self.choices))}"
        return f"{value!r} is not known; {hint}"


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


config_option = click.option(
    "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
)
no_cache_option = click.option("--no-cache", is_flag=True, help="Check every file anew; keep nothing between runs.")
jobs_option = click.option("--jobs", "-j", type=click.IntRange(min=0), help="Processes (0: one per processor).")
shared = _options(
    click.option(
        "--select",
        multiple=True,
        callback=_list,
        metavar="RULES",
        help="Only these rules (codes, beginnings of codes, names, ALL).",
    ),
    click.option("--extend-select", multiple=True, callback=_list, metavar="RULES", help="These rules as well."),
    click.option("--ignore", multiple=True, callback=_list, metavar="RULES", help="Not these rules."),
    click.option("--fix", is_flag=True, help="Write the fixes that are safe."),
    click.option("--unsafe-fixes", is_flag=True, help="Also make fixes that change what the model computes."),
    click.option("--diff", is_flag=True, help="Show the fixes as a diff, write nothing."),
    click.option("--output-format", type=Choice(tuple(FORMATS)), default="text", help="How to print the findings."),
    click.option(
        "--output-file",
        "-o",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the report to this file instead of standard output.",
    ),
    click.option(
        "--report",
        "reports",
        multiple=True,
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_endings,
        help=f"Write a report to this file as well, in the format of its ending: {', '.join(ENDINGS)}.",
    ),
    click.option(
        "--baseline",
        metavar="FILE",
        help=f"Show only findings that this file does not have (default: {BASELINE}, if there is one).",
    ),
    click.option("--no-baseline", is_flag=True, help="Show the findings that the baseline has, too."),
    click.option(
        "--changed-since",
        metavar="REF",
        default="",
        help="Show only findings on lines changed since the git revision REF left the current branch.",
    ),
    click.option(
        "--fail-on",
        type=click.Choice(("error", "warning", "info")),
        help="The severity from which findings fail the run (default: warning).",
    ),
    click.option("--target-torch", metavar="VERSION", help="The lowest torch that the code is to run with."),
    click.option("--exit-zero", is_flag=True, help="Exit with 0 even if there are findings."),
    click.option("--exit-non-zero-on-fix", is_flag=True, help="Exit with 1 if a fix was written."),
    click.option("--statistics", is_flag=True, help="Count findings per rule instead of showing them."),
    config_option,
    click.option("--isolated", is_flag=True, help="Ignore all settings files."),
    click.option("--quiet", "-q", is_flag=True, help="Print what is wrong and nothing else."),
    click.option("--verbose", "-v", is_flag=True, help="Print all that is known, what is not shown included."),
)
