"""Proved upper bounds of the l2 operator norm of convolutions and matrix products; docs/bounds.md derives each of them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.eigenvalue import Deficits
from masksparse_deploy.certify.norms.polyphase import polyphase
from masksparse_deploy.certify.norms.symbol import grid_maximum, grid_slack
from masksparse_deploy.certify.norms.unfolding import frobenius_bound, spectral_norm, unfolding_bound

__all__ = ["NormBound", "NormCache", "convolution_norm", "matrix_norm"]

Array = npt.NDArray[Any]

# The padded grid costs one factorisation a cell: it is used up to this many times the cells of the N x N grid.
_PADDED_GRID_FACTOR = 2


@dataclass(frozen=True, kw_only=True)
class NormBound:
    """An upper bound of an operator norm, and the name of the bound in docs/bounds.md that gave it."""

    value: float
    method: str


class NormCache:
    """Bounds by content of the kernel and geometry, so that nothing is computed twice within a run.

    Args:
        grid: N of bound (a).
        deficits: how matrices are proved to be definite; `cholesky_deficits` if None.
    """

    def __init__(self, *, grid: int, deficits: Deficits | None = None) -> None:
        self.grid = grid
        self._deficits = deficits
        self._known: dict[tuple[object, ...], NormBound] = {}

    def convolution(
        self, kernel: Array, *, strides: Sequence[int], dilations: Sequence[int], groups: int, padded_size: Sequence[int]
    ) -> NormBound:
        """`convolution_norm` with this cache's grid."""
        kernel = kernel.astype(np.float64)
        key = (kernel.shape, *strides, *dilations, groups, *padded_size, _digest(kernel))
        if key not in self._known:
            self._known[key] = convolution_norm(
                kernel,
                strides=strides,
                dilations=dilations,
                groups=groups,
                padded_size=padded_size,
                grid=self.grid,
                deficits=self._deficits,
            )
        return self._known[key]

    def matrix(self, matrix: Array) -> NormBound:
        """`matrix_norm`."""
        matrix = matrix.astype(np.float64)
        key = (matrix.shape, _digest(matrix))
        if key not in self._known:
            self._known[key] = matrix_norm(matrix, deficits=self._deficits)
        return self._known[key]


def convolution_norm(
    kernel: Array,
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
    padded_size: Sequence[int] | None = None,
    grid: int = 32,
    deficits: Deficits | None = None,
) -> NormBound:
    """The smallest of the upper bounds of ||x -> kernel * x|| for zero padding, which bounds the transpose as well.

    Args:
        kernel: (out_channels, in_channels / groups, *taps) with one to three spatial axes, finite. The stored weight of a
            transposed convolution is the kernel of the convolution that it is the transpose of.
        strides: along each spatial axis; 1 if None.
        dilations: along each spatial axis; 1 if None.
        groups: of the convolution; each bound is the largest over groups.
        padded_size: the spatial lengths of the input with its padding (of a transposed convolution: of its output before any
            is cut off), for the bound without slack (b); None if they may be any.
        grid: N of bound (a).
        deficits: how matrices are proved to be definite; `cholesky_deficits` if None.

    Returns:
        The bound, called "matrix" (exact), "padded grid" (b), "grid" (a), "unfolding" (c) or "frobenius".
    """
    axes = kernel.ndim - 2
    scaled, exponent = _scaled(kernel)
    phases, shrink = polyphase(scaled, strides=strides or (1,) * axes, dilations=dilations or (1,) * axes)
    phases = phases.reshape(groups, -1, *phases.shape[1:])
    taps = phases.shape[3:]
    if not phases.any() or set(taps) == {1}:
        return _bound(spectral_norm(phases.reshape(*phases.shape[:2], -1), deficits=deficits), exponent, "matrix")
    cells = tuple(1 if t == 1 else max(grid, 2 * t) for t in taps)
    slack, method = grid_slack(taps, cells), "grid"
    if padded_size is not None:
        padded = tuple(1 if t == 1 else max(t, math.ceil(n / s)) for n, s, t in zip(padded_size, shrink, taps, strict=True))
        # (b) is never above (a), so it replaces (a) where it does not cost more
        if math.prod(padded) <= _PADDED_GRID_FACTOR * math.prod(cells):
            cells, slack, method = padded, 1.0, "padded grid"
    bounds = [(slack * grid_maximum(phases, cells=cells, deficits=deficits), method), (frobenius_bound(phases), "frobenius")]
    # the most expensive last, and only what a few power steps leave a chance to be the smallest
    bounds.append((unfolding_bound(phases, limit=min(bounds)[0], deficits=deficits), "unfolding"))
    value, method = min(bounds)
    return _bound(value, exponent, method)


def matrix_norm(matrix: Array, *, deficits: Deficits | None = None) -> NormBound:
    """The largest singular value of a finite matrix (rows, columns), from above and exact to one part in 10^8."""
    scaled, exponent = _scaled(matrix)
    return _bound(spectral_norm(scaled[None], deficits=deficits), exponent, "matrix")


def _scaled(kernel: Array) -> tuple[Array, int]:
    """`kernel` in float64, times 2^-exponent so that its largest element is about 1 and no square leaves the range."""
    kernel = kernel.astype(np.float64)
    assert np.isfinite(kernel).all(), "certify refuses weights that are not finite"
    exponent = int(np.frexp(np.abs(kernel).max(initial=0))[1])
    return np.ldexp(kernel, -exponent), exponent


def _bound(value: float, exponent: int, method: str) -> NormBound:
    if value == 0:
        return NormBound(value=0.0, method=method)
    # the factor covers the last few roundings, and that of differences of weights, which are given in float64
    return NormBound(value=math.ldexp(value * (1 + 2**-40), exponent), method=method)


def _digest(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
