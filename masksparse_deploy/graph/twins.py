"""Which layers of a dense file and its sparse twin differ."""

import numpy as np

from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["masked_layers"]


def masked_layers(dense: Graph, sparse: Graph) -> tuple[tuple[WeightedLayer, WeightedLayer], ...]:
    """(dense, sparse) layers that are annotated with a pattern or whose weights or biases differ, in graph order.

    The two must be the same graph but for the values of weights; the certify stage refuses others.
    """
    return tuple(
        (one, other)
        for one, other in zip(weighted_layers(dense), weighted_layers(sparse), strict=True)
        if PATTERN in other.node.metadata
        or not np.array_equal(one.weight, other.weight)
        or not np.array_equal(np.asarray(one.bias), np.asarray(other.bias))
    )
