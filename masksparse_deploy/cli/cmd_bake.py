"""masksparse bake."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import (
    input_option,
    json_option,
    output_option,
    with_calibration_samples,
    with_options,
)
from masksparse_deploy.cli.render import bake_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import BakeOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("bake")
@with_options(ModelOptions, "model_options", required=False)
@input_option("--onnx", "Bake this ONNX file instead of a PyTorch model.", required=False)
@input_option("--masks", "Mask set written by 'masksparse learn'.")
@with_calibration_samples
@with_options(BakeOptions, "bake_options")
@output_option("Folder for dense.onnx, sparse.onnx, bake.json, and probe.safetensors from a PyTorch model.")
@json_option
def command(
    model_options: ModelOptions | None,
    onnx: Path | None,
    masks: Path,
    samples: Samples | None,
    calibration: Samples | None,
    bake_options: BakeOptions,
    out: Path,
    as_json: bool,
) -> None:
    """Write the zeros into an ONNX file that says what is sparse, beside its dense twin."""
    from masksparse_deploy.pipeline.baking import bake_model, bake_onnx

    if (model_options is None) == (onnx is None):
        raise UsageError("give the model either as --factory and --weights, or as --onnx")
    if onnx is not None and "opset" in bake_options.model_fields_set:
        raise UsageError("--opset: an ONNX file keeps its operator set; leave the option out, or bake from the PyTorch model")
    if onnx is not None and samples is not None:
        raise UsageError("--data: an ONNX file has no PyTorch model to compare with on these images; leave the option out")
    with shown_progress() as progress:
        if onnx is not None:
            report = bake_onnx(onnx, masks, bake_options, calibration=calibration, out=out, progress=progress)
        elif model_options is None or samples is None:
            raise UsageError("--data is missing: the first images are kept as the probe that engines are compared on")
        else:
            report = bake_model(
                model_options,
                masks,
                bake_options,
                samples,
                calibration=calibration,
                folder=Path(),
                out=out,
                progress=progress,
            )
    emit(report, as_json, *bake_lines(report))
