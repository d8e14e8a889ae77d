"""The command line: options in, a report out. Everything else is imported when a command needs it."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor import __version__
from auditor.report.formats import ENDINGS, FORMATS

if TYPE_CHECKING:
    from auditor.report import Report
    from auditor.rule import Rule
    from auditor.settings import Settings

PATIENCE = 1.0  # seconds before a progress bar is worth showing
BAR = 24
BASELINE = ".auditor-baseline.json"


def main() -> None:
    """Entry point. Exit status: 0 clean, 1 findings, 2 the tool could not do what was asked."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets a question mark
            stream.reconfigure(errors="replace")
    cli(prog_name="auditor")


def _list(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`--select A,B --select C` → (A, B, C)."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _endings(context: click.Context, parameter: click.Parameter, files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        if file.suffix not in ENDINGS:
            raise click.BadParameter(f"{file}: its format is told by its ending: {', '.join(ENDINGS)}")
    return files


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
    click.option(
        "--output-format", type=click.Choice(tuple(FORMATS)), default="text", help="How to print the findings."
    ),
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
    click.option("--exit-zero", is_flag=True, help="Exit with 0 even if there are findings."),
    click.option("--exit-non-zero-on-fix", is_flag=True, help="Exit with 1 if a fix was written."),
    click.option("--statistics", is_flag=True, help="Count findings per rule instead of showing them."),
    click.option(
        "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
    ),
    click.option("--isolated", is_flag=True, help="Ignore all settings files."),
    click.option("--quiet", "-q", is_flag=True, help="Print what is wrong and nothing else."),
    click.option("--verbose", "-v", is_flag=True, help="Print all that is known, what is not shown included."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="torch-auditor")
@click.pass_context
def cli(context: click.Context) -> None:
    """Find the silent mistakes in PyTorch models, fix them, and prove each fix."""
    if os.environ.get("NO_COLOR"):
        context.color = False
    elif os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        context.color = True


@cli.command()
@click.argument("paths", nargs=-1)
@shared
@click.option("--stdin-filename", metavar="NAME", help="The name of the file read from standard input (path `-`).")
@click.option("--jobs", "-j", type=click.IntRange(min=0), help="Processes (0: one per processor).")
@click.option("--force-exclude", is_flag=True, help="Leave out what the settings exclude even if it is named.")
def check(
    paths: tuple[str, ...], stdin_filename: str | None, jobs: int | None, force_exclude: bool, **options: Any
) -> None:
    """Check source files and folders (default: the current folder; `-`: standard input) without running anything."""
    from auditor import pipeline

    settings = _settings(options, start=_start(paths), jobs=jobs, force_exclude=force_exclude or None)
    mode = _mode(options)
    with _complaining():
        if paths == ("-",):
            if options["changed_since"]:
                raise click.UsageError("--changed-since compares files; standard input is none")
            text = sys.stdin.buffer.read()
            report, fixed = pipeline.check_stdin(text, stdin_filename or "<stdin>", settings, mode)
            if options["fix"]:
                sys.stdout.buffer.write(fixed)
            _finish(report, settings, options, to_stderr=options["fix"])
        else:
            progress = _Progress(options["quiet"])
            report = pipeline.check_paths(paths or (".",), settings, mode, progress, options["changed_since"])
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
def audit(targets: tuple[str, ...], inputs: tuple[str, ...], certificate_file: Path | None, **options: Any) -> None:
    """Check files and audit the models in them by running them in a child process.

    TARGET: file.py, file.py::Name or package.module:Name, where Name is an nn.Module class, a function that returns a
    model, or a model.
    """
    from auditor import pipeline

    running = {name: options.pop(name) for name in ("device", "dtype", "seed", "timeout", "memory")}
    settings = _settings(options, start=_start(tuple(target.partition("::")[0] for target in targets)), **running)
    with _complaining():
        progress = _Progress(options["quiet"])
        report = pipeline.audit_targets(targets, settings, _mode(options), inputs, progress, options["changed_since"])
        progress.clear()
        if certificate_file is not None:
            import json

            records = [certificate.to_json() for certificate in report.certificates]
            certificate_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        _finish(report, settings, options)


@cli.command()
@click.argument("paths", nargs=-1)
@click.option("--audit", "run", is_flag=True, help="Run the models too: PATHS are targets, as of `auditor audit`.")
@click.option("--prune", is_flag=True, help="Only forget findings that are gone; record no new ones.")
@click.option("--baseline", metavar="FILE", help=f"The baseline's file (default: {BASELINE}).")
@click.option(
    "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Read settings from this file."
)
@click.option("--jobs", "-j", type=click.IntRange(min=0), help="Processes (0: one per processor).")
def baseline(
    paths: tuple[str, ...],
    run: bool,
    prune: bool,
    baseline: str | None,
    config_file: Path | None,
    jobs: int | None,
) -> None:
    """Record today's findings in a file: from then on, `check` and `audit` show only new ones.

    What the file has of other files than PATHS (default: the current folder) stays in it.
    """
    from auditor import baseline as records
    from auditor import pipeline

    if run and not paths:
        raise click.UsageError("name what to audit: `auditor baseline --audit model.py`")
    settings = _settings({"config_file": config_file}, start=_start(paths), jobs=jobs)
    file = baseline or settings.baseline or _default_baseline(settings)
    settings = replace(settings, baseline=file if prune else "")
    with _complaining():
        progress = _Progress()
        if run:
            report = pipeline.audit_targets(paths, settings, progress=progress)
        else:
            report = pipeline.check_paths(paths or (".",), settings, progress=progress)
        progress.clear()
        entries = records.prune(report, file) if prune else records.record(report, file)
    from auditor.report.text import problem_lines

    for problem in report.problems:
        for line in problem_lines(problem):
            click.echo(line, err=True)
    gone = f"; {len(report.vanished)} forgotten" if prune else ""
    click.echo(f"{file}: {len(entries)} {'finding' if len(entries) == 1 else 'findings'} recorded{gone}.")
    sys.exit(2 if report.problems else 0)


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
@click.option("--output-format", type=click.Choice(("text", "json")), default="text")
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

    if options.get("statistics") and options["output_format"] not in ("text", "concise"):
        raise click.UsageError(f"--statistics counts in text; it has no form in {options['output_format']}")
    if options.get("baseline") and options.get("no_baseline"):
        raise click.UsageError("--baseline and --no-baseline contradict each other")
    fail_on = options.get("fail_on")
    with _complaining():
        settings = Settings() if options.get("isolated") else load(start, options.get("config_file"))
        settings = settings.override(
            select=options.get("select"),
            extend_select=options.get("extend_select"),
            ignore=(*settings.ignore, *options["ignore"]) if options.get("ignore") else None,
            fail_on=Severity.parse(fail_on) if fail_on else None,
            baseline=options.get("baseline"),
            **more,
        )
    return replace(settings, baseline=_baseline_file(settings, options))


def _baseline_file(settings: Settings, options: dict[str, Any]) -> str:
    """The baseline to hold findings against; empty for none."""
    if options.get("no_baseline"):
        return ""
    if settings.baseline or options.get("isolated"):
        return _shown(settings.baseline)
    default = _default_baseline(settings)
    return default if os.path.exists(default) else ""


def _default_baseline(settings: Settings) -> str:
    """Beside the settings file, else in the current folder."""
    return _shown(str(settings.root / BASELINE))


def _shown(path: str) -> str:
    from auditor.static.files import display

    return path and display(path)


def _rules(settings: Settings) -> tuple[Rule, ...]:
    from auditor.loader import load_rules

    with _complaining():
        return load_rules(settings.rules)


def _mode(options: dict[str, Any]) -> Any:
    from auditor.pipeline import FixMode

    formats = [options["output_format"], *(ENDINGS[file.suffix] for file in options["reports"])]
    return FixMode(
        write=options["fix"],
        diff=options["diff"],
        unsafe=options["unsafe_fixes"],
        text_edits=any(FORMATS[name].text_edits for name in formats),
    )


def _terminal_width() -> int:
    import shutil  # pulls in the compression libraries

    return shutil.get_terminal_size().columns


class _Progress:
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


class _complaining:
    """Turns the errors that are the user's to mend into one line and exit status 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from auditor.loader import RuleError

        if isinstance(error, (ValueError, RuleError)):
            raise click.ClickException(str(error)) from error


click.ClickException.exit_code = 2


def _finish(report: Report, settings: Settings, options: dict[str, Any], *, to_stderr: bool = False) -> None:
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
        for line in render(report, name, style):
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
