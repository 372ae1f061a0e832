"""masksparse rewrite."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option, output_option, with_options
from masksparse_deploy.cli.render_rewrite import rewrite_table
from masksparse_deploy.cli.terminal import alone_in, emit, shown_progress
from masksparse_deploy.core.config import EngineOptions, RewriteOptions

__all__ = ["command"]


@click.command("rewrite")
@click.argument("file", type=click.Path(path_type=Path))
@with_options(RewriteOptions, "rewrite_options")
@with_options(EngineOptions, "engine_options", only=("backend", "batch", "threads"))
@output_option("Folder for rewritten.onnx, if it is faster, and rewrite.json.")
@json_option
def command(file: Path, rewrite_options: RewriteOptions, engine_options: EngineOptions, out: Path, as_json: bool) -> None:
    """Bring 1xN layers and masked positions of a sparse ONNX FILE into the forms that run fastest on this machine."""
    from masksparse_deploy.rewrite.run import rewrite

    with alone_in(out), shown_progress() as progress:
        report = rewrite(file, rewrite_options, engine_options, out=out, progress=progress)
    emit(report, as_json, *rewrite_table(report))
