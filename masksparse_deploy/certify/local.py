"""Rules that hold between the two networks' own activations: products of two tensors, and normalization.

They have no useful constant for all inputs, but a proved one for each sample, from what both networks compute for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.rule import NoRuleError, Rule
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.normalization import NORMALIZATIONS, epsilon_of, normalized_axes

__all__ = ["LocalRule", "is_local", "local_rule"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalRule:
    """The rule in l2, and the bounds of the output's elements from those of the inputs' elements, in the inputs' order."""

    l2: Rule
    elements: Array


def is_local(node: Node, variables: frozenset[str]) -> bool:
    """Whether `node` is bounded by a local rule."""
    return node.op in NORMALIZATIONS or (node.op == "Mul" and set(node.inputs) <= variables)


def local_rule(
    node: Node,
    graph: Graph,
    dense: Sequence[Array],
    sparse: Sequence[Array],
    distances: Sequence[Array],
    shape: tuple[int, ...],
) -> LocalRule:
    """The rule of a node for which `is_local`.

    Args:
        node: the operator.
        graph: the sparse graph, for the constants.
        dense: its variable inputs in the dense network, (count, ...).
        sparse: the same in the sparse network.
        distances: bounds of the inputs' elements, (count, ...).
        shape: of the output, with the count.

    Raises:
        NoRuleError: it mixes samples.
    """
    if node.op == "Mul":
        return _product(dense, sparse, distances, shape)
    return _normalization(node, graph, dense[0], sparse[0], distances[0])


def _product(dense: Sequence[Array], sparse: Sequence[Array], distances: Sequence[Array], shape: tuple[int, ...]) -> LocalRule:
    """The product rule: a b - a~ b~ = a (b - b~) + b~ (a - a~), element by element."""
    if any(array.ndim < len(shape) for array in dense):
        raise NoRuleError("Mul across samples")
    (a, b), (_, b_sparse) = dense, sparse
    factors = _spread_norms(b_sparse, a.shape, shape), _spread_norms(a, b.shape, shape)
    return LocalRule(l2=Rule(factors=factors), elements=np.abs(b_sparse) * distances[0] + np.abs(a) * distances[1])


def _spread_norms(other: Array, own: Sequence[int], shape: tuple[int, ...]) -> Array:
    """The largest norm, for each sample, of what one element of a tensor of shape `own` is multiplied with."""
    squares = np.broadcast_to(other**2, shape)
    repeated = tuple(axis for axis in range(1, len(shape)) if own[axis] == 1 and shape[axis] > 1)
    sums = squares.sum(axis=repeated) if repeated else squares
    norms: Array = np.sqrt(sums.reshape(len(squares), -1).max(axis=1))
    return norms


def _normalization(node: Node, graph: Graph, dense: Array, sparse: Array, distance: Array) -> LocalRule:
    """For each normalized group, ||n(x) - n(y)|| <= ||x - y|| / sqrt(s(x) s(y)), s the root of variance plus epsilon.

    With v the centred group and the number sqrt(d epsilon) beside it, n is sqrt(d) v / ||v||, and
    ||v / ||v|| - w / ||w|| ||^2 = 2 - 2 cos <= ||v - w||^2 / (||v|| ||w||). Centring contracts.
    """
    axes = normalized_axes(node, dense.ndim)
    if 0 in axes:
        raise NoRuleError(f"{node.op} across samples")
    sizes = _deviations(dense, axes, epsilon_of(node)) * _deviations(sparse, axes, epsilon_of(node))
    scale = np.abs(graph.constants[node.inputs[1]].astype(np.float64))
    if node.op == "InstanceNormalization":
        scale = scale.reshape((-1,) + (1,) * (dense.ndim - 2))
    largest = scale if node.op == "InstanceNormalization" else scale.max()
    factors = (largest / np.sqrt(sizes)).reshape(len(dense), -1).max(axis=1)
    groups = np.sqrt((distance**2).sum(axis=axes, keepdims=True))
    return LocalRule(l2=Rule(factors=(factors,)), elements=np.broadcast_to(scale * groups / np.sqrt(sizes), dense.shape))


def _deviations(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    deviations: Array = np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    return deviations
