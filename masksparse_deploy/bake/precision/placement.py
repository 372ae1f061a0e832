"""Where QuantizeLinear and DequantizeLinear belong, so that TensorRT runs a convolution as one INT8 kernel.

TensorRT fuses a convolution with its bias, a residual addition and an activation, and the fused kernel reads and writes INT8
where a DequantizeLinear stands before it and a QuantizeLinear behind its last operator; only such kernels come in a sparse
variant. Q/DQ between a convolution and what is fused with it splits the kernel ("Q/DQ Layer-Placement Recommendations" in
NVIDIA's TensorRT documentation): the Q/DQ therefore stands behind the activation, and of the two inputs of a residual
addition only the one that is not fused is quantized.
"""

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Placement", "constant_of", "output_channel_axis", "place_quantizers"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "Gelu")
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
# Operators whose outputs are values of their first input, so that its scale represents them exactly.
_SELECTING = ("MaxPool", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad")


@dataclass(frozen=True, eq=False, kw_only=True)
class Placement:
    """What to quantize in a model.

    Attributes:
        layers: operators that will multiply INT8 by INT8, in graph order.
        floats: the other operators with a constant weight, each with the reason.
        float_outputs: of `layers`, those that give their output in FP32, each with the reason.
        tensors: activations that Q/DQ pairs belong behind, in graph order, each with the tensor whose scale it takes: itself,
            or where its values come from unchanged.
    """

    layers: tuple[ir.Node, ...]
    floats: Mapping[ir.Node, str]
    float_outputs: Mapping[ir.Node, str]
    tensors: Mapping[ir.Value, ir.Value]


def place_quantizers(model: ir.Model, *, exclude: Collection[str] = ()) -> Placement:
    """Decide from the operators and shapes of a graph alone, so that a dense model and its sparse twin get the same answer.

    Args:
        model: of FP32 weights, without Q/DQ.
        exclude: names of operators to leave in float.
    """
    fixed = _fixed_values(model)
    weighted = _weighted_nodes(model, fixed)
    floats = {node: reason for node in weighted if (reason := _why_float(node, model.graph, exclude))}
    layers = tuple(node for node in weighted if node not in floats)
    residuals = _residual_inputs(model.graph, set(layers), fixed)
    wanted = set(residuals.values())
    float_outputs = {}
    for layer in layers:
        wanted.add(_input(layer, 0))
        end = _fused_end(layer.outputs[0], residuals, fixed)
        if any(use.node.graph is model.graph for use in end.uses()):
            wanted.add(end)
        else:
            float_outputs[layer] = "it is an output of the network" if end.is_graph_output() else "no operator here reads it"
    ordered = [value for value in _values(model.graph) if value in wanted]
    return Placement(
        layers=layers,
        floats=floats,
        float_outputs=float_outputs,
        tensors={value: _source(value, wanted) for value in ordered},
    )


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of the output of a Constant node; None for anything else."""
    producer = value.producer()
    if producer is None:
        return value.const_value if value.is_initializer() else None
    if producer.op_type == "Constant" and producer.domain == "" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    return None


def output_channel_axis(layer: ir.Node) -> int:
    """The axis of a layer's weight that holds its output channels (per group, for a ConvTranspose)."""
    if layer.op_type == "MatMul":
        weight = constant_of(_input(layer, 1))
        assert weight is not None
        return len(weight.shape) - 1
    transposed = layer.attributes.get("transB") if layer.op_type == "Gemm" else None
    return 0 if layer.op_type == "Conv" or (transposed is not None and transposed.as_int() != 0) else 1


def _fixed_values(model: ir.Model) -> Set[ir.Value]:
    """Values that do not depend on the network's input, in bodies too; what operators with bodies give counts as dependent."""
    fixed = set(model.graph.initializers.values())
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        fixed.update(value for value in node.inputs if value is not None and value.is_initializer())
        given = [value for value in node.inputs if value is not None]
        bodies = any(attribute.type in _BODIES for attribute in node.attributes.values())
        if node.op_type == "Constant" or (given and not bodies and fixed.issuperset(given)):
            fixed.update(node.outputs)
    return fixed


def _weighted_nodes(model: ir.Model, fixed: Set[ir.Value]) -> list[ir.Node]:
    """Convolutions and matrix products by something that does not depend on the network's input."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if node.domain == "" and node.op_type in WEIGHTED and _input(node, 1) in fixed]


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # these inputs are not optional
    return value


def _why_float(node: ir.Node, graph: ir.Graph, exclude: Collection[str]) -> str | None:
    weight = _input(node, 1)
    tensor = constant_of(weight)
    if node.name in exclude:
        return "excluded from quantization"
    if node.graph is not graph:
        return "inside the body of another operator"
    if _input(node, 0).is_initializer():
        return "its input is a constant"
    if tensor is None:
        producer = weight.producer()
        return f"its weight is computed in the graph ({producer.op_type if producer else 'unknown'})"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is stored as {tensor.dtype.name}, not FLOAT"
    if len(tensor.shape) < 2:
        return "its weight is a vector, without output channels"
    if weight.is_graph_input() or weight.is_graph_output():
        return "its weight is an input or output of the network"
    axis = output_channel_axis(node)
    for use in weight.uses():
        same = use.idx == 1 and use.node.op_type in WEIGHTED and use.node.graph is graph and use.node.name not in exclude
        if not same or output_channel_axis(use.node) != axis:
            return f"its weight is also read by {use.node.name or use.node.op_type}, in another way"
    return None


def _residual_inputs(graph: ir.Graph, layers: Set[ir.Node], fixed: Set[ir.Value]) -> dict[ir.Node, ir.Value]:
    """For every addition that a layer is fused with: its other input. The layer with more weights is fused."""
    found = {}
    for node in graph:
        if node.op_type != "Add" or node.domain:
            continue
        operands = (_input(node, 0), _input(node, 1))
        sizes = [_fusable_weights(value, layers, fixed) for value in operands]
        if fixed.isdisjoint(operands) and max(sizes) > 0:
            found[node] = operands[0 if sizes[0] < sizes[1] else 1]
    return found


def _fusable_weights(value: ir.Value, layers: Set[ir.Node], fixed: Set[ir.Value]) -> int:
    """How many weights the layer has that gives `value` to the one operator reading it; 0 if it is not such an output."""
    producer = value.producer()
    if producer is None or value.is_graph_output() or len(value.uses()) != 1:
        return 0
    if producer.op_type == "Add" and producer not in layers:
        # A matrix product and its bias may be two operators
        variable = [source for source in producer.inputs if source is not None and source not in fixed]
        return _fusable_weights(variable[0], layers, fixed) if len(variable) == 1 else 0
    tensor = constant_of(_input(producer, 1)) if producer in layers else None
    return tensor.size if tensor is not None else 0


def _fused_end(value: ir.Value, residuals: Mapping[ir.Node, ir.Value], fixed: Set[ir.Value]) -> ir.Value:
    """The tensor that the fused kernel around a layer's output writes."""
    while (following := _fused_next(value, residuals, fixed)) is not None:
        value = following
    return value


def _fused_next(value: ir.Value, residuals: Mapping[ir.Node, ir.Value], fixed: Set[ir.Value]) -> ir.Value | None:
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or not readers or any(node.domain or node.graph is not readers[0].graph for node in readers):
        return None
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = [source for source in readers[0].inputs if source is not value] or [None]
        fused = other is not None and (other in fixed or residuals.get(readers[0]) is other)
        return readers[0].outputs[0] if fused else None
    if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS:
        return readers[0].outputs[0]
    # x * sigmoid(x), for which opsets before 24 have no operator of its own
    by_type = {node.op_type: node for node in readers}
    if len(readers) == 2 and set(by_type) == {"Sigmoid", "Mul"}:
        gate, product = by_type["Sigmoid"].outputs[0], by_type["Mul"]
        if gate in product.inputs and len(gate.uses()) == 1 and not gate.is_graph_output():
            return product.outputs[0]
    return None


def _source(value: ir.Value, wanted: Collection[ir.Value]) -> ir.Value:
    """The first quantized tensor on the way to `value` that its values come from unchanged."""
    source = value
    current = value
    while (node := current.producer()) is not None and _selects(node) and current is node.outputs[0]:
        current = _input(node, 0)
        if current in wanted:
            source = current
    return source


def _selects(node: ir.Node) -> bool:
    if node.domain or node.op_type not in _SELECTING:
        return False
    if node.op_type != "Pad" or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    # Zero is on every symmetric grid, another number need not be.
    padding = constant_of(node.inputs[2])
    return padding is not None and not padding.numpy().any()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
