"""The best tile by comparing all admissible ones, where they are few: 90 for 2:4."""

import functools

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.patterns import NMPattern

__all__ = ["LARGEST_M", "admissible_tiles", "best_tiles_by_enumeration"]

# With M = 4 there are at most 90 admissible tiles, with M = 5 up to 2,040.
LARGEST_M = 4


@functools.cache
def admissible_tiles(n: int, m: int) -> npt.NDArray[np.bool_]:
    """All tiles whose rows and columns keep exactly n, bool (count, m, m), in lexicographic order of their rows."""
    book = NMPattern(n=n, m=m).codebook()
    tiles = np.zeros((1, 0, m), dtype=np.bool_)
    for row in range(m):
        tiles = np.concatenate([np.repeat(tiles, len(book), axis=0), np.tile(book, (len(tiles), 1))[:, None]], axis=1)
        kept = tiles.sum(axis=1)
        # A column may still get one weight from each row to come.
        tiles = tiles[((kept <= n) & (kept + m - row - 1 >= n)).all(axis=1)]
    tiles.flags.writeable = False
    return tiles


def best_tiles_by_enumeration(magnitudes: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.bool_]:
    """The admissible tile that keeps the largest sum, the first one among equals.

    Sums are float64: those of float32 magnitudes are exact unless the largest of a tile is more than
    2^27 times the smallest that is not zero.

    Args:
        magnitudes: (tiles, m, m), not negative.
        n: kept in every row and column.

    Returns:
        keep, bool (tiles, m, m).
    """
    candidates = admissible_tiles(n, magnitudes.shape[-1])
    sums = magnitudes.reshape(len(magnitudes), -1).astype(np.float64) @ candidates.reshape(len(candidates), -1).T.astype(
        np.float64
    )
    keep: npt.NDArray[np.bool_] = candidates[sums.argmax(axis=1)]
    return keep
