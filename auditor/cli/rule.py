"""`auditor rule`: explain a rule."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.cli.options import config_option
from auditor.cli.running import complaining, rules_of, settings_of


@click.command()
@click.argument("code_or_name", required=False)
@click.option("--all", "everything", is_flag=True, help="Explain every rule.")
@config_option
def rule(code_or_name: str | None, everything: bool, config_file: Path | None) -> None:
    """Explain a rule: what it finds, why it matters, how it is fixed and how the fix is proven."""
    from auditor.loader import find_rule
    from auditor.report.catalogue import explain

    rules = rules_of(settings_of({"config_file": config_file}))
    if everything:
        click.echo_via_pager("\n\n".join(explain(item) for item in rules) + "\n")
        return
    if not code_or_name:
        raise click.UsageError("name a rule (`auditor rule MOD001`), or pass --all")
    found = find_rule(rules, code_or_name)
    if found is None:
        from auditor.loader import choose

        with complaining():
            choose(rules, (code_or_name,), ())
        raise click.UsageError(f"{code_or_name!r} stands for several rules: `auditor rules` lists them")
    click.echo(explain(found))
