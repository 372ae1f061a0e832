"""A dense model and its sparse twin, read together and checked to be the same graph."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.positions import LayerPositions, Masks
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.graph.annotations import ROLE, ROLE_DENSE, ROLE_SPARSE
from masksparse_deploy.graph.fold import fold_constants
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.positions import position_masks, without_positions
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.graph.simplify import simplified

__all__ = ["Pair", "pair_graphs", "read_pair"]

# BF16 and FP8 are of no kind that NumPy knows.
_FLOATING_KINDS = "fV"


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair:
    """Two graphs with the same nodes, edges, attributes and shapes, which differ in the values of weights only.

    Stored constants are folded to where they are read (see graph.fold), numbers computed (see graph.simplify), and the Where
    operators of masked positions taken out.

    Attributes:
        dense: the one graph.
        sparse: the other.
        stored_names: the name in the file of each operator's weight, by the operator's first output.
        dense_masks: masked positions of the dense network, by the name of the convolution's output; usually none.
        sparse_masks: the same of the sparse network.
    """

    dense: Graph
    sparse: Graph
    stored_names: Mapping[str, str]
    dense_masks: Masks = field(default_factory=dict)
    sparse_masks: Masks = field(default_factory=dict)

    def positions(self, node: Node) -> LayerPositions | None:
        """Which positions of the output of `node` the two networks compute; None if all."""
        return LayerPositions.of(node.outputs[0], self.dense_masks, self.sparse_masks)

    def differs(self, node: Node) -> bool:
        """Whether a constant that `node` reads has another value in the sparse graph, or other positions are masked."""
        dense, sparse = self.dense.constants, self.sparse.constants
        if any(name in dense and not np.array_equal(dense[name], sparse[name]) for name in node.inputs):
            return True
        positions = self.positions(node)
        return positions is not None and positions.differ


def read_pair(dense_path: Path, sparse_path: Path) -> Pair:
    """Read two ONNX files that the bake stage wrote together.

    Raises:
        UsageError: a file is missing, or the two are given in each other's place.
        ArtifactError: a file is damaged, or the two are not the same graph; names the first difference.
    """
    dense, sparse = read_graph(dense_path), read_graph(sparse_path)
    if (dense.metadata.get(ROLE), sparse.metadata.get(ROLE)) == (ROLE_SPARSE, ROLE_DENSE):
        raise UsageError(
            f"{dense_path} says that it is the sparse file, and {sparse_path} the dense one; exchange the two paths"
        )
    for path, graph in ((dense_path, dense), (sparse_path, sparse)):
        try:
            position_masks(fold_constants(graph))
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error
    try:
        return pair_graphs(dense, sparse)
    except ArtifactError as error:
        raise ArtifactError(f"{dense_path} and {sparse_path} {error}") from error


def pair_graphs(dense: Graph, sparse: Graph) -> Pair:
    """The same for graphs already read."""
    stored_names = {layer.node.outputs[0]: layer.stored_name for layer in weighted_layers(dense)}
    folded = [fold_constants(graph) for graph in (dense, sparse)]
    dense_masks, sparse_masks = (position_masks(graph) for graph in folded)
    computed = {name: masked.conv.outputs[0] for name, masked in dense_masks.items()}
    stored_names |= {name: stored_names[conv] for name, conv in computed.items() if conv in stored_names}
    dense, sparse = (simplified(without_positions(graph)) for graph in folded)
    difference = next(_differences(dense, sparse), None)
    if difference is not None:
        raise ArtifactError(f"do not belong together: {difference}; give the two files of one bake, or bake again")
    return Pair(dense=dense, sparse=sparse, stored_names=stored_names, dense_masks=dense_masks, sparse_masks=sparse_masks)


def _differences(dense: Graph, sparse: Graph, *, is_body: bool = False) -> Iterator[str]:
    if dict(dense.inputs) != dict(sparse.inputs):
        yield f"the inputs are {dict(dense.inputs)} and {dict(sparse.inputs)}"
    if dense.outputs != sparse.outputs:
        yield f"the outputs are {', '.join(dense.outputs)} and {', '.join(sparse.outputs)}"
    for one, other in zip(dense.nodes, sparse.nodes, strict=False):
        for what in ("op", "name", "domain", "inputs", "outputs"):
            if getattr(one, what) != getattr(other, what):
                yield f"node {one.name!r} ({one.op}) has {what} {getattr(one, what)!r} and {getattr(other, what)!r}"
        for key in sorted({*one.attributes, *other.attributes}):
            first, second = one.attributes.get(key), other.attributes.get(key)
            if not np.array_equal(np.asarray(first), np.asarray(second)):
                yield f"node {one.name!r} ({one.op}) has {key} {first} and {second}"
    if len(dense.nodes) != len(sparse.nodes):
        yield f"they have {len(dense.nodes)} and {len(sparse.nodes)} nodes"
    in_bodies = _read_in_bodies(dense)
    for name in sorted({*dense.constants, *sparse.constants}):
        one_array, other_array = dense.constants.get(name), sparse.constants.get(name)
        yield from _constant_differences(name, one_array, other_array, may_differ=not is_body and name not in in_bodies)
    for one_body, other_body in zip(dense.bodies, sparse.bodies, strict=False):
        where = f"in {one_body.attribute} of node {one_body.node.name!r}"
        yield from (f"{where}, {difference}" for difference in _differences(one_body.graph, other_body.graph, is_body=True))


def _read_in_bodies(graph: Graph) -> frozenset[str]:
    """Names that bodies of If, Loop and Scan read: no bound covers what differs there."""
    names: set[str] = set()
    for body in graph.bodies:
        names.update(name for node in body.graph.nodes for name in node.inputs)
        names.update(body.graph.outputs, _read_in_bodies(body.graph))
    return frozenset(names)


def _constant_differences(
    name: str, dense: npt.NDArray[Any] | None, sparse: npt.NDArray[Any] | None, *, may_differ: bool
) -> Iterator[str]:
    if dense is None or sparse is None:
        yield f"only the {'sparse' if dense is None else 'dense'} file has the weight {name!r}"
    elif (dense.shape, dense.dtype) != (sparse.shape, sparse.dtype):
        yield f"{name!r} is {dense.dtype} {dense.shape} and {sparse.dtype} {sparse.shape}"
    elif dense.dtype.kind not in _FLOATING_KINDS and not np.array_equal(dense, sparse):
        yield f"{name!r}, which is not a weight, has different values"
    elif not may_differ and not np.array_equal(dense, sparse):
        yield f"{name!r}, which a body of an If, Loop or Scan reads, has different values, and no bound covers it"
