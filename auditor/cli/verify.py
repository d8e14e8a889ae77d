"""`auditor verify`: runs the proofs of certificates again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.cli.running import Progress, complaining, settings_of, start_of

if TYPE_CHECKING:
    from auditor.fix.verify import Verification


@click.command()
@click.argument("certificate_files", metavar="CERTIFICATE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Time limit for each proof, in seconds.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), help="Memory limit of the child, in GiB.")
@click.option("--output-format", type=click.Choice(("text", "json")), default="text", help="How to print the results.")
@click.option("--quiet", "-q", is_flag=True, help="Print what is wrong and nothing else.")
def verify(
    certificate_files: tuple[Path, ...], timeout: float | None, memory: float | None, output_format: str, quiet: bool
) -> None:
    """Run the proofs of certificates again, each on its device, with its inputs, seed and number format.

    CERTIFICATE: a file that `auditor audit --fix --certificate` wrote. Exit status: 0 all verdicts stand, 1 a claim
    turns out otherwise, 2 something could not be checked: a file that has changed since, a device that is not there.
    """
    from auditor.dynamic.worker import Worker
    from auditor.fix.verify import read
    from auditor.fix.verify import verify as check
    from auditor.report.text import problem_lines

    with complaining():
        certificates = [certificate for file in certificate_files for certificate in read(file)]
        settings = settings_of({}, start=start_of(tuple(certificate.path for certificate in certificates)))
        settings = settings.override(timeout=timeout, memory=memory)
        progress = Progress(quiet)
        with Worker(timeout=settings.timeout, memory=settings.memory, progress=progress) as worker:
            done, problems = check(certificates, settings, worker.request)
        progress.clear()
    wrong = [item for item in done if not item.confirmed]
    if output_format == "json":
        click.echo(json.dumps([item.to_json() for item in done], indent=2))
    else:
        for item in wrong if quiet else done:
            _show(item)
        if not quiet:
            click.echo(f"{len(done) - len(wrong)} of {len(certificates)} certificates confirmed.")
    for problem in problems:
        for line in problem_lines(problem):
            click.echo(line, err=True)
    sys.exit(2 if problems else 1 if wrong else 0)


def _show(item: Verification) -> None:
    one = item.certificate
    mark = "confirmed" if item.confirmed else f"not confirmed: {item.reason or item.verdict}"
    click.echo(f"{one.path}:{one.row}: {one.code} {one.title} ({one.target}, {one.device}, {one.dtype}): {mark}")
