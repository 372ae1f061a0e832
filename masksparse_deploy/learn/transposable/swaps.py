"""Repair of tiles that keep less than n somewhere: an exchange that gives a row and a column one weight more."""

import numpy as np
import numpy.typing as npt

__all__ = ["saturate_by_swaps"]


def saturate_by_swaps(keep: npt.NDArray[np.bool_], magnitudes: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.bool_]:
    """Exchange weights until all rows and columns keep n, or no exchange that does not lose magnitude is left.

    For a row i and a column j with too few: give up a kept (i', j') and keep (i, j') and (i', j) instead, of all choices the
    one with the largest |W_ij'| + |W_i'j| - |W_i'j'|; or keep (i, j) itself where it is not kept. A row and a column whose
    best exchange loses magnitude stay as they are, so that some tiles may end unsaturated.

    Args:
        keep: bool (tiles, m, m), n or fewer in every row and column.
        magnitudes: (tiles, m, m), not negative.
        n: wanted in every row and column.

    Returns:
        keep, bool (tiles, m, m), with at least as much magnitude and as many weights.
    """
    keep = keep.copy()
    m = keep.shape[-1]
    wanting = (keep.sum(axis=2) < n)[:, :, None] & (keep.sum(axis=1) < n)[:, None, :]
    active = np.flatnonzero(wanting.any(axis=(1, 2)))
    tried = np.zeros((len(active), m, m), dtype=np.bool_)
    while len(active):
        kept, weight = keep[active], magnitudes[active]
        wanting = (kept.sum(axis=2) < n)[:, :, None] & (kept.sum(axis=1) < n)[:, None, :] & ~tried
        going = wanting.any(axis=(1, 2))
        active, kept, weight, tried, wanting = (array[going] for array in (active, kept, weight, tried, wanting))
        index = np.arange(len(active))
        # A pair that is not kept itself comes first: it needs no exchange.
        row, column = np.divmod((wanting * (2 - kept.astype(np.int8))).reshape(len(active), m * m).argmax(axis=1), m)
        free = ~kept[index, row, column]
        possible = kept & ~kept[index, row][:, None, :] & ~kept[index, :, column][:, :, None]
        gains = weight[index, row][:, None, :] + weight[index, :, column][:, :, None] - weight
        gains = np.where(possible, gains, -np.inf).reshape(len(active), m * m)
        other_row, other_column = np.divmod(gains.argmax(axis=1), m)
        swap = ~free & (gains.max(axis=1, initial=-np.inf) >= 0)
        tried[index, row, column] = ~free & ~swap
        keep[active[free], row[free], column[free]] = True
        tiles, i, j, other_i, other_j = (array[swap] for array in (active, row, column, other_row, other_column))
        keep[tiles, other_i, other_j] = False
        keep[tiles, i, other_j] = True
        keep[tiles, other_i, j] = True
    return keep
