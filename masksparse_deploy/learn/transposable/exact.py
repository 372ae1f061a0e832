"""The best tiles, many at a time: prices prove most of them, shortest augmenting paths find the rest."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.learn.transposable.augment import LARGEST_MAGNITUDE, LARGEST_PRICE, balance
from masksparse_deploy.learn.transposable.prices import improve_prices, proved_keep

__all__ = ["best_tiles_by_prices"]

# Rounds of improving prices and their relaxation, before every attempt at a proof; only tiles without one go on. The slowest
# tiles gain from more relaxation. The last round has none: with ties it leaves a third as many weights to move, as measured.
_STAGES = (((1, 1.0), (3, 1.3)), ((2, 1.4),), ((2, 1.5),), ((2, 1.5),), ((3, 1.5), (1, 1.0)))
# Weights that are worked on at once: few enough to stay in the processor's cache, many enough for NumPy's calls not to count.
_BLOCK = 2**18
_STRIP = 2**13

_Stage = tuple[tuple[int, float], ...]
_Floats = npt.NDArray[np.floating]
_Booleans = npt.NDArray[np.bool_]
_Integers = npt.NDArray[np.int64]


def best_tiles_by_prices(magnitudes: _Floats, n: int) -> _Booleans:
    """The admissible tiles that keep the largest sums.

    Where prices prove it, the sum is the largest without any rounding. Elsewhere, as with ties, the tile is solved in whole
    numbers: with 2^e the power of two above its largest magnitude, every one is first rounded to a multiple of 2^(e-48). That
    changes no float32 magnitude above 2^(e-25), and the sum kept is less than the best by at most 2 n m 2^(e-49).

    Args:
        magnitudes: (tiles, m, m), float32 or float64, not negative; twice the largest must not overflow.
        n: kept in every row and column.

    Returns:
        keep, bool (tiles, m, m).
    """
    count, m, _ = magnitudes.shape
    keep = np.ones(magnitudes.shape, dtype=np.bool_)
    if n == m:
        return keep
    # Of rows and of columns.
    prices = np.zeros((2, count, m), dtype=magnitudes.dtype)
    pending = np.arange(count)
    for stage in _STAGES:
        unproved = [_advance(magnitudes, prices, keep, part, n, stage) for part in _blocks(pending, m)]
        pending = np.concatenate([pending[:0], *unproved])
    for part in _blocks(pending, m):
        keep[part] = _balanced(magnitudes[part], prices[:, part], n)
    return keep


def _blocks(tiles: _Integers, m: int) -> list[_Integers]:
    size = max(1, _BLOCK // m**2)
    return [tiles[first : first + size] for first in range(0, len(tiles), size)]


def _advance(magnitudes: _Floats, prices: _Floats, keep: _Booleans, part: _Integers, n: int, stage: _Stage) -> _Integers:
    """Improve the prices of some tiles and decide what those keep that they prove; returns the tiles without a proof."""
    tiles = _tiles_last(magnitudes[part])
    rows, columns = (np.ascontiguousarray(side[part].T) for side in prices)
    for rounds, relaxation in stage:
        improve_prices(tiles, rows, columns, n, rounds=rounds, relaxation=relaxation)
    kept, proved = proved_keep(tiles, rows, columns, n)
    keep[part] = kept.transpose(2, 0, 1)
    prices[0, part], prices[1, part] = rows.T, columns.T
    return part[~proved]


def _balanced(magnitudes: _Floats, prices: _Floats, n: int) -> _Booleans:
    _, exponents = np.frexp(magnitudes.max(axis=(1, 2)))

    def whole(values: _Floats) -> npt.NDArray[np.float64]:
        scaled: npt.NDArray[np.float64] = np.ldexp(values.astype(np.float64), LARGEST_MAGNITUDE.bit_length() - 1 - exponents)
        return np.rint(scaled)

    tiles = whole(_tiles_last(magnitudes)).astype(np.int64)
    rows, columns = (np.clip(whole(side.T), -LARGEST_PRICE, LARGEST_PRICE).astype(np.int64) for side in prices)
    return balance(tiles, rows, columns, n).transpose(2, 0, 1)


def _tiles_last(magnitudes: _Floats) -> _Floats:
    """(tiles, m, m) as a contiguous (m, m, tiles), copied in strips that fit the innermost cache."""
    count, m, _ = magnitudes.shape
    flat, turned = magnitudes.reshape(count, m * m), np.empty((m * m, count), dtype=magnitudes.dtype)
    size = max(1, _STRIP // m**2)
    for first in range(0, count, size):
        turned[:, first : first + size] = flat[first : first + size].T
    return turned.reshape(m, m, count)
