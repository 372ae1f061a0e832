"""The ONNX file an engine is built from: checked, its precision told, intermediate tensors marked as outputs."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.shape_inference

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph, weighted_layers

__all__ = ["Source", "precision_of", "read_source"]

_IMAGE_RANK = 4
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """A model ready to be given to a runtime.

    Attributes:
        content: the file's bytes, with the weights that lie in other files put in.
        graph: a view of the file as it is on disk.
        precision: of the weights: "fp32", "fp16", "bf16", "int8", or several joined by "+".
        input_name: the one image input.
        input_shape: (batch, channels, height, width); None for a dynamic length.
        exposed: tensors to return besides the model's own outputs.
    """

    content: bytes
    graph: Graph
    precision: str
    input_name: str
    input_shape: tuple[int | None, ...]
    exposed: tuple[str, ...]

    @property
    def own_operators(self) -> bool:
        """Whether the file has operators that its dense twin has not: it was rewritten, or has masked positions."""
        if self.graph.metadata.get(keys.ROLE) == keys.ROLE_REWRITTEN:
            return True
        return any(keys.POSITIONS in node.metadata for node in self.graph.nodes)

    def with_exposed_outputs(self) -> bytes:
        """The serialized model with the exposed tensors behind its own outputs; raises UsageError if one has no known type."""
        if not self.exposed:
            return self.content
        model = onnx.load_model_from_string(self.content)
        known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
        for name in self.exposed:
            if name not in known:
                raise UsageError(
                    f"the type of the tensor {name!r} cannot be inferred, so that it cannot be exposed; leave it out"
                )
            model.graph.output.append(known[name])
        return bytes(model.SerializeToString(deterministic=True))


def read_source(path: Path, expose: tuple[str, ...] = ()) -> Source:
    """Read the ONNX file and check that it computes the tensors in `expose`.

    Raises:
        UsageError: no such file, not exactly one image input, or no such tensor.
        ArtifactError: the file is damaged.
    """
    graph = read_graph(path)
    content = _content(path, graph)
    if len(graph.inputs) != 1:
        raise UsageError(f"{path} has {len(graph.inputs)} inputs ({', '.join(graph.inputs)}); an engine takes one image input")
    ((input_name, input_shape),) = graph.inputs.items()
    if len(input_shape) != _IMAGE_RANK:
        raise UsageError(
            f"{path}: input {input_name} has shape {input_shape}; an engine takes images (batch, channels, height, width)"
        )
    return Source(
        content=content,
        graph=graph,
        precision=precision_of(graph),
        input_name=input_name,
        input_shape=input_shape,
        exposed=_check_exposed(graph, expose, path),
    )


def _content(path: Path, graph: Graph) -> bytes:
    """The file as one message; `graph` is what is known of it."""
    content = path.read_bytes()
    # The digest is the file's own where all weights are inside.
    if graph.sha256 == sha256_bytes(content):
        return content
    try:
        whole: bytes = onnx.load(path).SerializeToString(deterministic=True)
    except ValueError as error:  # what protobuf raises above 2 GB
        raise UsageError(
            f"{path} and its data files are more than the 2 GB that can be handed to a runtime at once; deploy a smaller model"
        ) from error
    return whole


def precision_of(graph: Graph) -> str:
    """The precision of the weights, read from the graph: an engine's precision belongs to the file it is built from."""
    if any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in graph.nodes):
        return "int8"
    weights = [layer.weight for layer in weighted_layers(graph)]
    arrays = weights or [array for array in graph.constants.values() if np.issubdtype(array.dtype, np.floating)]
    names = sorted({_PRECISIONS.get(array.dtype.name, array.dtype.name) for array in arrays})
    return "+".join(names) or "fp32"


def _check_exposed(graph: Graph, expose: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Those of `expose` that are not outputs anyway, without repetitions."""
    produced = {name for node in graph.nodes for name in node.outputs if name}
    for name in expose:
        if name not in produced:
            close = difflib.get_close_matches(name, produced, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it computes {len(produced)} tensors; inputs and weights are not"
            )
            raise UsageError(f"{path} computes no tensor {name!r} to expose; {hint}")
    return tuple(name for name in dict.fromkeys(expose) if name not in graph.outputs)
