"""Forecasting: from a PyTorch model or an ONNX file to the network in the precision that it will be deployed in."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from masksparse_deploy.core.artifacts.forecast import Forecast
from masksparse_deploy.core.config import EngineOptions, ForecastOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.source import Source, read_source
from masksparse_deploy.forecast.run import forecast

__all__ = ["forecast_model", "forecast_onnx"]

# The newest that TensorRT 8.6 reads; later versions read it too.
_OPSET = 17
# Times do not depend on scales, so that a few random images do for them.
_CALIBRATION_COUNT = 2

Run = Callable[[Path], Forecast]


def forecast_model(
    model_options: ModelOptions,
    options: ForecastOptions,
    engine_options: EngineOptions,
    *,
    folder: Path,
    out: Path,
    progress: Progress = silent,
) -> Forecast:
    """Export a PyTorch model as the bake stage does, and forecast it.

    Args:
        model_options: the dense model; relative paths start at `folder`.
        options: of the forecast; `image` says what the network takes.
        engine_options: backend and batch.
        folder: where the configuration lies.
        out: the output folder.
        progress: told how far the work is.

    Raises:
        MasksparseError: as learn.model.load_model, bake.export.export_onnx and forecast.run.forecast do.
    """
    from masksparse_deploy.bake.export import export_onnx
    from masksparse_deploy.learn.model import load_model

    if options.image is None:
        raise UsageError(
            "forecast.image is missing: say what images the model takes, as 3x224x224 (--image on the command line)"
        )
    channels, height, width = (int(length) for length in options.image.split("x"))
    content = export_onnx(load_model(model_options, folder), (channels, height, width), opset=_OPSET)
    with tempfile.TemporaryDirectory(prefix="masksparse-") as name:
        path = Path(name) / "dense.onnx"
        write_atomic(path, content)
        return forecast_onnx(path, options, engine_options, out=out, progress=progress)


def forecast_onnx(
    onnx_path: Path,
    options: ForecastOptions,
    engine_options: EngineOptions,
    *,
    out: Path,
    progress: Progress = silent,
) -> Forecast:
    """Bring an FP32 file to the precision asked for, if any, and forecast it; arguments as above.

    Raises:
        UsageError: the file is of another precision than the one asked for, and not FP32.
        MasksparseError: as bake.precision.quantize.quantize and forecast.run.forecast do.
    """
    source = read_source(onnx_path)
    if options.precision in (None, source.precision):
        return forecast(onnx_path, options, engine_options, out=out, progress=progress)
    if source.precision != "fp32":
        raise UsageError(
            f"{onnx_path} is a file of precision {source.precision}, and only FP32 files can be brought to "
            f"{options.precision}; leave --precision out, or give the FP32 file"
        )
    with tempfile.TemporaryDirectory(prefix="masksparse-") as name:
        path = Path(name) / onnx_path.name
        write_atomic(path, _converted(source, options).SerializeToString())
        return forecast(path, options, engine_options, out=out, progress=progress)


def _converted(source: Source, options: ForecastOptions) -> onnx.ModelProto:
    from masksparse_deploy.bake.precision.floats import ConvertFloats
    from masksparse_deploy.bake.precision.quantize import quantize

    model = onnx.load_model_from_string(source.content)
    if options.precision == "int8":
        image = [length for length in source.input_shape[1:] if length is not None]
        if len(image) < len(source.input_shape) - 1:
            raise UsageError(
                f"the input of the file has the shape {source.input_shape}; export it with a fixed height and width"
            )
        return quantize(
            model, np.random.default_rng(options.seed).standard_normal((_CALIBRATION_COUNT, *image), dtype=np.float32)
        )
    lowered = ir.from_proto(model)
    ConvertFloats("fp16")(lowered)
    return ir.to_proto(lowered)
