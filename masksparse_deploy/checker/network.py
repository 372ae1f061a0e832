"""An ONNX file as the checker sees it: the nodes that compute, the constants they read, and where these come from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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

from masksparse_deploy.checker.document import canonical_json
from masksparse_deploy.checker.errors import CheckerError, DamagedError, UsageError
from masksparse_deploy.checker.operators import apply
from masksparse_deploy.checker.positions import Masked, taken_out

__all__ = ["Network", "attributes_of", "is_floating", "read_by", "read_network", "shapes_of"]

Array = npt.NDArray[Any]

# Operators that only store a constant in another form; what they give is a constant again.
_FORMS = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
# The key under which a baked file says that a node is masked.
_PATTERN = "masksparse.pattern"
# Domains of operators that runtimes have themselves, and take in place of a function of the same name.
_BUILT_IN = ("", "ai.onnx", "com.microsoft")
# Of samples where a file leaves it open; not 1, which some operators treat in another way.
_COUNT = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """One file.

    Attributes:
        path: of the file, for messages.
        model: the file's model, local functions inlined.
        sha256: digest of the file; with weights in other files, of the JSON object of both (docs/check.md).
        nodes: the operators in order, without Constant nodes, those that only give a constant another form and those that mask
            positions; all have names.
        constants: what the nodes read that does not depend on the input, in the type in which it arrives.
        stored: for each of `constants` the name in the file of the initializer or Constant that it comes from.
        masked: names of nodes that are annotated with a pattern.
        masks: masked positions of convolutions, by the name of their output.
    """

    path: Path
    model: onnx.ModelProto
    sha256: str
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Array]
    stored: Mapping[str, str]
    masked: frozenset[str]
    masks: Mapping[str, Masked]

    @property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """The graph's inputs that are no initializers."""
        initializers = {tensor.name for tensor in self.model.graph.initializer}
        return tuple(value for value in self.model.graph.input if value.name not in initializers)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(value.name for value in self.model.graph.output)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 1))

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, None if it is dynamic."""
        dims = self.inputs[0].type.tensor_type.shape.dim
        return int(dims[0].dim_value) if dims and dims[0].dim_value > 0 else None

    def variables(self) -> frozenset[str]:
        """Names of the tensors that depend on the values of the input."""
        names = {value.name for value in self.inputs}
        for node in self.nodes:
            if names & read_by(node) and node.op_type != "Shape":
                names.update(name for name in node.output if name)
        return frozenset(names)


def read_network(path: Path) -> Network:
    """Read an ONNX file and the weights beside it.

    Raises:
        UsageError: there is no such file.
        DamagedError: not a valid ONNX file.
    """
    if not path.is_file():
        raise UsageError(f"ONNX file {path} does not exist; give the files that the certificate is about")
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        sha256 = _digest(data, model, path.parent)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        model = _inlined(model)
        return _network(path, model, sha256)
    except CheckerError:
        raise
    except Exception as error:  # protobuf, the checker and the reading of tensors raise unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedError(f"{path} is damaged or not a valid ONNX file ({reason}); export it again") from error


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions; raises a ValueError where runtimes may take other operators than are read here."""
    if len({entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}) > 1:
        raise ValueError("it imports several versions of the standard operators")
    for function in model.functions:
        if function.domain in _BUILT_IN or function.domain.startswith(("ai.onnx.", "com.microsoft.")):
            raise ValueError(f"its function {function.domain}.{function.name} stands for an operator that runtimes have")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if model.functions:
        raise ValueError(f"its function {model.functions[0].name} is written for another opset than the model")
    return model


def shapes_of(network: Network, image: Sequence[int] | None) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors for one sample, without the batch, as far as ONNX shape inference tells them.

    `image` is the shape of one image; None if only the lengths that the file fixes are known.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    names = {value.name for value in network.inputs}
    for value in model.graph.input:
        if value.name not in names:
            continue
        dims = value.type.tensor_type.shape.dim
        if dims and network.batch is None:
            dims[0].dim_value = _COUNT  # a number, so that shapes that are computed from it become known
        for dim, length in zip(dims[1:], image or (), strict=image is not None):
            dim.dim_value = length
    del model.graph.value_info[:]  # what the file claims about its own tensors is not needed, so it is not trusted
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and all(dim.dim_value > 0 for dim in dims[1:]):
            shapes[value.name] = tuple(int(dim.dim_value) for dim in dims[1:])
    return shapes


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, text as str."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def read_by(node: onnx.NodeProto, *, bodies_only: bool = False) -> frozenset[str]:
    """Names of the tensors that a node reads, also in the bodies of an If, Loop or Scan; names inside of these among them."""
    names = set() if bodies_only else {name for name in node.input if name}
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            names.update(value.name for value in body.output)
            names.update(name for inner in body.node for name in read_by(inner))
    return frozenset(names)


def is_floating(array: Array) -> bool:
    """Whether an array holds real numbers, also of the formats that NumPy does not know itself."""
    return array.dtype.name.startswith(("float", "bfloat"))


def _digest(data: bytes, model: onnx.ModelProto, folder: Path) -> str:
    inside = hashlib.sha256(data).hexdigest()
    locations = {
        entry.value
        for tensor in _tensors(model.graph)
        if onnx.external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if not locations:
        return inside
    outside = {}
    for location in locations:
        inner = folder.resolve() / location
        if folder.resolve() not in inner.resolve().parents:
            raise DamagedError(f"weights in {location!r} lie outside of the model's folder; copy them beside the model")
        outside[location] = hashlib.sha256(inner.read_bytes()).hexdigest()
    return hashlib.sha256(canonical_json({"onnx": inside, "external": outside})).hexdigest()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All stored tensors, those in attributes and bodies included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for body in (attribute.g, *attribute.graphs):
                yield from _tensors(body)


def _network(path: Path, model: onnx.ModelProto, sha256: str) -> Network:
    if model.graph.sparse_initializer:
        raise DamagedError(f"{path} stores sparse tensors; export it with dense initializers")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = {name: name for name in constants}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    nodes = []
    for node in _named(model.graph.node):
        inputs = [name for name in node.input if name]
        fixed = bool(inputs) and all(name in constants for name in inputs)
        if node.op_type == "Constant" and not node.domain:
            constants[node.output[0]] = np.asarray(apply(node, [], opset=opset))
            stored[node.output[0]] = node.output[0]
        elif fixed and node.op_type in _FORMS and not node.domain:
            constants[node.output[0]] = apply(node, [constants[name] if name else None for name in node.input], opset=opset)
            stored[node.output[0]] = stored[node.input[0]]
        else:
            nodes.append(node)
    outputs = {value.name for value in model.graph.output}
    nodes, masks = taken_out(nodes, constants, outputs)
    read = {name for node in nodes for name in read_by(node)} | outputs
    return Network(
        path=path,
        model=model,
        sha256=sha256,
        nodes=tuple(nodes),
        constants={name: array for name, array in constants.items() if name in read},
        stored=stored,
        masked=frozenset(node.name for node in nodes if any(entry.key == _PATTERN for entry in node.metadata_props)),
        masks=masks,
    )


def _named(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Copies in which every node has a name: the type and the place of one that has none in the file."""
    taken = {node.name for node in nodes}
    named = []
    for index, node in enumerate(nodes):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if not node.name:
            copy.name = f"{node.op_type}_{index}"
            while copy.name in taken:
                copy.name += "_"
        copy.domain = "" if node.domain == "ai.onnx" else node.domain
        named.append(copy)
    return named
