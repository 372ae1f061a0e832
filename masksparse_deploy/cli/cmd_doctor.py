"""masksparse doctor."""

import click

from masksparse_deploy.cli.options import json_option
from masksparse_deploy.cli.render_doctor import doctor_table, gpu_lines
from masksparse_deploy.cli.terminal import console

__all__ = ["command"]


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Which backends work on this machine, and why not; exit code 3 if none does."""
    from masksparse_deploy.core.files import canonical_json
    from masksparse_deploy.engine.select import all_statuses

    statuses = all_statuses()
    if as_json:
        click.echo(canonical_json([status.model_dump(mode="json") for status in statuses]).decode(), nl=False)
    else:
        out = console()
        for line in gpu_lines(statuses):
            out.print(line)
        out.print(doctor_table(statuses))
    return 0 if any(status.available for status in statuses) else 3
