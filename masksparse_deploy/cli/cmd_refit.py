"""masksparse refit."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option
from masksparse_deploy.cli.render_refit import refit_lines
from masksparse_deploy.cli.terminal import emit, shown_progress

__all__ = ["command"]


@click.command("refit")
@input_option("--engine", "The engine's engine.json, written by 'masksparse build --refit'.")
@input_option("--source", "The ONNX file that the engine was built from; its zeros are the masks.")
@input_option("--onnx", "The same network with new weights.")
@click.option("--name", help="Stem of the files written.  [default: that of the file with the new weights]")
@output_option("Folder for the new plan, NAME.engine.json, NAME.onnx and NAME.refit.json.")
@json_option
def command(engine: Path, source: Path, onnx: Path, name: str | None, out: Path, as_json: bool) -> None:
    """Put new weights under the same masks into an engine, without building it again, and check its outputs."""
    from masksparse_deploy.engine.refit.run import refit

    with shown_progress() as progress:
        report = refit(engine, source, onnx, out, name=name or onnx.stem, progress=progress)
    emit(report, as_json, *refit_lines(report))
