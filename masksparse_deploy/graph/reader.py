"""Reading an ONNX file into the read-only view."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference

from masksparse_deploy.core.errors import ArtifactError, MasksparseError, UsageError
from masksparse_deploy.core.files import canonical_json, require_file, sha256_bytes
from masksparse_deploy.graph.external import ExternalFiles
from masksparse_deploy.graph.functions import inlined, require_finite_expansion, require_own_operators
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import Array, Body, Graph, Node, Shape
from masksparse_deploy.graph.tensors import TensorStore

__all__ = ["parse_graph", "read_graph", "weighted_layers"]

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
# What other formats begin with that come under the name of a model.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer",
}


def read_graph(path: Path) -> Graph:
    """Read an ONNX file; weights in other files beside it are mapped into memory, not loaded.

    Raises:
        UsageError: there is no such file, or it stores tensors as sparse ones.
        ArtifactError: truncated, not ONNX, refused by the ONNX checker, or its weights lie where they must not.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"ONNX file {path} is not a regular file; give the path of a file")
    size = require_file(path, "ONNX file").stat().st_size
    if size > _PROTOBUF_LIMIT_BYTES:
        raise ArtifactError(
            f"{path} has {size:,} bytes, and no ONNX file can have more than {_PROTOBUF_LIMIT_BYTES:,}: larger models keep "
            "their weights in other files (onnx.save_model with save_as_external_data=True)"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"ONNX file {path} cannot be read ({error.strerror or error}); check its permissions") from error
    return _parse(data, ExternalFiles(path, str(path)), name=str(path))


def parse_graph(data: bytes, *, name: str) -> Graph:
    """The same from the file's content, which must hold all weights; `name` is used in messages.

    Raises:
        UsageError: the weights lie in other files, or are stored as sparse tensors.
        ArtifactError: truncated, not ONNX, or refused by the ONNX checker.
    """
    return _parse(data, ExternalFiles(None, name), name=name)


def _parse(data: bytes, files: ExternalFiles, *, name: str) -> Graph:
    foreign = next((what for start, what in _FOREIGN.items() if data.startswith(start)), None)
    if foreign is not None:
        raise ArtifactError(f"{name} is {foreign}, not an ONNX file; unpack or fetch the model, nothing is unpacked here")
    store = TensorStore(files)
    try:
        model = onnx.load_model_from_string(data)
        store.strip(model)
        _require_text(model)
        # protobuf gives memory back with the message as a whole
        model = onnx.load_model_from_string(model.SerializeToString())
        require_own_operators(model)
        require_finite_expansion(model)
        onnx.checker.check_model(model)
        model = onnx.shape_inference.infer_shapes(inlined(model), data_prop=True)
        inside = sha256_bytes(data)
        outside = files.digests()
        sha256 = sha256_bytes(canonical_json({"onnx": inside, "external": outside})) if outside else inside
        return _View(model, store, sha256).graph(model.graph)
    except MasksparseError as error:
        raise type(error)(str(error) if name in str(error) else f"{name}: {error}") from error
    except Exception as error:  # protobuf, checker, shape inference and tensor decoding raise unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{name} is damaged or not a valid ONNX file ({reason}); export it again") from error


class _View:
    """Makes the read-only view of a checked model whose weights are in `store`."""

    def __init__(self, model: onnx.ModelProto, store: TensorStore, sha256: str) -> None:
        self._store = store
        self._opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self._metadata = _properties(model)
        self._sha256 = sha256

    def graph(self, proto: onnx.GraphProto) -> Graph:
        """The view of the main graph or of a body, bodies in it included."""
        constants = {tensor.name: self._store.array(tensor) for tensor in proto.initializer}
        if len(constants) < len(proto.initializer):
            raise ValueError("two initializers have the same name")
        metadata = {tensor.name: _properties(tensor) for tensor in proto.initializer}
        nodes, bodies = self._nodes(proto, constants, metadata)
        values = [*proto.input, *proto.value_info, *proto.output]
        shapes: dict[str, Shape] = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
        shapes.update({key: tuple(array.shape) for key, array in constants.items()})
        return Graph(
            nodes=nodes,
            constants=constants,
            constant_metadata=metadata,
            inputs={value.name: shapes.get(value.name, ()) for value in proto.input if value.name not in constants},
            outputs=tuple(value.name for value in proto.output),
            shapes=shapes,
            opsets=self._opsets,
            metadata=self._metadata,
            sha256=self._sha256,
            bodies=bodies,
        )

    def _nodes(
        self, graph: onnx.GraphProto, constants: dict[str, Array], metadata: dict[str, Mapping[str, str]]
    ) -> tuple[tuple[Node, ...], tuple[Body, ...]]:
        """The operators and the bodies in them; Constant nodes are put into `constants` and `metadata` instead."""
        taken = {proto.name for proto in graph.node}
        nodes: list[Node] = []
        bodies: list[Body] = []
        for index, proto in enumerate(graph.node):
            attributes = {attribute.name: self._attribute(attribute) for attribute in proto.attribute}
            domain = _domain(proto.domain)
            if proto.op_type == "Constant" and not domain and len(attributes) == 1:
                constants[proto.output[0]] = _constant(attributes)
                metadata[proto.output[0]] = _properties(proto.attribute[0].t)
                continue
            name = proto.name or f"{proto.op_type}_{index}"
            while not proto.name and name in taken:
                name += "_"
            node = Node(
                name=name,
                op=proto.op_type,
                domain=domain,
                inputs=tuple(proto.input),
                outputs=tuple(proto.output),
                attributes=attributes,
                metadata=_properties(proto),
            )
            nodes.append(node)
            for key, value in attributes.items():
                for body in value if isinstance(value, tuple) else (value,):
                    if isinstance(body, onnx.GraphProto):
                        bodies.append(Body(node=node, attribute=key, graph=self.graph(body)))
        return tuple(nodes), tuple(bodies)

    def _attribute(self, proto: onnx.AttributeProto) -> Any:
        value = onnx.helper.get_attribute_value(proto)
        if isinstance(value, onnx.TensorProto):
            return self._store.array(value)
        if isinstance(value, bytes):
            return value.decode()
        if hasattr(value, "append"):  # protobuf's repeated fields are neither lists nor registered sequences
            return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
        return value


def _require_text(message: Any) -> None:
    """Raise a ValueError for a name or another text that is not UTF-8: protobuf gives bytes in place of such."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                _require_text(inner)
        elif field.type == field.TYPE_STRING:
            texts = (value,) if isinstance(value, str | bytes) else value
            is_text = all(isinstance(text, str) for text in texts)
            if not is_text:
                raise ValueError(f"{field.full_name} holds text that is not UTF-8")


def _constant(attributes: Mapping[str, Any]) -> Array:
    """The value of a Constant node, which has exactly one attribute; ONNX gives 32-bit floats and 64-bit integers."""
    ((key, value),) = attributes.items()
    if key == "value" and isinstance(value, np.ndarray):
        return value
    if key in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if key in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    if key in ("value_string", "value_strings"):
        return np.asarray(value, dtype=np.object_)
    raise ValueError(f"a Constant node with the attribute {key}")


def _domain(text: str) -> str:
    """The standard domain is "", also written "ai.onnx"."""
    return "" if text == "ai.onnx" else text


def _properties(proto: Any) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    # some exporters write -1 for a length that is not fixed
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)
