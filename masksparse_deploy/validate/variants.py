"""The networks between the dense reference and the sparse file: masks alone, then new values, then the file's precision."""

from dataclasses import dataclass, replace

import numpy as np

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.positions import position_masks
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.graph.twins import masked_layers

__all__ = ["Variants", "make_variants", "without_grids"]

_FILES = "the dense file, without the grids of its activations; what its weights lost in their precision is not counted"
_UNCONVERTED = "the dense network before it was converted to the precision of the file"
_PLAIN = "the dense file"


@dataclass(frozen=True, eq=False, kw_only=True)
class Variants:
    """Networks that are evaluated in float64, each one step further.

    Attributes:
        dense: the reference.
        masked: its weights where the sparse network has any, its own biases at positions that the sparse network masks,
            everything else as in `dense`.
        sparse: with all values of the sparse network.
        file: the sparse file, which rounds to its grids.
        reference: what `dense` is, in words.
    """

    dense: Graph
    masked: Graph
    sparse: Graph
    file: Graph
    reference: str

    @property
    def steps(self) -> tuple[Graph, Graph, Graph, Graph]:
        """All four, in order."""
        return (self.dense, self.masked, self.sparse, self.file)


def make_variants(dense: Graph, sparse: Graph, unconverted: tuple[Graph, Graph] | None = None) -> Variants:
    """The networks between a dense and a sparse file.

    Args:
        dense: the file of the dense engine.
        sparse: the file of the sparse engine.
        unconverted: both before they were converted to another precision. Without them the files themselves are taken, without
            the grids of activations.

    Raises:
        ArtifactError: the unconverted networks do not have the layers of the sparse file.
    """
    first, last = unconverted or (without_grids(dense), without_grids(sparse))
    reference = _UNCONVERTED
    if unconverted is None:
        is_plain = all(layer.quantized is None and layer.weight.dtype == np.float32 for layer in weighted_layers(dense))
        reference = _PLAIN if is_plain else _FILES
    names = {layer.node.name for layer in weighted_layers(first)} & {layer.node.name for layer in weighted_layers(last)}
    for layer in weighted_layers(sparse):
        if layer.node.name not in names:
            raise ArtifactError(
                f"the network before its conversion has no layer {layer.node.name}, which the sparse ONNX file has; give the "
                "two files that 'masksparse bake' wrote with it"
            )
    return Variants(dense=first, masked=_masked(first, last), sparse=last, file=sparse, reference=reference)


def without_grids(graph: Graph) -> Graph:
    """The same graph with activations that are not rounded to a grid; weights stay as they are stored."""
    nodes: list[Node] = []
    passed: set[str] = set()
    for node in graph.nodes:
        quantizes = node.op == "QuantizeLinear" and node.inputs[0] not in graph.constants
        if quantizes or (node.op == "DequantizeLinear" and node.inputs[0] in passed):
            passed.add(node.outputs[0])
            node = replace(node, op="Identity", inputs=node.inputs[:1], attributes={})
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)) if passed else graph


def _masked(dense: Graph, sparse: Graph) -> Graph:
    """The dense network with zeros where the sparse one has them in the layers that differ, and with its masks of positions."""
    constants, shapes = dict(dense.constants), dict(dense.shapes)
    biases = {layer.node.name: layer.bias for layer in weighted_layers(dense)}
    positions = position_masks(sparse)
    for masked in positions.values():
        bias = biases.get(masked.conv.name)
        keep, computed, constant = masked.where.inputs
        constants[keep] = sparse.constants[keep]
        held = np.zeros(masked.constant.shape, dtype=np.float32) if bias is None else bias
        constants[constant] = held.reshape(1, -1, 1, 1)
        shapes.update({name: sparse.shapes[name] for name in (keep, computed, constant) if name in sparse.shapes})
    renamed: dict[str, str] = {}
    for one, other in masked_layers(dense, sparse):
        name = f"{one.node.name}/masked"
        constants[name], shapes[name] = _kept(one, other), one.weight.shape
        renamed[one.node.name] = name
    nodes = tuple(
        replace(node, inputs=(node.inputs[0], renamed[node.name], *node.inputs[2:])) if node.name in renamed else node
        for node in (sparse if positions else dense).nodes  # those of the dense network, and what masks positions
    )
    return replace(dense, nodes=nodes, constants=constants, shapes=shapes)


def _kept(dense: WeightedLayer, sparse: WeightedLayer) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.where(sparse.weight != 0, dense.weight.astype(np.float64), 0.0)
