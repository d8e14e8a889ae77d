"""What the commands share: settings for a run, progress while it lasts, its report at the end."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.cli.options import BASELINE
from auditor.report.formats import ENDINGS, FORMATS, Format

if TYPE_CHECKING:
    from auditor.report import Report
    from auditor.rule import Rule
    from auditor.settings import Nearest, Settings

STARTED = time.monotonic()
PATIENCE = 1.0  # seconds before a progress bar is worth showing
BAR = 24


def start_of(paths: tuple[str, ...]) -> Path:
    """The place whose settings hold for a run on `paths`: what they have in common, whatever their order."""
    absolute = {os.path.abspath(path) for path in paths if path != "-" and os.path.exists(path)}
    try:
        return Path(os.path.commonpath(absolute)) if absolute else Path.cwd()
    except ValueError:  # on several drives
        return Path.cwd()


def settings_of(options: dict[str, Any], start: Path | None = None, **more: Any) -> Settings:
    """The settings of a run: those in force for `start`, overridden by the command line."""
    return nearest_settings(options, start, **more).settings


def nearest_settings(options: dict[str, Any], start: Path | None = None, **more: Any) -> Nearest:
    """The settings of a run and of each of its files, overridden by the command line."""
    from auditor.settings import Nearest, Settings, load
    from auditor.torch_version import resolve

    if options.get("statistics") and options["output_format"] not in ("text", "concise"):
        raise click.UsageError(f"--statistics counts in text; it has no form in {options['output_format']}")
    if options.get("baseline") and options.get("no_baseline"):
        raise click.UsageError("--baseline and --no-baseline contradict each other")

    def override(settings: Settings) -> Settings:
        return resolve(_overridden(settings, options, more), settings.root if settings.file else start)

    with complaining():
        settings = override(Settings() if options.get("isolated") else load(start, options.get("config_file")))
    settings = replace(settings, baseline=_baseline_file(settings, options))
    return Nearest(settings, None if options.get("isolated") or options.get("config_file") else override)


def _overridden(settings: Settings, options: dict[str, Any], more: dict[str, Any]) -> Settings:
    from auditor.finding import Severity

    fail_on = options.get("fail_on")
    return settings.override(
        select=options.get("select"),
        extend_select=options.get("extend_select"),
        ignore=(*settings.ignore, *options["ignore"]) if options.get("ignore") else None,
        fail_on=Severity.parse(fail_on) if fail_on else None,
        baseline=options.get("baseline"),
        target_torch=options.get("target_torch"),
        target_torch_from="--target-torch" if options.get("target_torch") else None,
        **more,
    )


def _baseline_file(settings: Settings, options: dict[str, Any]) -> str:
    """The baseline to hold findings against; empty for none."""
    if options.get("no_baseline"):
        return ""
    if settings.baseline or options.get("isolated"):
        return _shown(settings.baseline)
    default = default_baseline(settings)
    return default if os.path.exists(default) else ""


def default_baseline(settings: Settings) -> str:
    """Beside the settings file, else in the current folder."""
    return _shown(str(settings.root / BASELINE))


def _shown(path: str) -> str:
    from auditor.static.files import display

    return path and display(path)


def rules_of(settings: Settings) -> tuple[Rule, ...]:
    """All rules; what is wrong with the user's own is said on standard error."""
    from auditor.loader import load_rules
    from auditor.static.check import rule_problems

    with complaining():
        for problem in rule_problems(settings):
            click.echo(f"{problem.path}{f':{problem.row}' if problem.row else ''}: {problem.message}", err=True)
        return load_rules(settings.rules)


def fix_mode(options: dict[str, Any]) -> Any:
    from auditor.pipeline import FixMode

    return FixMode(
        write=options["fix"],
        diff=options["diff"],
        unsafe=options["unsafe_fixes"],
        text_edits=any(wanted.text_edits for wanted in formats_of(options)),
    )


def formats_of(options: dict[str, Any]) -> list[Format]:
    """Every format in which the run's report is written."""
    names = [options["output_format"], *(ENDINGS[file.suffix] for file in options["reports"])]
    return [FORMATS[name] for name in names]


def _terminal_width() -> int:
    import shutil  # pulls in the compression libraries

    return shutil.get_terminal_size().columns


class Progress:
    """A bar on standard error that says what is being done; only where a person is watching and waiting."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = time.monotonic()
        self.shown = False

    def __call__(self, message: str) -> None:
        """Show `message`; one that ends in `(3 of 7)` moves the bar."""
        if self.quiet or not sys.stderr.isatty() or time.monotonic() - self.started < PATIENCE:
            return
        counted = re.search(r"\((\d+) of (\d+)\)$", message)
        share = int(counted[1]) / int(counted[2]) if counted else 0.0
        bar = "#" * round(BAR * share) + "-" * (BAR - round(BAR * share))
        width = _terminal_width() - 1
        click.echo("\r\x1b[K" + f"[{bar}] {message}"[:width], err=True, nl=False)
        self.shown = True

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\x1b[K", err=True, nl=False)


class complaining:
    """Turns the errors that are the user's to mend into one line and exit status 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from auditor.loader import RuleError

        if isinstance(error, (ValueError, RuleError)):
            raise click.ClickException(str(error)) from error


def finish(report: Report, settings: Settings, options: dict[str, Any], *, to_stderr: bool = False) -> None:
    from auditor.report.formats import Style, render

    for diff in report.diffs:
        click.echo(diff, nl=False)
    name, file = options["output_format"], options["output_file"]
    on_screen = file is None and sys.stdout.isatty()
    style = Style(
        verbose=options["verbose"],
        quiet=options["quiet"],
        statistics=options["statistics"],
        width=_terminal_width() if on_screen else None,
    )
    if file is None:
        to_stderr = to_stderr or (name == "text" and options["diff"] and bool(report.diffs))
        lines = list(render(report, name, style))
        if on_screen and lines and name in ("text", "concise") and not style.quiet:
            lines[-1] += click.style(f" {time.monotonic() - STARTED:.1f} s", dim=True)
        for line in lines:
            click.echo(line, err=to_stderr)
    else:
        _write(file, render(report, name, style))
    for extra in options["reports"]:
        _write(extra, render(report, ENDINGS[extra.suffix], replace(style, width=None, statistics=False)))
    code = report.exit_code(settings.fail_on)
    if options["exit_non_zero_on_fix"] and report.fixed:
        code = max(code, 1)
    sys.exit(0 if code == 1 and options["exit_zero"] else code)


def _write(file: Path, lines: Iterator[str]) -> None:
    text = "".join(click.unstyle(line) + "\n" for line in lines)
    try:
        file.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise click.ClickException(f"{file}: the report cannot be written: {error.strerror}") from error
