"""What each layer loses in INT8: weights that became 0, activations beyond the grid or below its step."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper

from masksparse_deploy.bake.precision.calibration import image_batches, inline_functions
from masksparse_deploy.bake.precision.quantized_layers import QuantizedLayer, quantized_layers
from masksparse_deploy.core.artifacts.baking import LayerRange
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.model import Graph

__all__ = ["quantization_losses"]

Array = npt.NDArray[np.float32]

# In steps of the scale. Ties go to the even level: half a step is flushed to 0, 127.5 steps are clipped to 127.
_HIGHEST, _LOWEST, _FLUSHED = 127.5, -128.5, 0.5


@dataclass(kw_only=True)
class _Counts:
    """Of one activation, over the images seen so far."""

    largest: float = 0.0
    overflow: int = 0
    flushed: int = 0
    nonzero: int = 0

    def add(self, values: Array, scale: float) -> None:
        steps = values.astype(np.float64) / scale
        self.largest = max(self.largest, float(np.abs(values).max(initial=0)))
        self.overflow += int(((steps >= _HIGHEST) | (steps < _LOWEST)).sum())
        self.flushed += int(((values != 0) & (np.abs(steps) <= _FLUSHED)).sum())
        self.nonzero += int(np.count_nonzero(values))


def quantization_losses(
    original: onnx.ModelProto, quantized: Graph, images: Array | None = None, *, progress: Progress = silent
) -> tuple[LayerRange, ...]:
    """Count, for every INT8 layer of a file, what its grids cannot represent.

    Weights: those beyond the highest level, and those that are not zero and become 0. Outputs, of the kernel that the layer
    is fused into, as the FP32 model computes them: those clipped, and the share of those that become 0 among all that are
    not zero; None where the output stays in float, or without images.

    Args:
        original: the FP32 model that was quantized.
        quantized: the INT8 file made from it.
        images: float32 (count, ...), those that the scales were calibrated on, or others.
        progress: told how many images are done.

    Raises:
        UsageError: the images do not fit the model.
    """
    layers = [layer for layer in quantized_layers(quantized) if layer.weight is not None]
    original = inline_functions(original)
    outputs = _output_counts(original, layers, images, progress) if images is not None else {}
    weights = _stored(original)
    return tuple(_range(layer, weights, outputs.get(layer.output_name)) for layer in layers)


def _range(layer: QuantizedLayer, weights: Mapping[str, onnx.TensorProto], output: _Counts | None) -> LayerRange:
    assert layer.weight is not None
    values = onnx.numpy_helper.to_array(weights[layer.weight.stored_name])
    others = tuple(axis for axis in range(values.ndim) if axis != layer.output_channel_axis)
    with np.errstate(over="ignore"):  # infinity is the limit that nothing exceeds
        limits = np.expand_dims(layer.weight.grid.scale * np.float32(_HIGHEST), others)
    return LayerRange(
        node=layer.node.name,
        weight=layer.weight.stored_name,
        weight_largest=float(np.abs(values).max(initial=0)),
        weight_nonzero_count=int(np.count_nonzero(values)),
        weight_overflow_count=int((np.abs(values) >= limits).sum()),
        weight_flushed_count=int(((values != 0) & (layer.weight.levels == 0)).sum()),
        output_largest=None if output is None else output.largest,
        output_overflow_count=None if output is None else output.overflow,
        output_flushed_share=None if output is None else output.flushed / max(output.nonzero, 1),
    )


def _output_counts(
    model: onnx.ModelProto, layers: list[QuantizedLayer], images: Array, progress: Progress
) -> dict[str, _Counts]:
    """What the FP32 model gives where an INT8 layer gives INT8, by the name of the tensor."""
    scales = {layer.output_name: layer.output.scale.item() for layer in layers if layer.output is not None}
    name, batches = image_batches(model, images)
    runtime = require("onnxruntime", needed_for="counting what INT8 clips")
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor) for tensor in scales)
    counts = {tensor: _Counts() for tensor in scales}
    if not scales:
        return counts
    session = runtime.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
    for index, batch in enumerate(batches):
        progress("what INT8 clips", index, len(batches))
        for tensor, values in zip(scales, session.run(list(scales), {name: batch}), strict=True):
            counts[tensor].add(values, scales[tensor])
    progress("what INT8 clips", len(batches), len(batches))
    return counts


def _stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and the tensors of Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found
