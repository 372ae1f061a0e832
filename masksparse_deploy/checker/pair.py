"""The two files side by side: whether they are the same graph, and which layers differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.network import Network, is_floating, read_by
from masksparse_deploy.checker.positions import Masked, Part, parts_of

__all__ = ["LAYERS", "Pair", "structural_difference"]

Array = npt.NDArray[Any]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """The dense and the sparse network, of which `structural_difference` found nothing."""

    dense: Network
    sparse: Network

    def weights(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        """What the layer `node` multiplies by in the two files, float64."""
        name = node.input[1]
        return self.dense.constants[name].astype(np.float64), self.sparse.constants[name].astype(np.float64)

    def biases(self, node: onnx.NodeProto) -> tuple[Array, Array] | None:
        """What it adds, None where that is nothing or not constant."""
        name = node.input[2] if len(node.input) > 2 else ""
        if name not in self.dense.constants:
            return None
        return self.dense.constants[name].astype(np.float64), self.sparse.constants[name].astype(np.float64)

    @property
    def has_masks(self) -> bool:
        """Whether positions are masked in either file."""
        return bool(self.dense.masks or self.sparse.masks)

    def parts(self, node: onnx.NodeProto) -> list[Part] | None:
        """What the outputs of `node` differ by at which positions; None where both files compute all of them."""
        masks = self.masks(node)
        return None if masks == (None, None) else parts_of(self.weights(node), self.biases(node), masks)

    def masks(self, node: onnx.NodeProto) -> tuple[Masked | None, Masked | None]:
        """The masked positions of `node` in the two files."""
        return self.dense.masks.get(node.output[0]), self.sparse.masks.get(node.output[0])

    def differs(self, node: onnx.NodeProto) -> bool:
        """Whether `node` reads a constant that has another value in the sparse file, or masked positions make a difference."""
        dense, sparse = self.dense.constants, self.sparse.constants
        changed = any(name in dense and not np.array_equal(dense[name], sparse[name]) for name in node.input)
        return changed or any(part.weight.any() or part.offset.any() for part in self.parts(node) or ())

    @cached_property
    def masked_layers(self) -> tuple[onnx.NodeProto, ...]:
        """Layers with a constant weight that differ, are annotated as masked or have masked positions, in graph order."""
        return tuple(
            node
            for node in self.sparse.nodes
            if node.op_type in LAYERS
            and not node.domain
            and len(node.input) > 1
            and node.input[1] in self.sparse.constants
            and (node.name in self.sparse.masked or self.masks(node) != (None, None) or self.differs(node))
        )


def structural_difference(pair: Pair) -> str | None:
    """The first difference between the two graphs apart from the values of their weights, None if there is none."""
    return next(_differences(pair.dense, pair.sparse), None)


def _differences(dense: Network, sparse: Network) -> Iterator[str]:
    if [_bare(value) for value in dense.inputs] != [_bare(value) for value in sparse.inputs]:
        yield "the inputs have other names, types or shapes"
    if dense.outputs != sparse.outputs:
        yield f"the outputs are {', '.join(dense.outputs)} and {', '.join(sparse.outputs)}"
    if dense.opset != sparse.opset:
        yield f"the operator sets are {dense.opset} and {sparse.opset}"
    for one, other in zip(dense.nodes, sparse.nodes, strict=False):
        if _bare(one) != _bare(other):
            yield f"the node {one.name!r} ({one.op_type}) is another one, {other.name!r} ({other.op_type}), or used otherwise"
    if len(dense.nodes) != len(sparse.nodes):
        yield f"they have {len(dense.nodes)} and {len(sparse.nodes)} nodes"
    if dense.constants.keys() != sparse.constants.keys():
        yield f"only one file has the constants {', '.join(sorted(dense.constants.keys() ^ sparse.constants.keys()))}"
    in_bodies = {name for node in dense.nodes for name in read_by(node, bodies_only=True)}
    for name in sorted(dense.constants.keys() & sparse.constants.keys()):
        first, second = dense.constants[name], sparse.constants[name]
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            yield f"the constant {name!r} is {first.dtype} {first.shape} and {second.dtype} {second.shape}"
        elif not is_floating(first) and not np.array_equal(first, second):
            yield f"the constant {name!r}, which is no weight, has other values"
        elif name in in_bodies and not np.array_equal(first, second):
            yield f"the weight {name!r}, which a body of an If, Loop or Scan reads, has other values: no bound covers it"


def _bare(message: Any) -> bytes:
    """The message without what may differ: annotations and comments. Weights in bodies may not: no layer bound covers them."""
    copy = type(message)()
    copy.CopyFrom(message)
    _strip(copy)
    content: bytes = copy.SerializeToString(deterministic=True)
    return content


def _strip(message: Any) -> None:
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                _strip(inner)
