"""Approximations that look at the weights of a tile once, in order of magnitude: many tiles at a time."""

import numpy as np
import numpy.typing as npt

__all__ = ["keep_greedily", "prune_two_approximately"]

Booleans = npt.NDArray[np.bool_]


def keep_greedily(scores: npt.NDArray[np.floating], n: int) -> Booleans:
    """From the largest score to the smallest, keep what its row and its column still have room for.

    Rows and columns end with n or fewer. Among equal scores the one with the smaller index comes first.

    Args:
        scores: (tiles, m, m).
        n: kept in every row and column at most.

    Returns:
        keep, bool (tiles, m, m).
    """
    return _in_order(-scores, limit=n, either=False)


def prune_two_approximately(magnitudes: npt.NDArray[np.floating], n: int) -> Booleans:
    """From the smallest magnitude to the largest, prune what its row or its column still has to lose.

    The 2-approximation of Hubara et al. (2021), whose N is our m - n: the pruned sum is at most twice the smallest possible.
    It prunes more than it has to, so rows and columns end with n or fewer.

    Args:
        magnitudes: (tiles, m, m), not negative.
        n: kept in every row and column at most.

    Returns:
        keep, bool (tiles, m, m).
    """
    return ~_in_order(magnitudes, limit=magnitudes.shape[-1] - n, either=True)


def _in_order(keys: npt.NDArray[np.floating], *, limit: int, either: bool) -> Booleans:
    """Take places in the order of their keys while their row and (or, with `either`) their column has taken less than limit."""
    count, m, _ = keys.shape
    order = keys.reshape(count, m * m).argsort(axis=1, kind="stable").T
    # One flat array for each kind of line, so that counting is a look-up by tile and line.
    tile = np.arange(count) * m
    in_row, in_column = np.zeros(count * m, dtype=np.uint8), np.zeros(count * m, dtype=np.uint8)
    taken = np.zeros(count * m * m, dtype=np.bool_)
    for places in order:
        row, column = tile + places // m, tile + places % m
        row_open, column_open = in_row[row] < limit, in_column[column] < limit
        take = row_open | column_open if either else row_open & column_open
        in_row[row] += take
        in_column[column] += take
        taken[tile * m + places] = take
    return taken.reshape(count, m, m)
