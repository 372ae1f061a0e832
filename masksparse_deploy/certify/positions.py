"""Masked positions of a layer's output, and norms of what the two networks compute differently there.

With M and M~ the positions that the dense and the sparse layer compute, L = M K - M~ K~ is D = K - K~ at positions in both, K
or -K~ at those in one, and nothing at the others; docs/bounds.md, section 7.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.lipschitz import weight_norm
from masksparse_deploy.certify.norms.geometry import norm_geometry
from masksparse_deploy.certify.operator_norm import NormBound, NormCache
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.positions import MaskedPositions

__all__ = ["LayerPositions", "Masks", "difference_norm"]

Array = npt.NDArray[Any]
# The masked positions of a graph without its Where operators, by the name of the convolution's output.
Masks = Mapping[str, MaskedPositions]

_ROUNDING = 1 + 2.0**-50


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerPositions:
    """One convolution in both networks: which positions are computed, and what the others hold.

    Attributes:
        dense_keep: bool (height, width).
        sparse_keep: likewise.
        dense_constant: float64 (channels,) of dropped positions; zeros where there are none.
        sparse_constant: likewise.
    """

    dense_keep: npt.NDArray[np.bool_]
    sparse_keep: npt.NDArray[np.bool_]
    dense_constant: Array
    sparse_constant: Array

    @classmethod
    def of(cls, name: str, dense: Masks, sparse: Masks) -> "LayerPositions | None":
        """Those of the convolution whose output is called `name`; None if both networks compute all of it."""
        either = dense.get(name) or sparse.get(name)
        if either is None:
            return None
        keeps, constants = [], []
        for masks in (dense, sparse):
            masked = masks.get(name)
            keeps.append(np.ones_like(either.keep) if masked is None else masked.keep)
            constants.append(np.zeros(len(either.constant)) if masked is None else masked.constant.astype(np.float64))
        return cls(dense_keep=keeps[0], sparse_keep=keeps[1], dense_constant=constants[0], sparse_constant=constants[1])

    @property
    def differ(self) -> bool:
        """Whether the two networks hold something else at some position, the weights apart."""
        if not np.array_equal(self.dense_keep, self.sparse_keep):
            return True
        return bool(self.in_neither.any()) and not np.array_equal(self.dense_constant, self.sparse_constant)

    @property
    def in_both(self) -> npt.NDArray[np.bool_]:
        """Positions that both compute."""
        return self.dense_keep & self.sparse_keep

    @property
    def dense_only(self) -> npt.NDArray[np.bool_]:
        """Positions that the dense network computes."""
        return self.dense_keep & ~self.sparse_keep

    @property
    def sparse_only(self) -> npt.NDArray[np.bool_]:
        """Positions that the sparse network computes."""
        return ~self.dense_keep & self.sparse_keep

    @property
    def in_neither(self) -> npt.NDArray[np.bool_]:
        """Positions that hold a constant in both."""
        return ~self.dense_keep & ~self.sparse_keep

    def offsets(self, dense_bias: Array | float, sparse_bias: Array | float) -> tuple[Array, ...]:
        """What the layers add, dense minus sparse, float64 (channels,): at positions in both, dense, sparse and neither."""
        held, zeros = (self.dense_constant, self.sparse_constant), np.zeros(len(self.dense_constant))
        return (
            zeros + dense_bias - sparse_bias,
            zeros + dense_bias - held[1],
            zeros + held[0] - sparse_bias,
            held[0] - held[1],
        )

    def select(self, both: Array, dense_only: Array, sparse_only: Array, neither: Array | float) -> Array:
        """One tensor (..., height, width) of four, by position."""
        kept = np.where(self.sparse_keep, both, dense_only)
        return np.where(self.dense_keep, kept, np.where(self.sparse_keep, sparse_only, neither))


def difference_norm(
    node: Node, dense: Array, sparse: Array, positions: LayerPositions | None, shape: tuple[int, ...], norms: NormCache
) -> NormBound:
    """A bound of the norm of L: root of the sum of squares of those at positions in both, in one and in the other.

    Args:
        node: the layer.
        dense: its weight K, float64.
        sparse: its weight K~ in the sparse network.
        positions: None if both networks compute all positions.
        shape: of the layer's input, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: as `weight_norm`.
    """
    if positions is None:
        return weight_norm(node, dense - sparse, shape, norms)
    parts = ((dense - sparse, positions.in_both), (dense, positions.dense_only), (sparse, positions.sparse_only))
    found = [_norm_at(node, weight, kept, shape, norms) for weight, kept in parts if weight.any() and kept.any()]
    if not found:
        return weight_norm(node, np.zeros_like(dense), shape, norms)
    if len(found) == 1:
        return found[0]
    methods = dict.fromkeys(bound.method for bound in found)
    return NormBound(value=math.hypot(*(bound.value for bound in found)) * _ROUNDING, method=" + ".join(methods))


def _norm_at(node: Node, weight: Array, kept: npt.NDArray[np.bool_], shape: tuple[int, ...], norms: NormCache) -> NormBound:
    """A bound of the norm of x -> weight * x at the positions `kept` alone: that of all, or (d)."""
    everywhere = weight_norm(node, weight, shape, norms)
    if kept.all() or math.prod(weight.shape[2:]) == 1:  # with one tap (d) is the norm everywhere
        return everywhere
    geometry = norm_geometry(node, size=shape[1:], taps=weight.shape[2:])
    here = norms.at_positions(weight, kept=kept, strides=geometry.strides, dilations=geometry.dilations, groups=geometry.groups)
    return min(here, everywhere, key=lambda bound: bound.value)
