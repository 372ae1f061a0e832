"""Proved upper bounds of the l2 operator norm of convolutions and matrix products; docs/bounds.md derives each of them."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.convolution import Evaluated, evaluate, is_plausible
from masksparse_deploy.certify.norms.eigenvalue import Deficits
from masksparse_deploy.certify.norms.polyphase import polyphase
from masksparse_deploy.certify.norms.positions import overlaps, perron_bound, product_rounding
from masksparse_deploy.certify.norms.store import NormStore

__all__ = ["NormBound", "NormCache", "convolution_norm", "matrix_norm"]

Array = npt.NDArray[Any]

# Part of every key in a file of norms: what another version found in another way is computed anew.
_VERSION = "cholesky 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormBound:
    """An upper bound of an operator norm, and the name of the bound in docs/bounds.md that gave it."""

    value: float
    method: str


class NormCache:
    """Bounds by content of the kernel and geometry, so that nothing is computed twice.

    Args:
        grid: N of bound (a).
        store: norms of earlier runs; those that pass `is_plausible` are taken, new ones are added, and the caller saves it.
        deficits: how matrices are proved to be definite; `cholesky_deficits` if None.
    """

    def __init__(self, *, grid: int, store: NormStore | None = None, deficits: Deficits | None = None) -> None:
        self.grid = grid
        self._store = store
        self._deficits = deficits
        self._known: dict[str, NormBound] = {}

    def convolution(
        self, kernel: Array, *, strides: Sequence[int], dilations: Sequence[int], groups: int, padded_size: Sequence[int]
    ) -> NormBound:
        """`convolution_norm` with this cache's grid."""
        kernel = kernel.astype(np.float64)
        geometry = (tuple(strides), tuple(dilations), groups, tuple(padded_size), self.grid)
        key = _key(kernel, geometry)
        if key not in self._known:
            prepared = _Prepared(kernel, strides=strides, dilations=dilations, groups=groups)
            found = None if self._store is None else self._store.find(key)
            if found is None or not is_plausible(found, prepared.kernel):
                found = prepared.evaluate(padded_size=padded_size, grid=self.grid, deficits=self._deficits)
            if self._store is not None:
                self._store.keep(key, found)
            self._known[key] = prepared.bound(found)
        return self._known[key]

    def at_positions(
        self,
        kernel: Array,
        *,
        kept: npt.NDArray[np.bool_],
        strides: Sequence[int],
        dilations: Sequence[int],
        groups: int,
    ) -> NormBound:
        """Bound (d): of x -> kernel * x at some positions of the output alone, for zero padding and any size of the input.

        Args:
            kernel: as for `convolution_norm`.
            kept: bool, over the output's spatial axes: which positions count.
            strides: along each spatial axis.
            dilations: along each spatial axis.
            groups: of the convolution.
        """
        kernel = kernel.astype(np.float64)
        key = _key(kernel, (tuple(strides), tuple(dilations), groups, kept.shape, kept.tobytes()))
        if key not in self._known:
            exponent = int(np.frexp(np.abs(kernel).max(initial=0))[1])
            kernel = np.ldexp(kernel, -exponent)  # so that no product underflows
            blocks = overlaps(kernel, strides=strides, dilations=dilations, groups=groups)
            lost = product_rounding(kernel)
            sizes = {offset: self._blocks(block, groups) + lost for offset, block in blocks}
            value = math.sqrt(perron_bound(kept, sizes)) * (1 + 2**-40)
            self._known[key] = NormBound(value=math.ldexp(value, exponent), method="positions")
        return self._known[key]

    def _blocks(self, blocks: Array, groups: int) -> float:
        """The largest norm of the matrices (rows / groups, columns) below each other."""
        once = (1,)
        return self.convolution(blocks[:, :, None], strides=once, dilations=once, groups=groups, padded_size=once).value

    def matrix(self, matrix: Array) -> NormBound:
        """`matrix_norm`."""
        return self.convolution(matrix[:, :, None], strides=(1,), dilations=(1,), groups=1, padded_size=(1,))


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
    ones = (1,) * (kernel.ndim - 2)
    prepared = _Prepared(kernel, strides=strides or ones, dilations=dilations or ones, groups=groups)
    return prepared.bound(prepared.evaluate(padded_size=padded_size, grid=grid, deficits=deficits))


def matrix_norm(matrix: Array, *, deficits: Deficits | None = None) -> NormBound:
    """The largest singular value of a finite matrix (rows, columns), from above and exact to one part in 10^8."""
    return convolution_norm(matrix[:, :, None], deficits=deficits)


class _Prepared:
    """A kernel (groups, out_channels, in_channels, *taps) without stride and dilation, scaled so that squares stay in range."""

    def __init__(self, kernel: Array, *, strides: Sequence[int], dilations: Sequence[int], groups: int) -> None:
        kernel = kernel.astype(np.float64)
        assert np.isfinite(kernel).all(), "certify refuses weights that are not finite"
        self._exponent = int(np.frexp(np.abs(kernel).max(initial=0))[1])
        phases, self._shrink = polyphase(np.ldexp(kernel, -self._exponent), strides=strides, dilations=dilations)
        self.kernel = phases.reshape(groups, -1, *phases.shape[1:])

    def evaluate(self, *, padded_size: Sequence[int] | None, grid: int, deficits: Deficits | None) -> Evaluated:
        return evaluate(self.kernel, shrink=self._shrink, padded_size=padded_size, grid=grid, deficits=deficits)

    def bound(self, found: Evaluated) -> NormBound:
        # the factor covers the last few roundings, and that of differences of weights, which are given in float64
        value = np.ldexp(found.value * (1 + 2**-40), self._exponent)
        return NormBound(value=float(value), method=found.method)


def _key(kernel: Array, geometry: tuple[object, ...]) -> str:
    digest = hashlib.sha256(f"{_VERSION} {kernel.shape} {geometry}".encode())
    digest.update(np.ascontiguousarray(kernel).data)
    return digest.hexdigest()
