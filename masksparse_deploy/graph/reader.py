"""Reading an ONNX file into the read-only view."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.external_data_helper
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import require_file, sha256_bytes
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import Graph, Node, Shape

__all__ = ["parse_graph", "read_graph", "weighted_layers"]


def read_graph(path: Path) -> Graph:
    """Read an ONNX file (weights inside the file).

    Raises:
        UsageError: there is no such file.
        ArtifactError: truncated, not ONNX, or refused by the ONNX checker.
        UsageError: the weights lie in other files, or are stored as sparse tensors.
    """
    return parse_graph(require_file(path, "ONNX file").read_bytes(), name=str(path))


def parse_graph(data: bytes, *, name: str) -> Graph:
    """The same from the file's content; `name` is used in messages."""
    try:
        model = onnx.load_model_from_string(data)
        _refuse_unreadable(model, name)
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
        nodes = _nodes(model.graph, constants)
    except UsageError:
        raise
    except Exception as error:  # protobuf, checker, shape inference and tensor decoding raise unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{name} is damaged or not a valid ONNX file ({reason}); export it again") from error
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes: dict[str, Shape] = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
    shapes.update({key: tuple(array.shape) for key, array in constants.items()})
    return Graph(
        nodes=nodes,
        constants=constants,
        constant_metadata={tensor.name: _properties(tensor) for tensor in graph.initializer},
        inputs={value.name: shapes[value.name] for value in graph.input if value.name not in constants},
        outputs=tuple(value.name for value in graph.output),
        shapes=shapes,
        opsets={_domain(entry.domain): entry.version for entry in model.opset_import},
        metadata=_properties(model),
        sha256=sha256_bytes(data),
    )


def _refuse_unreadable(model: onnx.ModelProto, name: str) -> None:
    """Weights that are not in the file itself cannot be digested with it; sparse tensors have no dense neighbours."""
    tensors = model.graph.initializer
    outside = next((tensor for tensor in tensors if onnx.external_data_helper.uses_external_data(tensor)), None)
    if outside is not None:
        raise UsageError(
            f"{name} keeps weights in other files ({outside.name} and perhaps more); put them inside with "
            "onnx.save_model(onnx.load(path), new_path, save_as_external_data=False)"
        )
    if model.graph.sparse_initializer:
        first = model.graph.sparse_initializer[0].values.name
        raise UsageError(f"{name} stores {first} as a sparse tensor; export it with dense initializers")


def _nodes(graph: onnx.GraphProto, constants: dict[str, npt.NDArray[Any]]) -> tuple[Node, ...]:
    """The operators; the values of Constant nodes are put into `constants` instead."""
    taken = {proto.name for proto in graph.node}
    nodes = []
    for index, proto in enumerate(graph.node):
        attributes = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
        domain = _domain(proto.domain)
        if proto.op_type == "Constant" and not domain and len(attributes) == 1:
            constants[proto.output[0]] = _constant(attributes)
            continue
        name = proto.name or f"{proto.op_type}_{index}"
        while not proto.name and name in taken:
            name += "_"
        nodes.append(
            Node(
                name=name,
                op=proto.op_type,
                domain=domain,
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes=attributes,
                metadata=_properties(proto),
            )
        )
    return tuple(nodes)


def _constant(attributes: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The value of a Constant node, which has exactly one attribute; ONNX gives 32-bit floats and 64-bit integers."""
    ((key, value),) = attributes.items()
    if key == "value":
        return value  # type: ignore[no-any-return]
    if key in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if key in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    if key in ("value_string", "value_strings"):
        return np.asarray(value, dtype=np.object_)
    raise ValueError(f"a Constant node with the attribute {key}")


def _array(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    array = onnx.numpy_helper.to_array(tensor)
    array.setflags(write=False)
    return array


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "append"):  # protobuf's repeated fields are neither lists nor registered sequences
        return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
    return value


def _domain(text: str) -> str:
    """The standard domain is "", also written "ai.onnx"."""
    return "" if text == "ai.onnx" else text


def _properties(proto: Any) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
