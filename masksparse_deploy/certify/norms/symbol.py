"""The Fourier symbol of a convolution on a grid of frequencies: its norms bound the operator's, docs/bounds.md, section 1."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.eigenvalue import UNIT_ROUNDOFF, Deficits, largest_eigenvalue

__all__ = ["GRID_SLACK", "GridMaximum", "gram_rounding", "grid_maximum", "grid_slack", "symbol_at"]

Array = npt.NDArray[Any]

# How far above the largest squared norm on the grid the bound may be: 2^-13, 0.006 % of the norm.
GRID_SLACK = 2.0**-13
# Gram matrices are made so many bytes at a time, to stay near the processor.
_BATCH_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class GridMaximum:
    """An upper bound of the symbol's largest norm on a grid, and the cell and group whose norm is that close to it."""

    value: float
    cell: tuple[int, ...]
    group: int


def grid_maximum(kernel: Array, *, cells: Sequence[int], deficits: Deficits | None = None) -> GridMaximum:
    """The largest spectral norm of the symbol F(w) = sum_r K[:, :, r] exp(i r.w) over a frequency grid and all groups.

    Args:
        kernel: float64 (groups, out_channels, in_channels, *taps), its largest element about 1.
        cells: grid points along each axis, at least the number of taps.
        deficits: see `largest_eigenvalue`.

    Returns:
        The bound, at most 0.01 % above the largest norm, which is at the frequency 2 pi cell / cells.
    """
    taps = kernel.shape[3:]
    assert all(n >= t for n, t in zip(cells, taps, strict=True)), "the grid must hold the kernel"
    if kernel.shape[1] < kernel.shape[2]:
        kernel = kernel.swapaxes(1, 2)  # the adjoint, up to complex conjugation: same norms, smaller Gram matrices
    groups, _, size = kernel.shape[:3]
    frequencies = _half_of(cells)
    per_batch = max(1, _BATCH_BYTES // (groups * size**2 * 16))
    batches = _gram_batches(kernel, cells, frequencies, per_batch)
    squared, (batch, index) = largest_eigenvalue(batches, slack=GRID_SLACK, deficits=deficits)
    value = math.sqrt(squared + gram_rounding(kernel)) * (1 + 4 * UNIT_ROUNDOFF)
    cell = frequencies[batch * per_batch + index // groups]
    return GridMaximum(value=value, cell=tuple(int(k) for k in cell), group=index % groups)


def gram_rounding(kernel: Array) -> float:
    """By how much a computed Gram matrix can be off, in the spectral norm; docs/bounds.md derives it.

    Sums of rows x taps products, then of as many terms as there are offsets, with phases that are off by up to 100 roundings.
    """
    taps = kernel.shape[3:]
    terms = kernel.shape[1] * math.prod(taps) + math.prod(2 * t - 1 for t in taps) + 100
    largest_frobenius = float((kernel**2).sum(axis=tuple(range(1, kernel.ndim))).max())
    return float(2 * terms * UNIT_ROUNDOFF * math.prod(taps) * largest_frobenius)


def grid_slack(taps: Sequence[int], cells: Sequence[int]) -> float:
    """How far above the grid the norm can be between its points: 1 / prod of cos(pi (taps - 1) / 2 cells), bound (a)."""
    return 1 / math.prod(math.cos(math.pi * (t - 1) / (2 * n)) for t, n in zip(taps, cells, strict=True))


def symbol_at(kernel: Array, *, cell: Sequence[int], cells: Sequence[int]) -> Array:
    """F at 2 pi cell / cells, (out_channels, in_channels), of a `kernel` (out_channels, in_channels, *taps).

    It is float64 where the frequency is zero, else complex128.
    """
    if not any(cell):
        total: Array = kernel.sum(axis=tuple(range(2, kernel.ndim)))
        return total
    symbol = kernel
    for place, count in zip(reversed(cell), reversed(cells), strict=True):
        symbol = symbol @ np.exp(2j * np.pi * place / count * np.arange(symbol.shape[-1]))
    return symbol


def _half_of(cells: Sequence[int]) -> npt.NDArray[np.int64]:
    """Frequencies (count, axes), one of w and -w, at which a real kernel has conjugate symbols; near ones far apart."""
    grid = np.indices(tuple(cells)).reshape(len(cells), -1).T
    opposite = -grid % np.array(cells)
    place = np.ravel_multi_index(tuple(opposite.T), tuple(cells))
    half = np.flatnonzero(np.arange(len(grid)) <= place)
    # neighbours have similar norms: in random order, the level is near its end before most of them are met
    order: npt.NDArray[np.int64] = grid[np.random.default_rng(0).permutation(half)]
    return order


def _gram_batches(kernel: Array, cells: Sequence[int], frequencies: npt.NDArray[np.int64], per_batch: int) -> Iterator[Array]:
    """F(w)* F(w) of all groups, complex128 (frequencies x groups, n, n), from sums C_d over K_r^T K_(r + d), one for each d.

    C_-d is the transpose of C_d, so F* F = C_0 + sum over half of all d of cos(d.w) (C_d + C_d^T) + i sin(d.w) (C_d - C_d^T).
    """
    groups, _, size = kernel.shape[:3]
    taps = kernel.shape[3:]
    by_tap = np.ascontiguousarray(np.moveaxis(kernel, (1, 2), (-2, -1)))  # (groups, *taps, rows, n)
    offsets = [d for d in itertools.product(*(range(1 - t, t) for t in taps)) if d >= (0,) * len(taps)]
    even, odd = np.empty((2, len(offsets), groups, size, size))
    for place, offset in enumerate(offsets):
        product = _correlation(by_tap, offset)
        turned = product.swapaxes(1, 2)
        even[place] = product + turned if any(offset) else product
        odd[place] = product - turned
    even, odd = even.reshape(len(offsets), -1), odd.reshape(len(offsets), -1)
    steps = np.array(offsets).T[None]  # (1, axes, offsets)
    counts = np.array(cells)[:, None]
    for start in range(0, len(frequencies), per_batch):
        part = frequencies[start : start + per_batch]
        angles = 2 * np.pi * ((part[:, :, None] * steps % counts) / counts).sum(axis=1)
        grams = np.empty((len(part), even.shape[1]), dtype=np.complex128)
        grams.real = np.cos(angles) @ even
        grams.imag = np.sin(angles) @ odd
        yield grams.reshape(-1, size, size)


def _correlation(by_tap: Array, offset: Sequence[int]) -> Array:
    """The sum over taps r of K_r^T K_(r + offset), (groups, n, n)."""
    groups, size = len(by_tap), by_tap.shape[-1]
    first = by_tap[(slice(None), *(slice(max(0, -d), t - max(0, d)) for d, t in zip(offset, by_tap.shape[1:-2], strict=True)))]
    second = by_tap[(slice(None), *(slice(max(0, d), t - max(0, -d)) for d, t in zip(offset, by_tap.shape[1:-2], strict=True)))]
    left, right = first.reshape(groups, -1, size), second.reshape(groups, -1, size)
    product: Array = left.swapaxes(1, 2) @ right
    return product
