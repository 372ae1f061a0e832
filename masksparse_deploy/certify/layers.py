"""One layer at a time: what masking removed, for every input of the layer."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.lipschitz import weight_norm
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.positions import LayerPositions, difference_norm
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.core.artifacts.certificate import LayerBound
from masksparse_deploy.graph.model import Graph, WeightedLayer

__all__ = ["known_shapes", "layer_bound"]

Array = npt.NDArray[Any]


def layer_bound(
    dense: WeightedLayer,
    sparse: WeightedLayer,
    stored_name: str,
    shapes: Mapping[str, tuple[int, ...]],
    norms: NormCache,
    positions: LayerPositions | None = None,
) -> LayerBound:
    """The bounds for one masked layer.

    Args:
        dense: the layer in the dense graph.
        sparse: the same in the sparse one.
        stored_name: of its weight in the file.
        shapes: of its input and output, without the batch.
        norms: operator norms known so far.
        positions: which of its output are computed; None if all.

    Raises:
        NoRuleError: neither a convolution of one to three dimensions nor a product with a matrix, or its bias is no constant.
    """
    node = dense.node
    if dense.bias is None and any(node.inputs[2:]):
        raise NoRuleError(f"{node.op} with a computed bias")
    source, result = shapes[node.inputs[0]], shapes[node.outputs[0]]
    channel_axis = 0 if node.op in ("Conv", "ConvTranspose") else len(result) - 1
    kernel, sparse_kernel = dense.weight.astype(np.float64), sparse.weight.astype(np.float64)
    difference = difference_norm(node, kernel, sparse_kernel, positions, source, norms)
    remaining = np.where(sparse_kernel != 0, kernel, 0)
    return LayerBound(
        layer=stored_name.removesuffix(".weight"),
        node=node.name,
        initializer=stored_name,
        removed_norm=difference_norm(node, kernel, remaining, positions, source, norms).value,
        difference_norm=difference.value,
        dense_norm=weight_norm(node, kernel, source, norms).value,
        sparse_norm=weight_norm(node, sparse_kernel, source, norms).value,
        bias_difference=_bias_difference(dense, sparse, positions, channels=result[channel_axis]),
        output_positions=math.prod(result) // result[channel_axis],
        method=difference.method,
    )


def known_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shapes of one sample, without the batch, of all tensors for which the file tells them completely."""
    known = {}
    for name, shape in graph.shapes.items():
        lengths = tuple(length for length in shape[1:] if length is not None)
        if name not in graph.constants and len(lengths) == len(shape) - 1:
            known[name] = lengths
    return known


def _bias_difference(dense: WeightedLayer, sparse: WeightedLayer, positions: LayerPositions | None, *, channels: int) -> float:
    """The norm of what the layers add differently at one position, the largest over positions."""
    if positions is not None:
        biases = [0.0 if layer.bias is None else layer.bias.astype(np.float64) for layer in (dense, sparse)]
        places = (positions.in_both, positions.dense_only, positions.sparse_only, positions.in_neither)
        found = zip(positions.offsets(*biases), places, strict=True)
        return max(float(np.linalg.norm(offset)) for offset, kept in found if kept.any())
    if dense.bias is None or sparse.bias is None:
        return 0.0
    difference = dense.bias.astype(np.float64) - sparse.bias.astype(np.float64)
    # Gemm broadcasts its bias over the rows and, where it is shorter, over the columns
    spread = np.broadcast_to(difference, np.broadcast_shapes(difference.shape, (channels,)))
    return float(np.linalg.norm(spread)) * abs(float(dense.node.attributes.get("beta", 1.0)))
