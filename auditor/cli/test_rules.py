"""`auditor test-rules`: hold your own rules against their fixtures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.cli.options import config_option
from auditor.cli.running import complaining, settings_of

if TYPE_CHECKING:
    from auditor.rule import Rule


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--verbose", "-v", is_flag=True, help="Name every fixture.")
@config_option
def test_rules(folders: tuple[Path, ...], verbose: bool, config_file: Path | None) -> None:
    """Hold rules against their fixtures: FOLDERS of rules (default: those of the settings).

    The fixtures of FOLDER/some_rule.py are the files bad*.py, good*.py and fixed*.py in FOLDER/fixtures/some_rule.
    """
    from auditor.loader import load

    settings = settings_of({"config_file": config_file}, start=folders[0] if folders else None)
    names = tuple(map(str, folders)) or settings.rules
    if not names:
        raise click.UsageError("name a folder of rules, or set `rules` in the settings; `auditor new-rule` begins one")
    with complaining():
        loaded = load(tuple(dict.fromkeys((*settings.rules, *names))))
    problems, outcomes = 0, []
    for folder in (Path(name).absolute() for name in names):
        for problem in loaded.problems:
            if Path(problem.path).absolute().is_relative_to(folder):
                click.echo(f"{problem.path}{f':{problem.row}' if problem.row else ''}: {problem.message}")
                problems += 1
        for rule in loaded.rules:
            if Path(rule.path).is_relative_to(folder):
                outcomes.append(_test(rule.loaded(), loaded.rules, verbose))
    failed, untested = outcomes.count(1), outcomes.count(2)
    parts = [
        f"{len(outcomes)} {'rule' if len(outcomes) == 1 else 'rules'} tested",
        f"{failed} failed" if failed else "",
    ]
    parts.append(f"{untested} not wholly: no torch (pip install 'torch-auditor[torch]')" if untested else "")
    click.echo(", ".join(part for part in parts if part) + ".")
    sys.exit(2 if problems or untested or not outcomes else 1 if failed else 0)


def _test(rule: Rule, rules: tuple[Rule, ...], verbose: bool) -> int:
    """0: all is well, 1: something is wrong and was said, 2: not everything could be tested."""
    from auditor.testing import enough_fixtures, fixtures_of, has_torch, trials

    fixtures = fixtures_of(rule, rules)
    complaints: list[str] = []
    skipped = 0
    try:
        complaints += enough_fixtures(rule, fixtures)
    except ValueError as error:
        complaints.append(str(error))
    for trial in trials(fixtures):
        if trial.runs and not has_torch():
            skipped += 1
            continue
        wrong = trial.complaints()
        complaints += [complaint for complaint in wrong if complaint not in complaints]
        if verbose:
            mark = click.style("failed", fg="red") if wrong else click.style("passed", fg="green")
            click.echo(f"{trial.fixture} {trial.check.__name__.replace('_', ' ')}: {mark}")
    verdict = click.style("failed", fg="red") if complaints else click.style("passed", fg="green")
    count = f"{len(fixtures)} {'fixture' if len(fixtures) == 1 else 'fixtures'}"
    click.echo(f"{rule.code} {rule.name}: {count}, {verdict}" + (f", {skipped} checks need torch" if skipped else ""))
    for complaint in complaints:
        click.echo("   " + complaint.replace("\n", "\n   "))
    return 1 if complaints else 2 if skipped else 0
