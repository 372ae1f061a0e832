"""masksparse import."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option, output_option, with_options
from masksparse_deploy.cli.render_import import import_table
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import ModelOptions

__all__ = ["command"]


@click.command("import")
@with_options(ModelOptions, "model_options")
@click.option(
    "--image-shape",
    nargs=3,
    type=click.IntRange(min=1),
    required=True,
    metavar="C H W",
    help="Channels, height and width of an image that the network takes.",
)
@click.option("--pattern", help="Look for this N:M alone.  [default: whatever is there]")
@output_option("Folder for weights.safetensors, masks.safetensors and import.json.")
@json_option
def command(
    model_options: ModelOptions, image_shape: tuple[int, int, int], pattern: str | None, out: Path, as_json: bool
) -> int:
    """Take over a model that another tool made sparse; exit code 1 when sparse kernels can use none of its layers."""
    from masksparse_deploy.learn.foreign import import_foreign

    with shown_progress() as progress:
        report = import_foreign(
            model_options, image_shape=image_shape, pattern=pattern, folder=Path(), out=out, progress=progress
        )
    emit(report, as_json, *import_table(report))
    return 0 if report.mask_set_sha256 is not None else 1
