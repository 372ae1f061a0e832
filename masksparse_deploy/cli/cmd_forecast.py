"""masksparse forecast."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options
from masksparse_deploy.cli.render_forecast import forecast_table
from masksparse_deploy.cli.terminal import alone_in, emit, shown_progress
from masksparse_deploy.core.config import EngineOptions, ForecastOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError

__all__ = ["command"]

ENGINE_FIELDS = ("backend", "batch", "workspace_mib", "tactic_sources", "optimization_level")


@click.command("forecast")
@with_options(ModelOptions, "model_options", required=False)
@input_option("--onnx", "Forecast this ONNX file instead of a PyTorch model.", required=False)
@with_options(ForecastOptions, "forecast_options")
@with_options(EngineOptions, "engine_options", only=ENGINE_FIELDS)
@output_option("Folder for forecast.json and the times.")
@json_option
def command(
    model_options: ModelOptions | None,
    onnx: Path | None,
    forecast_options: ForecastOptions,
    engine_options: EngineOptions,
    out: Path,
    as_json: bool,
) -> int:
    """Estimate, before any training, what 2:4 weights would gain a network on this machine; exit code 1: don't bother."""
    from masksparse_deploy.pipeline.forecasting import forecast_model, forecast_onnx

    if (model_options is None) == (onnx is None):
        raise UsageError("give the model either as --factory and --weights, or as --onnx")
    if onnx is not None and forecast_options.image is not None:
        raise UsageError("--image: an ONNX file says itself what images it takes; leave the option out")
    with alone_in(out), shown_progress() as progress:
        if onnx is not None:
            result = forecast_onnx(onnx, forecast_options, engine_options, out=out, progress=progress)
        else:
            assert model_options is not None
            result = forecast_model(model_options, forecast_options, engine_options, folder=Path(), out=out, progress=progress)
    emit(result, as_json, *forecast_table(result))
    return 0 if result.worthwhile else 1
