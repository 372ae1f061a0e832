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
from masksparse_deploy.learn.transposable.enumeration import LARGEST_M, best_tiles
from masksparse_deploy.learn.transposable.flow import best_tiles_by_flow
from masksparse_deploy.learn.transposable.greedy import keep_greedily, prune_two_approximately
from masksparse_deploy.learn.transposable.swaps import saturate_by_swaps
from masksparse_deploy.learn.transposable.tiles import from_tiles, tiles_of

__all__ = ["Solution", "Solver", "solve_tiles", "transposable_mask"]

Solver = Literal["exact", "flow", "greedy", "two-approximation", "entropy"]
# Weights that are worked on at once.
_BLOCK = 2**20


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

    Args:
        magnitudes: (tiles, m, m), finite and not negative; usually |weight|.
        n: kept in every row and column, 1 <= n <= m.
        solver: "exact" and "flow" (OR-tools, tile by tile) find the largest sum; "greedy", "two-approximation" and "entropy"
            are approximations, which may keep less than n somewhere.
        progress: told after each block of tiles.

    Raises:
        UsageError: another shape, values that are negative or not finite, an n that does not fit, or an unknown solver.
        MachineError: "flow" without OR-tools.
    """
    _check(magnitudes, n, solver)
    keep = np.empty(magnitudes.shape, dtype=np.bool_)
    m = magnitudes.shape[-1]
    choose = _solver(solver, n, m)
    block = max(1, _BLOCK // m**2)
    for first in range(0, len(magnitudes), block):
        part = slice(first, first + block)
        keep[part] = choose(magnitudes[part], n)
        progress("transposable masks", min(first + block, len(magnitudes)), len(magnitudes))
    saturated = (keep.sum(axis=1) == n).all(axis=1) & (keep.sum(axis=2) == n).all(axis=1)
    return Solution(keep=keep, saturated=saturated)


def transposable_mask(
    weight: npt.NDArray[np.floating], pattern: NMPattern, *, solver: Solver = "exact", progress: Progress = silent
) -> npt.NDArray[np.bool_]:
    """Choose what a weight keeps, n of m along the input channels and along the output channels.

    Args:
        weight: (out_channels, in_channels, ...) of a convolution, (out_features, in_features) of a linear layer; both channel
            counts multiples of m.
        pattern: N:M; taken as transposable, whether it says so or not.
        solver: see `solve_tiles`.
        progress: told after each block of tiles.

    Returns:
        keep, bool, the shape of `weight`.

    Raises:
        UsageError: channels that are no multiple of m, values that are not finite, or an unknown solver.
        MachineError: "flow" without OR-tools.
    """
    tiles = tiles_of(np.abs(weight), pattern.m)
    return from_tiles(solve_tiles(tiles, pattern.n, solver=solver, progress=progress).keep, weight.shape)


def _check(magnitudes: npt.NDArray[np.floating], n: int, solver: str) -> None:
    if solver not in get_args(Solver):
        raise UsageError(f"unknown solver {solver!r} for transposable masks; one of {', '.join(get_args(Solver))}")
    if magnitudes.ndim != 3 or magnitudes.shape[1] != magnitudes.shape[2]:
        raise UsageError(f"tiles of shape {magnitudes.shape}: expected (tiles, m, m)")
    NMPattern(n=n, m=magnitudes.shape[-1])  # refuses what is no pattern
    smallest = magnitudes.min(initial=0)
    if not np.isfinite(smallest) or not np.isfinite(magnitudes.max(initial=0)):
        raise UsageError("a weight to be masked has values that are NaN or infinite; repair the checkpoint")
    if smallest < 0:
        raise UsageError(f"magnitudes of tiles must not be negative, but one is {smallest:g}; pass the absolute values")


def _solver(solver: Solver, n: int, m: int) -> Callable[[npt.NDArray[np.floating], int], npt.NDArray[np.bool_]]:
    if solver == "exact":
        return best_tiles if m <= LARGEST_M else best_tiles_by_flow
    choices: dict[str, Callable[[npt.NDArray[np.floating], int], npt.NDArray[np.bool_]]] = {
        "flow": best_tiles_by_flow,
        "greedy": lambda magnitudes, n: saturate_by_swaps(keep_greedily(magnitudes, n), magnitudes, n),
        "two-approximation": prune_two_approximately,
        "entropy": keep_by_entropy,
    }
    return choices[solver]
