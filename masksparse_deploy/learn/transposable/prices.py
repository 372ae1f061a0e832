"""Prices of rows and columns that prove what a tile keeps to be the best: found for many tiles at once.

The largest kept sum of a tile is a linear program whose dual gives every row i a price u_i and every column j a price v_j: a
set of weights with n in every row and column is best if |W_ij| >= u_i + v_j for all that it keeps and <= for all others.
"""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.learn.transposable.selection_network import nth_and_next_largest

__all__ = ["improve_prices", "proved_keep"]

Floats = npt.NDArray[np.floating]


def improve_prices(tiles: Floats, rows: Floats, columns: Floats, n: int, *, rounds: int, relaxation: float = 1.0) -> None:
    """Bring prices closer to such that separate n weights of every row and column from the others.

    Given the prices of the columns, the best price of a row is anything between the n-th and the (n+1)-th largest of
    |W_ij| - v_j; it moves to the middle, or beyond, and so do then the prices of the columns. This is what Sinkhorn's algorithm
    becomes without entropy. It may end with prices that separate nothing: then they are a good start for something else.

    Args:
        tiles: (m, m, tiles), tiles last; finite, float32 or float64.
        rows: prices (m, tiles), changed in place.
        columns: prices (m, tiles), changed in place.
        n: to be kept in every row and column, less than m.
        rounds: over rows and columns.
        relaxation: how far prices go, of the way to the middle; beyond 1, but below 2, later rounds come closer sooner.
    """
    values, spare = np.empty_like(tiles), np.empty_like(rows)
    for _ in range(rounds):
        for matrix, prices, others in ((tiles.transpose(1, 0, 2), rows, columns), (tiles, columns, rows)):
            np.subtract(matrix, others[:, None], out=values)
            larger, smaller = nth_and_next_largest(list(values), n, spare=spare)
            larger += smaller
            larger *= 0.5
            larger -= prices
            larger *= relaxation
            prices += larger


def proved_keep(tiles: Floats, rows: Floats, columns: Floats, n: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """What the prices keep, and for which tiles they prove it.

    Rounding is monotone, so that |W_ij| > u_i + v_j, with the sum rounded, implies |W_ij| >= u_i + v_j without rounding, and
    likewise for <. Where no weight equals its rounded sum, the proof therefore holds for the weights and prices as they are.

    Args:
        tiles: (m, m, tiles).
        rows: prices (m, tiles).
        columns: prices (m, tiles).
        n: to be kept in every row and column.

    Returns:
        keep, bool (m, m, tiles), and proved, bool (tiles,): every row and column keeps exactly n, and no other choice keeps a
        larger sum.
    """
    limits = rows[:, None] + columns
    keep = tiles > limits
    even = (tiles == limits).any(axis=(0, 1))
    in_row, in_column = (keep.sum(axis=axis, dtype=np.uint8) for axis in (1, 0))
    return keep, (in_row == n).all(axis=0) & (in_column == n).all(axis=0) & ~even
