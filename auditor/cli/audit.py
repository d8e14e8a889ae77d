"""`auditor audit`: check source, and run the models in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from auditor.cli.options import shared
from auditor.cli.running import Progress, complaining, finish, fix_mode, formats_of, nearest_settings, start_of


@click.command()
@click.argument("targets", nargs=-1, required=True)
@shared
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SPEC",
    help="An input, such as 2x3x32x32, tokens:2x16:0-100 or mask=bool:2x16; repeat for several.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="The batch size it is trained with, on one device: given to inferred inputs, and judged.",
)
@click.option(
    "--weights",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Audit trained weights: load this file (.safetensors, .pt and the like; read with weights_only) first.",
)
@click.option("--device", help="cpu, cuda, cuda:1, mps, or all for a proof on every one (default: cpu).")
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float64", "bfloat16", "float16")),
    help="Number format (default: float32).",
)
@click.option("--compile", is_flag=True, default=None, help="Prove fixes under torch.compile as well.")
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

    names = ("device", "dtype", "compile", "seed", "timeout", "memory", "batch_size", "weights")
    running = {name: options.pop(name) for name in names}
    places = tuple(target.partition("::")[0] for target in targets)
    nearest = nearest_settings(options, start=start_of(places), **running)
    settings = nearest.settings
    with complaining():
        progress = Progress(options["quiet"])
        mode, since = fix_mode(options), options["changed_since"]
        facts = any(wanted.facts for wanted in formats_of(options))
        report = pipeline.audit_targets(targets, settings, mode, inputs, progress, since, nearest, facts)
        progress.clear()
        if certificate_file is not None:
            import json

            records = [certificate.to_json() for certificate in report.certificates]
            certificate_file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        finish(report, settings, options)
