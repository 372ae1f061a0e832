"""ONNX tensors as arrays, in every type and form of storage; sizes are checked before anything is allocated."""

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.external import ExternalFiles

__all__ = ["TensorStore", "dense_tensor"]

Array = npt.NDArray[Any]

# Types with several elements to a byte: bits of one.
_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
# Tensors up to this size stay in the model, for the shapes that ONNX infers from their values.
_KEPT_BYTES = 1024
_MARK = "#"
# What every NumPy can hold.
_MOST_AXES = 32
_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


class TensorStore:
    """Takes the content of a model's tensors out of it, and finds it again.

    Without it, the model is small: checking it, inlining its functions and inferring its shapes copy no weights, and
    protobuf's limit of 2 GB is not met.
    """

    def __init__(self, files: ExternalFiles) -> None:
        self._files = files
        self._arrays: list[Array] = []

    def strip(self, model: onnx.ModelProto) -> None:
        """Replace the content of every tensor by a mark, except of small ones.

        Raises:
            UsageError: a tensor is stored as a sparse one, or outside of a model that came as bytes.
            ArtifactError: a tensor's place outside is not allowed.
            ValueError: a tensor's content does not fit its shape and type.
        """
        self._strip_graph(model.graph)
        for function in model.functions:
            for node in function.node:
                self._strip_node(node)

    def array(self, tensor: onnx.TensorProto) -> Array:
        """The array of a tensor of a stripped model, read-only."""
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self._arrays[int(tensor.external_data[0].value.removeprefix(_MARK))]
        return dense_tensor(tensor, self._files)

    def _strip_graph(self, graph: onnx.GraphProto) -> None:
        if graph.sparse_initializer:
            raise _sparse_error(graph.sparse_initializer[0].values.name)
        for tensor in graph.initializer:
            self._strip_tensor(tensor)
        for node in graph.node:
            self._strip_node(node)

    def _strip_node(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise _sparse_error(node.output[0] if node.output else node.name)
            if attribute.HasField("t"):
                self._strip_tensor(attribute.t)
            for tensor in attribute.tensors:
                self._strip_tensor(tensor)
            if attribute.HasField("g"):
                self._strip_graph(attribute.g)
            for graph in attribute.graphs:
                self._strip_graph(graph)

    def _strip_tensor(self, tensor: onnx.TensorProto) -> None:
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        array = dense_tensor(tensor, self._files)
        if not outside and array.nbytes <= _KEPT_BYTES:
            return
        name, data_type, dims = tensor.name, tensor.data_type, list(tensor.dims)
        properties = list(tensor.metadata_props)
        tensor.Clear()
        tensor.name, tensor.data_type = name, data_type
        tensor.dims.extend(dims)
        tensor.metadata_props.extend(properties)
        if array.nbytes <= _KEPT_BYTES and _bits(data_type) % 8 == 0 and array.dtype != np.object_:
            tensor.raw_data = array.tobytes()
            return
        # onnx takes a location that begins with # for memory, and looks for no file
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{_MARK}{len(self._arrays)}")
        self._arrays.append(array)


def dense_tensor(tensor: onnx.TensorProto, files: ExternalFiles) -> Array:
    """The values of a tensor, read-only: NumPy's dtypes, those of ml_dtypes for BF16, FP8, FP4 and INT4.

    Raises:
        ValueError: the content is not as long as the shape and the type say, or the type is unknown.
        ArtifactError: see ExternalFiles.read.
    """
    array = _read(tensor, files)
    array.setflags(write=False)
    return array


def _read(tensor: onnx.TensorProto, files: ExternalFiles) -> Array:
    shape = tuple(tensor.dims)
    if len(shape) > _MOST_AXES or any(length < 0 for length in shape):
        raise ValueError(f"tensor {tensor.name} has the shape {shape[:_MOST_AXES]}")
    if tensor.HasField("segment"):
        raise ValueError(f"tensor {tensor.name} is stored in segments, which ONNX does not define further")
    if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise ValueError(f"tensor {tensor.name} has the unknown element type {tensor.data_type}")
    count = math.prod(shape)
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    places = [field for field in _TYPED_FIELDS if getattr(tensor, field)]
    places += ["raw_data"] * tensor.HasField("raw_data") + ["a file"] * outside
    if len(places) > 1:  # readers differ in which one they take
        raise ValueError(f"tensor {tensor.name} stores values in {' and in '.join(places)}")
    if outside or tensor.HasField("raw_data"):
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ValueError(f"tensor {tensor.name} stores text as raw data")
        byte_count = -(-count * _bits(tensor.data_type) // 8)
        content: Any = files.read(tensor, byte_count) if outside else tensor.raw_data
        if len(content) != byte_count:
            raise ValueError(f"tensor {tensor.name} has {len(content):,} bytes; its shape and type take {byte_count:,}")
        return _from_bytes(content, tensor.data_type, shape)
    found, expected = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))), _entry_count(tensor, count)
    if found != expected:
        raise ValueError(f"tensor {tensor.name} has {found:,} values; its shape and type take {expected:,}")
    return onnx.numpy_helper.to_array(tensor)


def _from_bytes(content: Any, data_type: int, shape: tuple[int, ...]) -> Array:
    """Little-endian elements; a view of `content` where they are whole bytes."""
    if _bits(data_type) % 8:
        packed = onnx.TensorProto(data_type=data_type, dims=shape, raw_data=bytes(content))
        return onnx.numpy_helper.to_array(packed)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    if sys.byteorder == "big":
        return np.frombuffer(content, dtype=dtype).byteswap().reshape(shape)
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def _bits(data_type: int) -> int:
    """Bits of one element."""
    packed = _PACKED_BITS.get(onnx.TensorProto.DataType.Name(data_type))
    return packed if packed is not None else onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8


def _entry_count(tensor: onnx.TensorProto, count: int) -> int:
    """How many entries the typed field has that holds `count` elements."""
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * count
    bits = _PACKED_BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type), 8)
    return -(-count * bits // 8) if bits in (2, 4) else count


def _sparse_error(name: str) -> UsageError:
    return UsageError(
        f"the file stores {name} as a sparse tensor (coordinates and values), which no engine takes for 2:4; export it with "
        "dense initializers"
    )
