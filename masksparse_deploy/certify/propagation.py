"""What the network recursion finds for a batch of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LastLayer", "Propagation", "joined"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class LastLayer:
    """What the pairwise form of the margin test needs, if the network ends in a product with a constant matrix.

    Attributes:
        rows: float64 (classes, features), the sparse file's weight.
        input_bounds: claim -> float64 (count,), bound of the l2 distance of the layer's input.
        outputs: float64 (count, classes), the sparse layer applied to the dense network's features.
    """

    rows: Array
    input_bounds: Mapping[str, Array]
    outputs: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Propagation:
    """The recursion's result for a batch of samples.

    Attributes:
        bounds: claim -> float64 (count,), of the l2 distance between the dense and the sparse output, for the claims that have
            a rule for every operator.
        dense: float64 (count, classes), output of the dense network.
        sparse: the same of the sparse network.
        gains: node name -> float64 (count,), ||f(x) - f~(x)|| / ||x|| without biases, for weighted nodes that differ.
        shapes: of all variable tensors, without the count.
        missing: operators without a rule, as they are used, sorted.
        missing_norms: what else has no rule where only the norms of activations are measured, sorted.
        last_layer: None if the network ends in something else than Gemm or MatMul.
    """

    bounds: Mapping[str, Array]
    dense: Array
    sparse: Array
    gains: Mapping[str, Array]
    shapes: dict[str, tuple[int, ...]]
    missing: tuple[str, ...]
    missing_norms: tuple[str, ...]
    last_layer: LastLayer | None


def joined(parts: Sequence[Propagation]) -> Propagation:
    """The results of consecutive batches of the same two networks as one."""
    first = parts[0]
    last = [part.last_layer for part in parts if part.last_layer is not None]
    joined_last = None
    if last:
        joined_last = LastLayer(
            rows=last[0].rows,
            input_bounds=_concatenated([part.input_bounds for part in last]),
            outputs=np.concatenate([part.outputs for part in last]),
        )
    return Propagation(
        bounds=_concatenated([part.bounds for part in parts]),
        dense=np.concatenate([part.dense for part in parts]),
        sparse=np.concatenate([part.sparse for part in parts]),
        gains=_concatenated([part.gains for part in parts]),
        shapes=first.shapes,
        missing=first.missing,
        missing_norms=first.missing_norms,
        last_layer=joined_last,
    )


def _concatenated(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
