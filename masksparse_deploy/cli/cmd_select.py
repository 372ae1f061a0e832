"""masksparse select."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option, output_option, with_options
from masksparse_deploy.cli.render import selection_table
from masksparse_deploy.cli.terminal import alone_in, emit, shown_progress
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions, SelectOptions

__all__ = ["command"]

MASK_FIELDS = (
    "pattern",
    "pad_channels",
    "batch_norm",
    "include",
    "exclude",
    "batch_size",
    "calibration_count",
    "augment",
    "seed",
)


@click.command("select")
@with_options(ModelOptions, "model_options")
@with_options(DataOptions, "data_options")
@with_options(MaskOptions, "mask_options", only=MASK_FIELDS)
@with_options(SelectOptions, "select_options")
@output_option("Folder for selection.json.")
@json_option
def command(
    model_options: ModelOptions,
    data_options: DataOptions,
    mask_options: MaskOptions,
    select_options: SelectOptions,
    out: Path,
    as_json: bool,
) -> None:
    """Choose which layers are worth a mask, within a budget of accuracy; 'masksparse learn --assignment' takes the result."""
    from masksparse_deploy.learn.selection import select

    with alone_in(out), shown_progress() as progress:
        selection = select(model_options, data_options, mask_options, select_options, folder=Path(), out=out, progress=progress)
    emit(selection, as_json, *selection_table(selection))
