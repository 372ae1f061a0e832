"""masksparse report."""

import sys
from pathlib import Path

import click

from masksparse_deploy.cli.terminal import console
from masksparse_deploy.pipeline.reporting import report_folder

__all__ = ["command"]


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Write report.html, one page from the artifacts in FOLDER; stages that have not run are named in it."""
    arguments = " ".join(["masksparse", *sys.argv[1:]])
    console().print(str(report_folder(folder, command=arguments)))
