"""The command line: options in, a report out. Everything else is imported when a command needs it."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor import __version__

if TYPE_CHECKING:
    from auditor.report import Report
    from auditor.rule import Rule
    from auditor.settings import Settings

FORMATS = ("text", "json")
PATIENCE = 1.0  # seconds before a progress bar is worth showing
BAR = 24


def main() -> None:
    """Entry point. Exit status: 0 clean, 1 findings, 2 the tool could not do what was asked."""
    cli(prog_name="auditor")


def _list(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`--select A,B --select C` → (A, B, C)."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


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
    click.option("--output-format", type=click.Choice(FORMATS), default="text", help="How to print the findings."),
    click.option(
        "--fail-on",
        type=click.Choice(("error", "warning", "info")),
        help="The severity from which findings fail the run (default: warning).",
    ),
    click.option("--exit-zero", is_flag=True, help="Exit with 0 even if there are findings."),
    click.option("--statistics", is_flag=True, help="Count findings per rule instead of showing them."),
    click.option(
        "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
    ),
    click.option("--isolated", is_flag=True, help="Ignore all settings files."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="torch-auditor")
def cli() -> None:
    """Find the silent mistakes in PyTorch models, fix them, and prove each fix."""


@cli.command()
@click.argument("paths", nargs=-1)
@shared
@click.option("--stdin-filename", metavar="NAME", help="The name of the file read from standard input (path `-`).")
@click.option("--jobs", "-j", type=click.IntRange(min=0), help="Processes (0: one per processor).")
def check(paths: tuple[str, ...], stdin_filename: str | None, jobs: int | None, **options: Any) -> None:
    """Check source files and folders (default: the current folder; `-`: standard input) without running anything."""
    from auditor import pipeline

    settings = _settings(options, start=_start(paths), jobs=jobs)
    mode = _mode(options)
    with _complaining():
        if paths == ("-",):
            text = sys.stdin.buffer.read()
            report, fixed = pipeline.check_stdin(text, stdin_filename or "<stdin>", settings, mode)
            if options["fix"]:
                sys.stdout.buffer.write(fixed)
            _finish(report, settings, options, to_stderr=options["fix"])
        else:
            progress = _Progress()
            report = pipeline.check_paths(paths or (".",), settings, mode, progress)
            progress.clear()
            _finish(report, settings, options)


@cli.command()
@click.argument("targets", nargs=-1, required=True)
@shared
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SPEC",
    help="An input, such as 2x3x32x32, tokens:2x16:0-100 or mask=bool:2x16; repeat for several.",
)
@click.option("--device", help="cpu, cuda, cuda:1, mps (default: cpu).")
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float64", "bfloat16", "float16")),
    help="Number format (default: float32).",
)
@click.option("--seed", type=int, help="Seed of every random draw (default: 0).")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time limit for each target (default: 120).",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Memory limit of the child process (default: 8).",
)
@click.option(
    "--certificate",
    "certificate_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the certificates of the fixes to this file.",
)
@click.option("--verbose", "-v", is_flag=True, help="Say how each model was built, fed and captured.")
def audit(
    targets: tuple[str, ...], inputs: tuple[str, ...], certificate_file: Path | None, verbose: bool, **options: Any
) -> None:
    """Check files and audit the models in them by running them in a child process.

    TARGET: file.py, file.py::Name or package.module:Name, where Name is an nn.Module class, a function that returns a
    model, or a model.
    """
    from auditor import pipeline

    running = {name: options.pop(name) for name in ("device", "dtype", "seed", "timeout", "memory")}
    settings = _settings(options, start=_start(tuple(target.partition("::")[0] for target in targets)), **running)
    with _complaining():
        progress = _Progress()
        report = pipeline.audit_targets(targets, settings, _mode(options), inputs, progress)
        progress.clear()
        if certificate_file is not None:
            import json

            records = [certificate.to_json() for certificate in report.certificates]
            certificate_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        _finish(report, settings, options, verbose=verbose)


@cli.command()
@click.argument("code_or_name", required=False)
@click.option("--all", "everything", is_flag=True, help="Explain every rule.")
@click.option(
    "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
)
def rule(code_or_name: str | None, everything: bool, config_file: Path | None) -> None:
    """Explain a rule: what it finds, why it matters, how it is fixed and how the fix is proven."""
    from auditor.loader import find_rule
    from auditor.report.catalogue import explain

    rules = _rules(_settings({"config_file": config_file}))
    if everything:
        click.echo_via_pager("\n\n".join(explain(item) for item in rules) + "\n")
        return
    if not code_or_name:
        raise click.UsageError("name a rule (`auditor rule MOD001`), or pass --all")
    found = find_rule(rules, code_or_name)
    if found is None:
        from auditor.loader import choose

        with _complaining():
            choose(rules, (code_or_name,), ())
        raise click.UsageError(f"{code_or_name!r} stands for several rules: `auditor rules` lists them")
    click.echo(explain(found))


@cli.command()
@click.option("--output-format", type=click.Choice(FORMATS), default="text")
@click.option(
    "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
)
def rules(output_format: str, config_file: Path | None) -> None:
    """List all rules."""
    from auditor.report.catalogue import table

    click.echo(table(_rules(_settings({"config_file": config_file})), output_format))


@cli.command()
@click.option(
    "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
)
def config(config_file: Path | None) -> None:
    """Show the settings in force and where they come from."""
    from auditor.report.catalogue import settings_table

    click.echo(settings_table(_settings({"config_file": config_file})))


# Helpers ------------------------------------------------------------------------------------------------------------


def _start(paths: tuple[str, ...]) -> Path:
    first = Path(paths[0]) if paths and paths[0] != "-" else Path.cwd()
    return first if first.exists() else Path.cwd()


def _settings(options: dict[str, Any], start: Path | None = None, **more: Any) -> Settings:
    from auditor.finding import Severity
    from auditor.settings import Settings, load

    fail_on = options.get("fail_on")
    with _complaining():
        settings = Settings() if options.get("isolated") else load(start, options.get("config_file"))
        return settings.override(
            select=options.get("select"),
            extend_select=options.get("extend_select"),
            ignore=(*settings.ignore, *options["ignore"]) if options.get("ignore") else None,
            fail_on=Severity.parse(fail_on) if fail_on else None,
            **more,
        )


def _rules(settings: Settings) -> tuple[Rule, ...]:
    from auditor.loader import load_rules

    with _complaining():
        return load_rules(settings.rules)


def _mode(options: dict[str, Any]) -> Any:
    from auditor.pipeline import FixMode

    return FixMode(
        write=options["fix"],
        diff=options["diff"],
        unsafe=options["unsafe_fixes"],
        text_edits=options["output_format"] == "json",
    )


class _Progress:
    """A bar on standard error that says what is being done; only where a person is watching and waiting."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.shown = False

    def __call__(self, message: str) -> None:
        """Show `message`; one that ends in `(3 of 7)` moves the bar."""
        if not sys.stderr.isatty() or time.monotonic() - self.started < PATIENCE:
            return
        counted = re.search(r"\((\d+) of (\d+)\)$", message)
        share = int(counted[1]) / int(counted[2]) if counted else 0.0
        bar = "#" * round(BAR * share) + "-" * (BAR - round(BAR * share))
        width = shutil.get_terminal_size().columns - 1
        click.echo("\r\x1b[K" + f"[{bar}] {message}"[:width], err=True, nl=False)
        self.shown = True

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\x1b[K", err=True, nl=False)


class _complaining:
    """Turns the errors that are the user's to mend into one line and exit status 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from auditor.loader import RuleError

        if isinstance(error, (ValueError, RuleError)):
            raise click.ClickException(str(error)) from error


click.ClickException.exit_code = 2


def _finish(
    report: Report, settings: Settings, options: dict[str, Any], *, verbose: bool = False, to_stderr: bool = False
) -> None:
    for diff in report.diffs:
        click.echo(diff, nl=False)
    if options["output_format"] == "json":
        from auditor.report import json

        click.echo(json.render(report), err=to_stderr)
    else:
        from auditor.report import text

        for line in text.render(report, verbose=verbose, statistics=options["statistics"]):
            click.echo(line, err=to_stderr or (options["diff"] and bool(report.diffs)))
    code = report.exit_code(settings.fail_on)
    sys.exit(0 if code == 1 and options["exit_zero"] else code)
