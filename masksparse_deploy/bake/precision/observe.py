"""Running an FP32 model on ONNX Runtime with counters on its tensors, so that only numbers leave the runtime."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.precision.formats import FloatFormat
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.graph.evaluate import require_images
from masksparse_deploy.graph.model import Graph

__all__ = ["Observed", "observe"]

# Images at a time: what the runtime needs for the activations of so many at once is all the memory that this takes.
_BATCH = 16
_PREFIX = "masksparse.observed."
_LOG_FATAL_ONLY = 4

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One tensor over all images: its largest magnitude, how many values overflow, become zero, and were not zero."""

    largest: float
    overflow_count: int
    flushed_count: int
    nonzero_count: int

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
    batches = list(_batches(images, shape[0]))
    runtime = require("onnxruntime", needed_for="measuring the ranges of activations")
    settings = runtime.SessionOptions()
    settings.log_severity_level = _LOG_FATAL_ONLY
    totals = np.zeros((len(tensors), 5))
    try:
        session = runtime.InferenceSession(
            _with_counters(model, tensors, target).SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        for index, batch in enumerate(batches):
            progress("measuring ranges", index, len(batches))
            counts = np.array(session.run(None, {input_name: batch}), dtype=np.float64).reshape(totals.shape)
            totals[:, 0] = np.maximum(totals[:, 0], counts[:, 0])
            totals[:, 1:] += counts[:, 1:]
    except Exception as error:  # ONNX Runtime raises classes of its own for every kind of failure
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the model cannot be run by ONNX Runtime to measure its ranges ({reason}); bake without images"
        ) from error
    progress("measuring ranges", len(batches), len(batches))
    for name, (*_, infinite) in zip(tensors, totals, strict=True):
        if infinite:
            raise UsageError(
                f"tensor {name} has {infinite:.0f} values that are not finite (NaN or infinity) already in FP32; check the "
                "trained weights and the images"
            )
    return {
        name: Observed(
            largest=float(largest), overflow_count=int(overflowing), flushed_count=int(flushed), nonzero_count=int(nonzero)
        )
        for name, (largest, overflowing, flushed, nonzero, _) in zip(tensors, totals, strict=True)
    }


def _batches(images: Array, fixed: int | None) -> Iterator[Array]:
    if len(images) < (fixed or 1):
        raise UsageError(
            f"{len(images)} images are fewer than a batch of {fixed or 1}, which the model needs; give more images"
        )
    size = fixed or _BATCH
    for start in range(0, len(images), size):
        # a fixed batch that would reach beyond the last image starts earlier
        yield images[min(start, len(images) - size) if fixed else start :][:size].astype(np.float32, copy=False)


def _with_counters(model: onnx.ModelProto, tensors: Sequence[str], target: FloatFormat) -> onnx.ModelProto:
    """The model with five numbers for each tensor as its outputs instead of its own."""
    counted = onnx.ModelProto()
    counted.CopyFrom(model)
    graph = counted.graph
    del graph.output[:]
    limits = {"overflow": target.infinite_from, "flush": target.zero_to, "infinity": np.inf, "zero": 0.0}
    for name, limit in limits.items():
        graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float32), _PREFIX + name))
    for index, tensor in enumerate(tensors):
        prefix = f"{_PREFIX}{index}."
        nodes = list(_counters(tensor, prefix))
        graph.node.extend(nodes)
        outputs = {
            "largest": TensorProto.FLOAT,
            **dict.fromkeys(("overflows", "flushed", "nonzero", "infinite"), TensorProto.INT32),
        }
        graph.output.extend(helper.make_tensor_value_info(prefix + name, kind, []) for name, kind in outputs.items())
    return counted


def _counters(tensor: str, prefix: str) -> Iterator[onnx.NodeProto]:
    """Operators that every operator set has: at least is written as not less, at most as not greater."""

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, list(inputs), [prefix + output], **attributes)

    magnitude = prefix + "magnitude"
    yield node("Abs", [tensor], "magnitude")
    yield node("ReduceMax", [magnitude], "largest", keepdims=0)
    conditions: Mapping[str, tuple[onnx.NodeProto, ...]] = {
        "overflows": (
            node("Less", [magnitude, _PREFIX + "overflow"], "finite"),
            node("Not", [prefix + "finite"], "overflows.where"),
        ),
        "nonzero": (node("Greater", [magnitude, _PREFIX + "zero"], "nonzero.where"),),
        "flushed": (
            node("Greater", [magnitude, _PREFIX + "flush"], "kept"),
            node("Not", [prefix + "kept"], "small"),
            node("And", [prefix + "small", prefix + "nonzero.where"], "flushed.where"),
        ),
        "infinite": (
            node("Less", [magnitude, _PREFIX + "infinity"], "real"),
            node("Not", [prefix + "real"], "infinite.where"),
        ),
    }
    for name, nodes in conditions.items():
        yield from nodes
        yield node("Cast", [f"{prefix}{name}.where"], f"{name}.each", to=TensorProto.INT32)
        yield node("ReduceSum", [f"{prefix}{name}.each"], name, keepdims=0)
