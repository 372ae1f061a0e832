"""Transposable masks: in every M x M tile each row and each column keeps N weights, of the largest possible sum of magnitudes.

The problem and its solution as a flow are those of I. Hubara et al., "Accelerated Sparse Neural Training: A Provable and
Efficient Method to Find N:M Transposable Masks" (2021); the paper's N counts zeros, here N counts kept weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.transposable.entropy import keep_by_entropy
from masksparse_deploy.learn.transposable.enumeration import LARGEST_M, best_tiles_by_enumeration
from masksparse_deploy.learn.transposable.exact import best_tiles_by_prices
from masksparse_deploy.learn.transposable.flow import best_tiles_by_flow
from masksparse_deploy.learn.transposable.greedy import keep_greedily, prune_two_approximately
from masksparse_deploy.learn.transposable.swaps import saturate_by_swaps
from masksparse_deploy.learn.transposable.tiles import from_tiles, tiles_of

__all__ = ["Solution", "Solver", "solve_tiles", "transposable_mask"]

Solver = Literal["exact", "enumeration", "flow", "greedy", "two-approximation", "entropy"]
# Weights between two reports of progress: the working memory is below 40 MiB, however many there are.
_BLOCK = 2**21


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution:
    """Masks for a batch of tiles.

    Attributes:
        keep: bool (tiles, m, m); no row and no column keeps more than n.
        saturated: bool (tiles,): whether every row and every column keeps exactly n; always so with the exact solvers.
    """

    keep: npt.NDArray[np.bool_]
    saturated: npt.NDArray[np.bool_]


def solve_tiles(
    magnitudes: npt.NDArray[np.floating], n: int, *, solver: Solver = "exact", progress: Progress = silent
) -> Solution:
    """Choose what each tile keeps.

    "exact", "enumeration" (M up to 4) and "flow" (OR-tools, tile by tile) find the largest sum, as exactly as
    `best_tiles_by_prices`, `best_tiles_by_enumeration` and `best_tiles_by_flow` say; "greedy" (with swaps),
    "two-approximation" and "entropy" are approximations, which may keep less than n somewhere.

    Args:
        magnitudes: (tiles, m, m), finite and not negative; usually |weight|. Other types than float32 and float64 are
            converted to these.
        n: kept in every row and column, 1 <= n <= m.
        solver: the method.
        progress: told after each block of tiles.

    Raises:
        UsageError: another shape, values that are negative or not finite, an n that does not fit, an unknown solver, or one
            that does not take tiles of this size.
        MachineError: "flow" without OR-tools.
    """
    _check(magnitudes, n, solver)
    keep = np.empty(magnitudes.shape, dtype=np.bool_)
    block = max(1, _BLOCK // magnitudes.shape[-1] ** 2)
    for first in range(0, len(magnitudes), block):
        part = slice(first, first + block)
        keep[part] = _CHOOSE[solver](_in_range(magnitudes[part]), n)
        progress("transposable masks", min(first + block, len(magnitudes)), len(magnitudes))
    in_column, in_row = (keep.sum(axis=axis, dtype=np.uint8) for axis in (1, 2))
    return Solution(keep=keep, saturated=((in_column == n) & (in_row == n)).all(axis=1))


def transposable_mask(
    weight: npt.NDArray[np.floating], pattern: NMPattern, *, solver: Solver = "exact", progress: Progress = silent
) -> npt.NDArray[np.bool_]:
    """Choose what a weight keeps: n of m along the input channels and along the output channels.

    Args:
        weight: (out_channels, in_channels, ...) of a convolution, (out_features, in_features) of a linear layer; both channel
            counts multiples of m.
        pattern: N:M; taken as transposable, whether it says so or not.
        solver: see `solve_tiles`.
        progress: told after each block of tiles.

    Returns:
        keep, bool, the shape of `weight`.

    Raises:
        UsageError: channels that are no multiple of m, values that are not finite, an unknown solver, or one that does not
            take tiles of this size.
        MachineError: "flow" without OR-tools.
    """
    tiles = tiles_of(np.abs(weight), pattern.m)
    return from_tiles(solve_tiles(tiles, pattern.n, solver=solver, progress=progress).keep, weight.shape)


def _check(magnitudes: npt.NDArray[np.floating], n: int, solver: str) -> None:
    if solver not in get_args(Solver):
        raise UsageError(f"unknown solver {solver!r} for transposable masks; one of {', '.join(get_args(Solver))}")
    if magnitudes.ndim != 3 or magnitudes.shape[1] != magnitudes.shape[2]:
        raise UsageError(f"tiles of shape {magnitudes.shape}: expected (tiles, m, m)")
    m = magnitudes.shape[-1]
    NMPattern(n=n, m=m)  # refuses what is no pattern
    if solver == "enumeration" and m > LARGEST_M:
        raise UsageError(f"the solver enumeration takes tiles up to {LARGEST_M} x {LARGEST_M}, not {m} x {m}; use exact")
    smallest = magnitudes.min(initial=0)
    if not np.isfinite(smallest) or not np.isfinite(magnitudes.max(initial=0)):
        raise UsageError("a weight to be masked has values that are NaN or infinite; repair the checkpoint")
    if smallest < 0:
        raise UsageError(f"magnitudes of tiles must not be negative, but one is {smallest:g}; pass the absolute values")


def _in_range(magnitudes: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The magnitudes in a type and, tile by tile, at a power of two in which no sum of them overflows."""
    if magnitudes.dtype not in (np.float32, np.float64):
        magnitudes = magnitudes.astype(np.float32 if magnitudes.dtype.itemsize < 4 else np.float64)
    largest = magnitudes.max(axis=(1, 2), keepdims=True)
    # Sums have up to 32 * 32 = 2^10 terms, and prices may double, 24 times. What division by 2^40 rounds is at most 2^-198 of
    # the largest magnitude of such a tile.
    safe = largest <= np.ldexp(np.finfo(magnitudes.dtype).max, -40)
    return magnitudes if safe.all() else np.where(safe, magnitudes, np.ldexp(magnitudes, -40))


def _greedy_with_swaps(magnitudes: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.bool_]:
    return saturate_by_swaps(keep_greedily(magnitudes, n), magnitudes, n)


_CHOOSE: dict[str, Callable[[npt.NDArray[np.floating], int], npt.NDArray[np.bool_]]] = {
    "exact": best_tiles_by_prices,
    "enumeration": best_tiles_by_enumeration,
    "flow": best_tiles_by_flow,
    "greedy": _greedy_with_swaps,
    "two-approximation": prune_two_approximately,
    "entropy": keep_by_entropy,
}
