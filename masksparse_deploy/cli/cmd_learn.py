"""masksparse learn."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option, output_option, with_options
from masksparse_deploy.cli.render import learn_lines
from masksparse_deploy.cli.terminal import alone_in, emit, shown_progress
from masksparse_deploy.core.config import DataOptions, Gates, MaskOptions, ModelOptions

__all__ = ["command"]


@click.command("learn")
@with_options(ModelOptions, "model_options")
@with_options(DataOptions, "data_options")
@with_options(MaskOptions, "mask_options")
@with_options(Gates, "gates", only=("accuracy_drop_points",))
@output_option("Folder for masks.safetensors and learn.json.")
@json_option
def command(
    model_options: ModelOptions,
    data_options: DataOptions,
    mask_options: MaskOptions,
    gates: Gates,
    out: Path,
    as_json: bool,
) -> None:
    """Choose which weights to keep; the weights themselves stay frozen, but with --method adaprune or sparse-training."""
    from masksparse_deploy.learn.run import learn

    with alone_in(out), shown_progress() as progress:
        report = learn(model_options, data_options, mask_options, gates, folder=Path(), out=out, progress=progress)
    emit(report, as_json, *learn_lines(report))
