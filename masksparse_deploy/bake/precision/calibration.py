"""The ranges of activations on calibration images, as ONNX Runtime's calibrators choose them."""

import contextlib
import io
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent

__all__ = ["CalibrationMethod", "activation_limits", "image_batches", "inline_functions"]

CalibrationMethod = Literal["minmax", "entropy", "percentile"]
Array = npt.NDArray[np.float32]

_BATCH_IMAGES = 32
# Protocol buffers end at 2 GiB, the calibrator adds operators to the model.
_LARGEST_FILE_BYTES = 1_900_000_000
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
# Clipping is a choice among histogram bins: with ONNX Runtime's default of 128 bins for 128 levels entropy has no choice.
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "minmax": {},
    "entropy": {"num_bins": 512, "num_quantized_bins": 128},
    "percentile": {"num_bins": 2048, "percentile": 99.99, "symmetric": True},
}


def activation_limits(
    model: onnx.ModelProto,
    tensors: Set[str],
    images: Array,
    *,
    method: CalibrationMethod,
    progress: Progress = silent,
) -> dict[str, float]:
    """The magnitude at which each activation is to be clipped.

    "minmax" takes the largest magnitude that occurs. "entropy" and "percentile" clip outliers: the former minimises the
    Kullback-Leibler divergence between the values and the 8-bit ones (Migacz, "8-bit Inference with TensorRT", GTC 2017),
    the latter keeps 99.99 % of the magnitudes.

    Args:
        model: with one input; all weights inside.
        tensors: names of float activations.
        images: float32 (count, ...), the shape of the model's input.
        method: how to choose.
        progress: told how many images are done.

    Raises:
        UsageError: the images do not fit the model, it cannot be run, or an activation is not finite.
    """
    calibrate = require("onnxruntime.quantization.calibrate", needed_for="calibrating INT8 scales")
    name, batches = image_batches(model, images)
    kinds = {node.op_type for node in model.graph.node if not tensors.isdisjoint((*node.input, *node.output))}
    large = model.ByteSize() > _LARGEST_FILE_BYTES
    with tempfile.TemporaryDirectory(prefix="masksparse-") as folder, _quiet():
        path = Path(folder) / "model.onnx"
        _save(model, path, large=large)
        try:
            calibrator = calibrate.create_calibrator(
                path,
                sorted(kinds),
                str(Path(folder) / "augmented.onnx"),
                calibrate_method=calibrate.CalibrationMethod[_METHODS[method]],
                use_external_data_format=large,
                extra_options=dict(_SETTINGS[method]),
            )
            for index, batch in enumerate(batches):
                progress("calibration", index, len(batches))
                calibrator.collect_data(_OneBatch({name: batch}))
            found = calibrator.compute_data()
        except Exception as error:  # ONNX Runtime raises classes of its own for every kind of failure
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"calibration: ONNX Runtime cannot run the network ({reason}); check the images and the file"
            ) from error
    progress("calibration", len(batches), len(batches))
    return {tensor: _limit(tensor, found) for tensor in sorted(tensors)}


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions put in where they are called, or the model itself if it has none."""
    if not model.functions:
        return model
    inlined = ir.from_proto(model)
    InlinePass()(inlined)
    return ir.to_proto(inlined)


def image_batches(model: onnx.ModelProto, images: Array) -> tuple[str, tuple[Array, ...]]:
    """The name of the model's input, and the images in batches it takes.

    Where the model fixes the size of a batch the last one may overlap the one before.

    Raises:
        UsageError: the model does not have one input, the images do not fit it or are not finite, or are too few for a batch.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise UsageError(f"calibration: the network has {len(inputs)} inputs, but images feed exactly one")
    dims = inputs[0].type.tensor_type.shape.dim
    expected = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    fits = len(expected) == images.ndim and all(
        length in (None, found) for length, found in zip(expected[1:], images.shape[1:], strict=True)
    )
    size = (expected[0] if expected else None) or _BATCH_IMAGES
    fixed = bool(expected and expected[0])
    if not fits or images.dtype != np.float32 or len(images) < (size if fixed else 1):
        raise UsageError(
            f"calibration: images are {images.dtype} {images.shape}, but the network's input {inputs[0].name} takes float32 "
            f"{tuple('any' if length is None else length for length in expected)}; give at least one batch of such images"
        )
    if not np.isfinite(images).all():
        raise UsageError("calibration: the images hold NaN or infinite values; remove or repair them")
    starts: Sequence[int] = range(0, len(images), size)
    if fixed:
        starts = [min(start, len(images) - size) for start in starts]
    return inputs[0].name, tuple(np.ascontiguousarray(images[start : start + size]) for start in starts)


class _OneBatch:
    """What ONNX Runtime's calibrators read from: one batch, so that histograms are merged and activations are let go."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self._inputs: Mapping[str, Array] | None = inputs

    def get_next(self) -> Mapping[str, Array] | None:
        inputs, self._inputs = self._inputs, None
        return inputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime prints what it does, which would land among results; it divides by empty bins, and NaN is told below."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _save(model: onnx.ModelProto, path: Path, *, large: bool) -> None:
    if large:  # saving moves the weights out of the model it is given
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(copy, path, save_as_external_data=True, location="weights.bin")
    else:
        onnx.save_model(model, path)


def _limit(name: str, found: Any) -> float:
    if name not in found.data:
        raise UsageError(
            f"calibration: ONNX shape inference cannot tell the type of {name}, which is to become INT8; leave the operators "
            "that read or write it in float"
        )
    lowest, highest = found[name].range_value
    limit = max(abs(float(np.min(lowest))), abs(float(np.max(highest))))
    if not math.isfinite(limit):
        raise UsageError(f"calibration: {name} is not finite (NaN or infinity) on the calibration images; check both")
    return limit
