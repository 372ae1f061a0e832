"""Reading an ONNX file into the read-only view."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import onnx.shape_inference

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import require_file, sha256_bytes
from masksparse_deploy.graph.model import Graph, Node, Shape, WeightedLayer

__all__ = ["parse_graph", "read_graph", "weighted_layers"]


def read_graph(path: Path) -> Graph:
    """Read an ONNX file (weights inside the file).

    Raises:
        UsageError: there is no such file.
        ArtifactError: truncated, not ONNX, or refused by the ONNX checker.
    """
    return parse_graph(require_file(path, "ONNX file").read_bytes(), name=str(path))


def parse_graph(data: bytes, *, name: str) -> Graph:
    """The same from the file's content; `name` is used in messages."""
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # protobuf, checker and shape inference raise unrelated types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{name} is damaged or not a valid ONNX file ({reason}); export it again") from error
    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for index, proto in enumerate(graph.node):
        attributes = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
        if proto.op_type == "Constant" and "value" in attributes:
            constants[proto.output[0]] = attributes["value"]
            continue
        nodes.append(
            Node(
                name=proto.name or f"{proto.op_type}_{index}",
                op=proto.op_type,
                domain=proto.domain,
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes=attributes,
                metadata=_properties(proto),
            )
        )
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes: dict[str, Shape] = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
    shapes.update({key: tuple(array.shape) for key, array in constants.items()})
    return Graph(
        nodes=tuple(nodes),
        constants=constants,
        constant_metadata={tensor.name: _properties(tensor) for tensor in graph.initializer},
        inputs={value.name: shapes[value.name] for value in graph.input if value.name not in constants},
        outputs=tuple(value.name for value in graph.output),
        shapes=shapes,
        opsets={entry.domain: entry.version for entry in model.opset_import},
        metadata=_properties(model),
        sha256=sha256_bytes(data),
    )


def weighted_layers(graph: Graph) -> tuple[WeightedLayer, ...]:
    """All Conv, Gemm and MatMul nodes whose second input is a constant, in graph order."""
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    layers = []
    for node in graph.nodes:
        if node.domain or node.op not in ("Conv", "Gemm", "MatMul") or node.inputs[1] not in graph.constants:
            continue
        weight = graph.constants[node.inputs[1]]
        bias = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        # MatMul and Gemm multiply x (n, k) by B (k, m); transB stores B as (m, k), the layout of a convolution
        by_rows = node.op == "Conv" or node.attributes.get("transB", 0)
        group_axis = 1 if by_rows else max(weight.ndim - 2, 0)
        layers.append(
            WeightedLayer(
                node=node,
                weight_name=node.inputs[1],
                weight=weight,
                bias=bias,
                group_axis=group_axis,
                groups=int(node.attributes.get("group", 1)) if node.op == "Conv" else 1,
                consumer_count=readers[node.inputs[1]],
            )
        )
    return tuple(layers)


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else value


def _properties(proto: Any) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
