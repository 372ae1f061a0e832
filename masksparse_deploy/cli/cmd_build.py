"""masksparse build."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options
from masksparse_deploy.cli.render import engine_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import EngineOptions

__all__ = ["command"]


@click.command("build")
@input_option("--onnx", "The model, weights inside the file.")
@with_options(EngineOptions, "engine_options")
@click.option("--name", help="Stem of the files written.  [default: that of the ONNX file]")
@output_option("Folder for the plan and NAME.engine.json.")
@json_option
def command(onnx: Path, engine_options: EngineOptions, name: str | None, out: Path, as_json: bool) -> None:
    """Build an engine from an ONNX file."""
    from masksparse_deploy.engine.select import choose_backend

    backend, choice = choose_backend(engine_options.backend)
    with shown_progress() as progress:
        artifact = backend.build(onnx, out, engine_options, name=name or onnx.stem, progress=progress)
    emit(artifact, as_json, *engine_lines(artifact, choice))
