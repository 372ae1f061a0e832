"""masksparse lint."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option
from masksparse_deploy.cli.render import lint_table
from masksparse_deploy.cli.terminal import emit

__all__ = ["command"]


@click.command("lint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--transposable", is_flag=True, help="Demand that sparse layers are N:M along their output channels too.")
@json_option
def command(file: Path, transposable: bool, as_json: bool) -> int:
    """What is sparse in an ONNX FILE, what could be, and why not; exit code 1 when a claim is broken."""
    from masksparse_deploy.bake.lint import lint

    report = lint(file, transposable=transposable)
    emit(report, as_json, *lint_table(report))
    return 0 if report.ok else 1
