"""What differs between two ONNX files, field by field, wherever in the file it is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.strip import each_message
from masksparse_deploy.graph.annotations import PREFIX

__all__ = ["SameContent", "any_content", "constants", "identical", "proto_differences", "tensor_array"]

# same_content(name of the constant, "" for other tensors; tensor of one file; tensor of the other)
SameContent = Callable[[str, onnx.TensorProto, onnx.TensorProto], bool]

# Repeated fields whose order means nothing, and what tells their entries apart.
_KEYED = {
    "attribute": "name",
    "metadata_props": "key",
    "opset_import": "domain",
    "quantization_annotation": "tensor_name",
    "value_info": "name",
}
# How a tensor is stored, not what it holds.
_STORAGE = {
    "data_location",
    "double_data",
    "external_data",
    "float_data",
    "int32_data",
    "int64_data",
    "raw_data",
    "string_data",
    "uint64_data",
}
_CHUNK_BYTES = 1 << 24


def proto_differences(one: onnx.ModelProto, other: onnx.ModelProto, same_content: SameContent) -> Iterator[str]:
    """Say what differs besides this package's annotations, as "graph.node[conv1].attribute[pads].ints".

    Every field that ONNX knows is compared, in all bodies and functions. Not compared is what carries no information: the
    order of properties, whether a tensor lies inside the file, and shapes noted of values that do not exist or whose shape
    the tensor or the output itself tells.

    Args:
        one: a model.
        other: another model.
        same_content: decides about the elements of two tensors whose name, type and shape agree.
    """
    yield from _Comparison(same_content).messages(one, other, "", "")


def any_content(name: str, one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    """Leaves the elements of tensors out of a comparison."""
    return True


def constants(message: Any) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The initializers and the tensors of Constant nodes in all graphs of a message, with the names that they define."""
    for part in each_message(message):
        if isinstance(part, onnx.GraphProto):
            yield from ((tensor.name, tensor) for tensor in part.initializer)
        elif isinstance(part, onnx.NodeProto) and _defined_by(part):
            yield from ((_defined_by(part), attribute.t) for attribute in part.attribute if attribute.name == "value")


def tensor_array(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[Any]:
    """The elements of a tensor; those in another file are mapped into memory, not read."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return np.array(list(tensor.string_data), dtype=np.object_)
    stored = ir.serde.deserialize_tensor(tensor)
    if isinstance(stored, ir.ExternalTensor):
        stored.base_dir = folder
    return stored.numpy()


def identical(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays hold the same bits, compared in pieces."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == np.object_:
        return bool((one == other).all())
    ours, theirs = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    starts = range(0, len(ours), _CHUNK_BYTES)
    return all(np.array_equal(ours[at : at + _CHUNK_BYTES], theirs[at : at + _CHUNK_BYTES]) for at in starts)


class _Comparison:
    """Walks two messages of one type side by side."""

    def __init__(self, same_content: SameContent) -> None:
        self._same_content = same_content

    def messages(self, one: Any, other: Any, where: str, constant: str) -> Iterator[str]:
        """`constant` names the value that a tensor in the message defines, as far as it does."""
        is_tensor = isinstance(one, onnx.TensorProto)
        agree = True
        for field in one.DESCRIPTOR.fields:
            if is_tensor and field.name in _STORAGE:
                continue
            path = f"{where}.{field.name}" if where else field.name
            for difference in self._fields(one, other, field, path, constant):
                agree = False
                yield difference
        if is_tensor and agree and not self._same_content(constant, one, other):
            yield f"{where}: other values"

    def _fields(self, one: Any, other: Any, field: Any, path: str, constant: str) -> Iterator[str]:
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.message_type is None:
            if _plain(field.name, ours) != _plain(field.name, theirs):
                yield path
        elif field.name in _KEYED:
            yield from self._keyed(_by_key(one, field.name), _by_key(other, field.name), path, constant)
        elif hasattr(ours, "append"):
            if len(ours) != len(theirs):
                yield f"{path}: {len(ours)} and {len(theirs)}"
            for index, (mine, yours) in enumerate(zip(ours, theirs, strict=False)):
                name = getattr(mine, "name", "") or str(index)
                yield from self.messages(mine, yours, f"{path}[{name}]", _defined_by(mine))
        elif one.HasField(field.name) != other.HasField(field.name):
            yield path
        elif one.HasField(field.name):
            yield from self.messages(ours, theirs, path, constant)

    def _keyed(self, ours: dict[str, Any], theirs: dict[str, Any], path: str, constant: str) -> Iterator[str]:
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in ours or key not in theirs:
                yield f"{path}[{key}]: in one file only"
            else:
                yield from self.messages(ours[key], theirs[key], f"{path}[{key}]", constant)


def _plain(name: str, value: Any) -> Any:
    """Numbers and texts as Python values that compare as they should: NaN is NaN, and "ai.onnx" is the standard domain."""
    if hasattr(value, "append"):
        return [repr(item) for item in value]
    return repr("" if name == "domain" and value == "ai.onnx" else value)


def _by_key(message: Any, name: str) -> dict[str, Any]:
    """The entries of a repeated field that say something, by what tells them apart."""
    entries = {getattr(entry, _KEYED[name]): entry for entry in getattr(message, name)}
    if name == "metadata_props":
        return {key: entry for key, entry in entries.items() if not key.startswith(PREFIX)}
    if name == "opset_import":
        return {"" if key == "ai.onnx" else key: entry for key, entry in entries.items()}
    if name == "value_info":
        computed = {output for node in message.node for output in node.output}
        known = (computed | _names(message.input)) - _names(message.output)
        return {key: entry for key, entry in entries.items() if key in known}
    return entries


def _names(values: Any) -> set[str]:
    """The inputs and outputs of a graph are messages, those of a function names."""
    return {value if isinstance(value, str) else value.name for value in values}


def _defined_by(message: Any) -> str:
    """The name of the constant that an initializer or a Constant node gives."""
    if isinstance(message, onnx.TensorProto):
        return message.name
    if isinstance(message, onnx.NodeProto) and message.op_type == "Constant":
        return str(message.output[0])
    return ""
