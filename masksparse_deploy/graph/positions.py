"""Masked positions in a file: the Where behind a convolution that puts a constant wherever a position is not computed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.annotations import POSITIONS, POSITIONS_LAYER
from masksparse_deploy.graph.model import Array, Graph, Node

__all__ = ["MaskedPositions", "is_positions_node", "masked_positions_of", "position_masks", "without_positions"]

_FORM = "Where(mask, output of a Conv, constant), mask a stored bool (1, 1, H, W), constant stored (1, C, 1, 1)"


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedPositions:
    """A convolution of whose output only some positions are computed.

    Attributes:
        conv: the convolution, whose output is read by `where` alone.
        where: the operator behind it, annotated with the mask's digest.
        layer: the name of the layer in the mask set, as the annotation has it; "" without one.
        keep: bool (height, width) of the output.
        constant: (channels,), what dropped positions hold, in the stored dtype.
    """

    conv: Node
    where: Node
    layer: str
    keep: npt.NDArray[np.bool_]
    constant: Array

    def apply(self, computed: Array) -> Array:
        """The output of the Where for that of the convolution, (count, channels, height, width), in its dtype."""
        return np.where(self.keep, computed, self.constant.astype(computed.dtype)[:, None, None])


def is_positions_node(node: Node) -> bool:
    """Whether an operator says that it masks positions; `masked_positions_of` tells whether it does."""
    return POSITIONS in node.metadata


def position_masks(graph: Graph) -> Mapping[str, MaskedPositions]:
    """The masked positions of the main graph: name of the tensor behind the Where -> which convolution, mask and constant.

    Only operators that are annotated as such count: a Where that a network has of its own is none of them.

    Raises:
        ArtifactError: an annotated operator is not of the form that baking writes.
    """
    found = (masked_positions_of(graph, node) for node in graph.nodes if is_positions_node(node))
    return {masked.where.outputs[0]: masked for masked in found}


def masked_positions_of(graph: Graph, where: Node) -> MaskedPositions:
    """Read one annotated operator; raises ArtifactError where it is not of the form that baking writes."""
    fault = _fault(graph, where)
    if fault:
        raise ArtifactError(
            f"node {where.name} is annotated with {POSITIONS}, but {fault}; it has the form {_FORM}: bake the masks again"
        )
    keep, _, constant = where.inputs
    return MaskedPositions(
        conv=_producer(graph, where),
        where=where,
        layer=where.metadata.get(POSITIONS_LAYER, ""),
        keep=graph.constants[keep][0, 0],
        constant=graph.constants[constant].reshape(-1),
    )


def without_positions(graph: Graph) -> Graph:
    """The same graph with every position computed: without the Where nodes, and the convolutions give the tensors behind them.

    This is the graph that the masks were baked into; `graph` itself if no position is masked.

    Raises:
        ArtifactError: an annotated operator is not of the form that baking writes.
    """
    masks = position_masks(graph)
    if not masks:
        return graph
    behind = {masked.conv.outputs[0]: name for name, masked in masks.items()}
    nodes = tuple(
        replace(node, outputs=tuple(behind.get(name, name) for name in node.outputs))
        for node in graph.nodes
        if node.outputs[0] not in masks
    )
    own = {name for masked in masks.values() for name in (masked.where.inputs[0], masked.where.inputs[2])}
    gone = own - _reads(replace(graph, nodes=nodes)).keys()
    return replace(
        graph,
        nodes=nodes,
        constants={name: array for name, array in graph.constants.items() if name not in gone},
        constant_metadata={name: notes for name, notes in graph.constant_metadata.items() if name not in gone},
        shapes={name: shape for name, shape in graph.shapes.items() if name not in gone and name not in behind},
    )


def _fault(graph: Graph, where: Node) -> str:
    if where.domain or where.op != "Where" or len(where.inputs) != 3:
        return f"it is a {where.op} of {len(where.inputs)} inputs"
    mask, computed, constant = where.inputs
    for name in (mask, constant):
        if name not in graph.constants:
            return f"{name or 'an input'} is computed"
    keep, values = graph.constants[mask], graph.constants[constant]
    if keep.dtype != np.bool_ or keep.ndim != 4 or keep.shape[:2] != (1, 1):
        return f"the mask {mask} is {keep.dtype} {keep.shape}"
    producers = [node for node in graph.nodes if computed in node.outputs]
    if not producers or producers[0].domain or producers[0].op != "Conv":
        return f"{computed} is not the output of a Conv"
    if _reads(graph)[computed] > 1:
        return f"{computed}, before it, is read elsewhere too"
    shape = graph.shapes.get(computed, ())
    if len(shape) != 4 or shape[2:] != keep.shape[2:]:
        return f"the mask {mask} has {keep.shape[2:]} positions, the convolution {shape[2:]}"
    if values.shape != (1, shape[1], 1, 1):
        return f"the constant {constant} has the shape {values.shape}, for {shape[1]} channels"
    return ""


def _producer(graph: Graph, where: Node) -> Node:
    return next(node for node in graph.nodes if where.inputs[1] in node.outputs)


def _reads(graph: Graph) -> Counter[str]:
    """How often each name is read, in bodies and as an output too."""
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    reads.update(graph.outputs)
    for body in graph.bodies:
        reads.update(_reads(body.graph))
    return reads
