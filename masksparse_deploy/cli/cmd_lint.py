"""masksparse lint."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option
from masksparse_deploy.cli.render import lint_table
from masksparse_deploy.cli.terminal import emit

__all__ = ["command"]


@click.command("lint")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def command(file: Path, as_json: bool) -> int:
    """What is sparse in an ONNX FILE, what could be, and why not; exit code 1 when a claim is broken."""
    from masksparse_deploy.bake.lint import lint

    report = lint(file)
    emit(report, as_json, *lint_table(report))
    return 0 if report.ok else 1
