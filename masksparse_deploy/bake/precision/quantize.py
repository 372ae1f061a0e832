"""INT8 files: QuantizeLinear and DequantizeLinear with scales from calibration, in the form that TensorRT reads."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.precision.calibration import CalibrationMethod, activation_limits, inline_functions
from masksparse_deploy.bake.precision.placement import Placement, constant_of, output_channel_axis, place_quantizers
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph import annotations as keys

__all__ = ["LARGEST_LEVEL", "InsertQuantizers", "quantize"]

LARGEST_LEVEL = 127
# From 13 on a scale may be for each channel. TensorRT 8.6, which reads 17 at most, takes weights in FP32 with a
# QuantizeLinear and a DequantizeLinear behind; what reads newer operator sets takes INT8 weights and a DequantizeLinear.
_OLDEST_OPSET = 13
_FLOAT_WEIGHTS_OPSET = 17


def quantize(
    model: onnx.ModelProto,
    images: npt.NDArray[np.float32],
    *,
    method: CalibrationMethod = "minmax",
    exclude: Collection[str] = (),
    progress: Progress = silent,
) -> onnx.ModelProto:
    """An INT8 model: every convolution and matrix product between Q/DQ, symmetric, all zero points 0.

    A weight w of an output channel with scale s = max|w| / 127 becomes round(w / s), ties to even, between -127 and 127; an
    activation with scale s = limit / 127 becomes round(x / s), between -128 and 127. Zeros stay zeros. Biases stay FP32:
    TensorRT refuses a DequantizeLinear of INT32. Where Q/DQ stand is said in bake.precision.placement; which operators stay
    in float, and why, stands in the file (docs/annotations.md).

    Args:
        model: FP32, one input, opset 13 or newer, all weights loaded; not changed.
        images: float32 (count, ...), what scales of activations are calibrated on.
        method: how the limits of activations are chosen, as in `activation_limits`.
        exclude: names of operators to leave in float.
        progress: told how far the work is.

    Returns:
        A new model of the same opsets, inputs, outputs, names and metadata. Initializers of weights keep their names. Up to
        opset 17 they stay FP32, rounded to multiples of the scale, followed by QuantizeLinear and DequantizeLinear, the one
        form that TensorRT 8.6 reads; from opset 18 on they are INT8, followed by DequantizeLinear.

    Raises:
        UsageError: the model is quantized already, its opset is too old, `exclude` names no operator of it, a weight is not
            finite, or the images do not fit it.
    """
    model = inline_functions(model)
    graph = ir.from_proto(model)
    _require_plain(graph, exclude)
    placement = place_quantizers(graph, exclude=exclude)
    sources = {source.name or "" for source in placement.tensors.values()}
    limits = activation_limits(model, sources, images, method=method, progress=progress) if sources else {}
    InsertQuantizers(placement, limits)(graph)
    return ir.to_proto(graph)


class InsertQuantizers(ir.passes.InPlacePass):
    """Put Q/DQ where a placement says; nothing else of the model is changed but what its weights' annotations must say.

    Requires a limit for every tensor of the placement. Ensures that every layer of it reads its weight and its input through
    DequantizeLinear.
    """

    def __init__(self, placement: Placement, limits: Mapping[str, float]) -> None:
        super().__init__()
        self._placement = placement
        self._limits = limits

    def requires(self, model: ir.Model) -> None:
        """Every tensor has a limit."""
        assert all((source.name or "") in self._limits for source in self._placement.tensors.values())

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the operators and store the weights."""
        names = _Names(model)
        for value, source in self._placement.tensors.items():
            _insert_pair(model.graph, value, _activation_scale(self._limits[source.name or ""]), names)
        # A weight may have several readers, which are all redirected at once
        for weight, layer in {layer.inputs[1]: layer for layer in self._placement.layers}.items():
            assert weight is not None
            _quantize_weight(model, layer, weight, names)
        for node, reason in self._placement.floats.items():
            node.metadata_props[keys.FLOAT_REASON] = reason
        for node, reason in self._placement.float_outputs.items():
            node.metadata_props[keys.FLOAT_OUTPUT_REASON] = reason
        return ir.passes.PassResult(model, bool(self._placement.layers or self._placement.floats))

    def ensures(self, model: ir.Model) -> None:
        """Nothing was forgotten."""
        for layer in self._placement.layers:
            producers = [value.producer() for value in layer.inputs[:2] if value is not None]
            assert all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


class _Names:
    """Names that no value or operator of the model has."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str | None] = set()
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            self._taken |= {node.name, *(value.name for value in (*node.inputs, *node.outputs) if value is not None)}
        self._taken |= {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}

    def new(self, name: str) -> str:
        """`name`, or with underscores behind it."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _require_plain(model: ir.Model, exclude: Collection[str]) -> None:
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < _OLDEST_OPSET:
        raise UsageError(
            f"the model is of opset {opset}, in which INT8 weights cannot have a scale for each channel; export it in opset "
            f"{_OLDEST_OPSET} or newer"
        )
    names = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        names.add(node.name)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise UsageError(f"the model is quantized already ({node.op_type} {node.name}); give the FP32 one")
    unknown = sorted(set(exclude) - {name for name in names if name is not None})
    if unknown:
        raise UsageError(f"no operator of the model is named {unknown[0]}, which is to stay in float; check the name")


def _activation_scale(limit: float) -> npt.NDArray[np.float32]:
    """float32 (): one step of the grid. What is always zero keeps any scale; 1 overflows nowhere."""
    return _step(np.asarray(limit, dtype=np.float32))


def _step(largest: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    tiny = np.finfo(np.float32).tiny
    return np.where(largest == 0, np.float32(1), np.maximum(largest / np.float32(LARGEST_LEVEL), tiny)).astype(np.float32)


def _insert_pair(graph: ir.Graph, value: ir.Value, scale: npt.NDArray[np.float32], names: _Names) -> None:
    """Let all operators of the graph read `value` rounded to INT8; an output of the network stays as it is."""
    readers = [use for use in value.uses() if use.node.graph is graph]
    quantizer, dequantizer, result = _pair(graph, value, scale, names, axis=None)
    producer = value.producer()
    if producer is None:
        first = graph[0]
        graph.insert_before(first, (quantizer, dequantizer))
    else:
        graph.insert_after(producer, (quantizer, dequantizer))
    for use in readers:
        use.node.replace_input_with(use.idx, result)


def _pair(
    graph: ir.Graph, value: ir.Value, scale: npt.NDArray[np.float32], names: _Names, *, axis: int | None
) -> tuple[ir.Node, ir.Node, ir.Value]:
    """QuantizeLinear and DequantizeLinear, and what comes out; the caller inserts them."""
    parameters = _parameters(graph, value, scale, names)
    attributes = {} if axis is None else {"axis": axis}
    quantized = ir.Value(name=names.new(f"{value.name}_quantized"), shape=value.shape, type=ir.TensorType(ir.DataType.INT8))
    quantizer = ir.node(
        "QuantizeLinear",
        [value, *parameters],
        attributes,
        outputs=[quantized],
        name=names.new(f"{value.name}_QuantizeLinear"),
    )
    dequantizer = _dequantizer(quantized, parameters, axis, str(value.name), names)
    return quantizer, dequantizer, dequantizer.outputs[0]


def _dequantizer(
    quantized: ir.Value, parameters: tuple[ir.Value, ir.Value], axis: int | None, name: str, names: _Names
) -> ir.Node:
    output = ir.Value(name=names.new(f"{name}_dequantized"), shape=quantized.shape, type=ir.TensorType(ir.DataType.FLOAT))
    attributes = {} if axis is None else {"axis": axis}
    return ir.node(
        "DequantizeLinear",
        [quantized, *parameters],
        attributes,
        outputs=[output],
        name=names.new(f"{name}_DequantizeLinear"),
    )


def _parameters(graph: ir.Graph, value: ir.Value, scale: npt.NDArray[np.float32], names: _Names) -> tuple[ir.Value, ir.Value]:
    """Initializers for the scale and for zero points, which are all 0; ONNX takes the INT8 from their type."""
    stored = []
    for suffix, array in (("scale", scale), ("zero_point", np.zeros(scale.shape, dtype=np.int8))):
        tensor = ir.tensor(array, name=names.new(f"{value.name}_{suffix}"))
        initializer = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(initializer)
        stored.append(initializer)
    return stored[0], stored[1]


def _quantize_weight(model: ir.Model, layer: ir.Node, weight: ir.Value, names: _Names) -> None:
    tensor = constant_of(weight)
    assert tensor is not None
    array = tensor.numpy()
    if not np.isfinite(array).all():
        raise UsageError(f"weight {weight.name} holds values that are not finite (NaN or infinity); check the trained weights")
    axis = output_channel_axis(layer)
    others = tuple(index for index in range(array.ndim) if index != axis)
    scale = _step(np.abs(array).max(axis=others, initial=0))
    steps = np.expand_dims(scale, others)
    levels = np.clip(np.rint(array / steps), -LARGEST_LEVEL, LARGEST_LEVEL).astype(np.int8)
    readers = list(weight.uses())
    nodes: tuple[ir.Node, ...]
    if model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)) <= _FLOAT_WEIGHTS_OPSET:
        # Adding 0 turns the -0.0 of a small negative weight into 0.0
        _store(weight, tensor, levels * steps + np.float32(0))
        quantizer, dequantizer, _ = _pair(model.graph, weight, scale, names, axis=axis)
        nodes = (quantizer, dequantizer)
    else:
        _store(weight, tensor, levels)
        dequantizer = _dequantizer(weight, _parameters(model.graph, weight, scale, names), axis, str(weight.name), names)
        nodes = (dequantizer,)
    reading = {use.node for use in readers}
    model.graph.insert_before(next(node for node in model.graph if node in reading), nodes)
    density = repr(float(np.count_nonzero(levels) / levels.size)) if levels.size else None
    stored = constant_of(weight)
    assert stored is not None
    for metadata in (stored.metadata_props, *(use.node.metadata_props for use in readers)):
        if density is not None and keys.DENSITY in metadata:
            metadata[keys.DENSITY] = density
    for use in readers:
        use.node.replace_input_with(use.idx, dequantizer.outputs[0])


def _store(weight: ir.Value, old: ir.TensorProtocol, array: npt.NDArray[np.generic]) -> None:
    """Replace the constant and keep its name, documentation and annotations."""
    new = ir.Tensor(array, name=old.name, doc_string=old.doc_string, metadata_props=dict(old.metadata_props))
    producer = weight.producer()
    if producer is None:
        weight.const_value = new
    else:
        producer.attributes["value"] = ir.AttrTensor("value", new)
    weight.type = ir.TensorType(new.dtype)
