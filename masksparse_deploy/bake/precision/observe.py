"""Running an FP32 model on ONNX Runtime with its intermediate tensors exposed, and counting what a cast would lose of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper

from masksparse_deploy.bake.precision.formats import FloatFormat
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.graph.evaluate import require_images
from masksparse_deploy.graph.model import Graph

__all__ = ["Observed", "observe"]

# Images at a time: at most so many, and fewer where the exposed tensors of so many would take more memory than this.
_LARGEST_BATCH = 16
_MEMORY_BYTES = 256 << 20
_LOG_FATAL_ONLY = 4

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One tensor over all images: its largest magnitude, how many values overflow, become zero, and were not zero."""

    largest: float = 0.0
    overflow_count: int = 0
    flushed_count: int = 0
    nonzero_count: int = 0

    def __add__(self, other: "Observed") -> "Observed":
        return Observed(
            largest=max(self.largest, other.largest),
            overflow_count=self.overflow_count + other.overflow_count,
            flushed_count=self.flushed_count + other.flushed_count,
            nonzero_count=self.nonzero_count + other.nonzero_count,
        )

    @property
    def flushed_share(self) -> float:
        """Of the values that are not zero, those that become zero."""
        return self.flushed_count / self.nonzero_count if self.nonzero_count else 0.0


def observe(
    model: onnx.ModelProto,
    graph: Graph,
    tensors: Sequence[str],
    target: FloatFormat,
    images: Array,
    progress: Progress,
) -> dict[str, Observed]:
    """Count what casting `tensors` to `target` would lose.

    Where the file fixes the batch size, batches of that size are run; the last one is filled up with the images before it.

    Args:
        model: in FP32, with one input; not changed.
        graph: the same model.
        tensors: names of FP32 inputs or outputs of the main graph's operators.
        target: the format to cast to.
        images: float32 (count, ...) as the model takes them, at least one.
        progress: told of every batch.

    Returns:
        name -> counts.

    Raises:
        UsageError: images that don't fit, a model that ONNX Runtime cannot run, or values that are not finite.
    """
    require_images(graph, images)
    ((input_name, shape),) = graph.inputs.items()
    computed = [name for name in tensors if name != input_name]
    totals = dict.fromkeys(tensors, Observed())
    done, size = 0, shape[0] or 1
    if len(images) < size:
        raise UsageError(f"{len(images)} images are fewer than a batch of {size}, which the model needs; give more images")
    run = _runner(model, computed, input_name)
    while done < len(images):
        progress("measuring ranges", done, len(images))
        # a fixed batch that would reach beyond the last image starts earlier
        start = min(done, len(images) - size) if shape[0] else done
        batch = images[start : start + size].astype(np.float32, copy=False)
        if input_name in totals:
            totals[input_name] += _count(input_name, batch, target)
        exposed_bytes = 0
        for name, array in zip(computed, run(batch), strict=True):
            totals[name] += _count(name, array, target)
            exposed_bytes += array.nbytes
        done += size
        if not shape[0]:  # the first image alone has told how much memory each takes
            size = min(max(_MEMORY_BYTES * len(batch) // max(exposed_bytes, 1), 1), _LARGEST_BATCH)
    progress("measuring ranges", len(images), len(images))
    return totals


def _runner(model: onnx.ModelProto, tensors: Sequence[str], input_name: str) -> Callable[[Array], list[Array]]:
    runtime = require("onnxruntime", needed_for="measuring the ranges of activations")
    settings = runtime.SessionOptions()
    settings.log_severity_level = _LOG_FATAL_ONLY
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)

    def run(batch: Array) -> list[Array]:
        with _explained():
            arrays: list[Array] = session.run(None, {input_name: batch})
            return arrays

    with _explained():
        session = runtime.InferenceSession(exposed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return run


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime raises classes of its own for every kind of failure
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the model cannot be run by ONNX Runtime to measure its ranges ({reason}); bake without images"
        ) from error


def _count(name: str, array: Array, target: FloatFormat) -> Observed:
    magnitude = np.abs(array)
    largest = float(magnitude.max(initial=0))
    if not np.isfinite(largest):
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise UsageError(
            f"tensor {name} has {count} values that are not finite (NaN or infinity) already in FP32; check the trained "
            "weights and the images"
        )
    zero_count = int(np.count_nonzero(magnitude == 0))
    return Observed(
        largest=largest,
        overflow_count=int(np.count_nonzero(magnitude >= target.infinite_from)) if largest >= target.infinite_from else 0,
        flushed_count=int(np.count_nonzero(magnitude <= target.zero_to)) - zero_count,
        nonzero_count=array.size - zero_count,
    )
