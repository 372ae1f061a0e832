"""masksparse bake."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options, with_test_samples
from masksparse_deploy.cli.render import bake_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import BakeOptions, ModelOptions
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("bake")
@with_options(ModelOptions, "model_options")
@input_option("--masks", "Mask set written by 'masksparse learn'.")
@with_test_samples
@with_options(BakeOptions, "bake_options")
@output_option("Folder for dense.onnx, sparse.onnx, probe.safetensors and bake.json.")
@json_option
def command(
    model_options: ModelOptions, masks: Path, samples: Samples, bake_options: BakeOptions, out: Path, as_json: bool
) -> None:
    """Write the zeros into an ONNX file that says what is sparse, beside its dense twin."""
    from masksparse_deploy.pipeline.stages import bake_model

    with shown_progress() as progress:
        report = bake_model(model_options, masks, bake_options, samples, folder=Path(), out=out, progress=progress)
    emit(report, as_json, *bake_lines(report))
