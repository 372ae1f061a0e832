"""Proved upper bounds of the l2 operator norm of convolutions and matrix products; docs/bounds.md derives each of them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NormBound", "NormCache", "convolution_norm", "grid_bound", "matrix_norm", "polyphase", "unfolding_bound"]

Array = npt.NDArray[Any]

# The padded grid costs one spectral norm a cell: it is used up to this many times the cells of the N x N grid.
_PADDED_GRID_FACTOR = 2


@dataclass(frozen=True, kw_only=True)
class NormBound:
    """An upper bound of an operator norm, and the name of the bound in docs/bounds.md that gave it."""

    value: float
    method: str


class NormCache:
    """Bounds by content of the kernel and geometry, so that nothing is computed twice within a run."""

    def __init__(self, *, grid: int) -> None:
        self._grid = grid
        self._known: dict[tuple[object, ...], NormBound] = {}

    def convolution(
        self, kernel: Array, *, strides: Sequence[int], dilations: Sequence[int], groups: int, padded_size: Sequence[int]
    ) -> NormBound:
        """`convolution_norm` with this cache's grid."""
        geometry = (*strides, *dilations, groups, *padded_size)
        key = (kernel.shape, geometry, _digest(kernel))
        if key not in self._known:
            self._known[key] = convolution_norm(
                kernel, strides=strides, dilations=dilations, groups=groups, padded_size=padded_size, grid=self._grid
            )
        return self._known[key]

    def matrix(self, matrix: Array) -> NormBound:
        """`matrix_norm`."""
        key = (matrix.shape, _digest(matrix))
        if key not in self._known:
            self._known[key] = matrix_norm(matrix)
        return self._known[key]


def convolution_norm(
    kernel: Array,
    *,
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
    padded_size: Sequence[int] | None = None,
    grid: int = 32,
) -> NormBound:
    """The smallest of the upper bounds of ||x -> kernel * x|| for zero padding.

    Args:
        kernel: (out_channels, in_channels / groups, kernel_h, kernel_w).
        strides: (height, width).
        dilations: (height, width).
        groups: of the convolution; the norm is the largest over groups.
        padded_size: (height, width) of the input with its padding, for the bound without slack (b); None if it may be any.
        grid: N of bound (a).

    Returns:
        The bound, called "matrix" (exact), "padded grid" (b), "grid" (a) or "unfolding" (c).
    """
    kernel = kernel.astype(np.float64)
    bounds = [
        _group_norm(part, strides=strides, dilations=dilations, padded_size=padded_size, grid=grid)
        for part in np.split(kernel, groups)
    ]
    return max(bounds, key=lambda bound: bound.value)


def matrix_norm(matrix: Array) -> NormBound:
    """The largest singular value of a matrix, rounded outward."""
    return NormBound(value=_spectral_norm(matrix.astype(np.float64)) * _outward(matrix), method="matrix")


def polyphase(kernel: Array, *, strides: Sequence[int], dilations: Sequence[int]) -> tuple[Array, tuple[int, int]]:
    """The kernel of the same operator with stride 1 on a space-to-depth input.

    Args:
        kernel: (out_channels, in_channels, kernel_h, kernel_w).
        strides: (height, width).
        dilations: (height, width).

    Returns:
        The kernel (out_channels, in_channels x phases, ceil(extent_h / stride), ceil(extent_w / stride)), and by how much the
        input grid shrinks in (height, width).
    """
    shrink = []
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=2):
        common = math.gcd(stride, dilation)  # only every common-th input is read at all: a restriction, which contracts
        stride, dilation = stride // common, dilation // common
        if stride == 1:  # the dilated operator is one undilated operator on each of `dilation` interleaved grids
            shrink.append(common * dilation)
            continue
        shrink.append(common * stride)
        taps = kernel.shape[axis]
        extent = (taps - 1) * dilation + 1
        length = math.ceil(extent / stride) * stride
        spread = np.zeros((*kernel.shape[:axis], length, *kernel.shape[axis + 1 :]))
        index = [slice(None)] * kernel.ndim
        index[axis] = slice(0, extent, dilation)
        spread[tuple(index)] = kernel
        split = spread.reshape(*kernel.shape[:axis], length // stride, stride, *kernel.shape[axis + 1 :])
        phases = np.moveaxis(split, axis + 1, 2)  # (out_channels, in_channels, phase, ...)
        kernel = phases.reshape(kernel.shape[0], -1, *phases.shape[3:])
    return kernel, (shrink[0], shrink[1])


def grid_bound(kernel: Array, *, cells: Sequence[int], slack: bool) -> float:
    """The largest spectral norm of the Fourier symbol F(w) = sum_rs K[:, :, r, s] exp(i (r w1 + s w2)) on a frequency grid.

    Args:
        kernel: float64 (out_channels, in_channels, kernel_h, kernel_w), stride 1.
        cells: grid points in (height, width), at least the kernel's size.
        slack: divide by cos(pi (kernel_h - 1) / 2 cells) and the same for the width, which bounds the norm between grid points
            too: bound (a). Without it the figure bounds the operator on zero-padded inputs of at most `cells` only, (b).
    """
    height, width = kernel.shape[2:]
    rows, columns = cells
    assert rows >= height and columns >= width, "the grid must hold the kernel"
    if kernel.shape[0] < kernel.shape[1]:
        kernel = kernel.swapaxes(0, 1)  # the adjoint, up to complex conjugation: same norms, smaller Gram matrices
    row_phases = np.exp(2j * np.pi / rows * np.outer(np.arange(height), np.arange(rows)))
    squared = 0.0
    # A real kernel has conjugate symbols at w and -w: half of the columns will do.
    for column in range(columns // 2 + 1):
        along_rows = kernel @ np.exp(2j * np.pi / columns * column * np.arange(width))
        symbols = np.moveaxis(along_rows @ row_phases, 2, 0)
        gram = symbols.conj().swapaxes(1, 2) @ symbols
        squared = max(squared, float(np.linalg.eigvalsh(gram)[:, -1].max()))
    norm = math.sqrt(max(squared, 0.0))
    if slack:
        norm /= math.cos(math.pi * (height - 1) / (2 * rows)) * math.cos(math.pi * (width - 1) / (2 * columns))
    return norm


def unfolding_bound(kernel: Array) -> float:
    """sqrt(kernel_h kernel_w) times the smallest spectral norm of the four unfoldings: bound (c).

    Source: Singla and Feizi, "Fantastic four: differentiable and efficient bounds on singular values of convolution
    layers", ICLR 2021, theorem 1. `kernel` is float64 (out_channels, in_channels, kernel_h, kernel_w), stride 1.
    """
    out_channels, in_channels, height, width = kernel.shape
    unfoldings = (
        kernel.reshape(out_channels, -1),
        kernel.transpose(0, 2, 1, 3).reshape(out_channels * height, in_channels * width),
        kernel.transpose(0, 3, 1, 2).reshape(out_channels * width, in_channels * height),
        kernel.transpose(0, 2, 3, 1).reshape(-1, in_channels),
    )
    return math.sqrt(height * width) * min(_spectral_norm(matrix) for matrix in unfoldings)


def _group_norm(
    kernel: Array, *, strides: Sequence[int], dilations: Sequence[int], padded_size: Sequence[int] | None, grid: int
) -> NormBound:
    if not kernel.any():
        return NormBound(value=0.0, method="matrix")
    phases, shrink = polyphase(kernel, strides=strides, dilations=dilations)
    taps = phases.shape[2:]
    if taps == (1, 1):
        return matrix_norm(phases[:, :, 0, 0])
    cells = [1 if count == 1 else max(grid, 2 * count) for count in taps]
    method = "grid"
    if padded_size is not None:
        padded = [1 if t == 1 else max(t, math.ceil(n / s)) for n, s, t in zip(padded_size, shrink, taps, strict=True)]
        # (b) is never above (a), so it replaces (a) where it does not cost more
        if math.prod(padded) <= _PADDED_GRID_FACTOR * math.prod(cells):
            cells, method = padded, "padded grid"
    on_grid = grid_bound(phases, cells=cells, slack=method == "grid")
    unfolded = unfolding_bound(phases)
    if unfolded < on_grid:
        return NormBound(value=unfolded * _outward(kernel), method="unfolding")
    return NormBound(value=on_grid * _outward(kernel), method=method)


def _outward(weight: Array) -> float:
    """A factor that covers the float64 rounding of a norm.

    The Gram matrix of an m x n matrix A is off by at most m 2^-53 ||A||_F^2 <= m n 2^-53 ||A||^2, its largest eigenvalue by a
    modest multiple of n 2^-53 more, the Fourier phases by a few 2^-53; the square root halves it, so m n 2^-52 is ample, and
    1e-9 leaves room for the solver.
    """
    return 1 + 1e-9 + weight.size * 2.0**-52


def _spectral_norm(matrix: Array) -> float:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return math.sqrt(max(float(np.linalg.eigvalsh(tall.T @ tall)[-1]), 0.0))


def _digest(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
