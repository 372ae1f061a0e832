"""Augmenting paths lead from any prices to the best tile, and leave prices that prove it."""

import numpy as np
import pytest

from masksparse_deploy.learn.transposable.augment import LARGEST_MAGNITUDE, LARGEST_PRICE, _apart, _flip, balance
from tests.learn.transposable.tiles import assert_exactly_n, best_sums_by_trying_all, kept_sums

STARTS = ("zero", "random", "high", "low", "torn")


def start(kind: str, m: int, count: int) -> np.ndarray:
    """Prices of rows and of columns, int64 (2, m, count)."""
    generator = np.random.default_rng(1)
    if kind == "random":
        return generator.integers(-10, 10, (2, m, count))
    if kind == "torn":
        return generator.choice(np.array([-LARGEST_PRICE, LARGEST_PRICE]), (2, m, count))
    return np.full((2, m, count), {"zero": 0, "high": LARGEST_PRICE, "low": -LARGEST_PRICE}[kind])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (2, 5), (1, 6), (4, 4)])
@pytest.mark.parametrize("prices", STARTS)
@pytest.mark.parametrize("largest", [1, 9, LARGEST_MAGNITUDE])
def test_any_start_leads_to_the_best(n: int, m: int, prices: str, largest: int) -> None:
    tiles = np.random.default_rng(0).integers(0, largest, (m, m, 30), endpoint=True)
    rows, columns = start(prices, m, 30)
    keep = balance(tiles, rows, columns, n).transpose(2, 0, 1)
    assert_exactly_n(keep, n)
    magnitudes = tiles.transpose(2, 0, 1).astype(np.float64)  # whole numbers below 2^53, and so are their sums
    assert (kept_sums(magnitudes, keep) == best_sums_by_trying_all(magnitudes, n)).all()


@pytest.mark.parametrize(("n", "m"), [(4, 8), (1, 8), (8, 16), (16, 32), (31, 32)])
@pytest.mark.parametrize("prices", STARTS)
@pytest.mark.parametrize("largest", [2, LARGEST_MAGNITUDE])
def test_the_prices_at_the_end_prove_the_choice(n: int, m: int, prices: str, largest: int) -> None:
    tiles = np.random.default_rng(0).integers(0, largest, (m, m, 4), endpoint=True)
    rows, columns = start(prices, m, 4)
    keep = balance(tiles, rows, columns, n)
    assert_exactly_n(keep.transpose(2, 0, 1), n)
    surplus = tiles - rows[:, None] - columns
    assert (surplus[keep] >= 0).all()
    assert (surplus[~keep] <= 0).all()
    # The bound by which no intermediate sum exceeds 63 bits.
    assert max(abs(rows).max(), abs(columns).max()) <= (m + 10) * LARGEST_MAGNITUDE


def test_of_paths_from_one_source_one_is_taken() -> None:
    # m = 2, so that lines are row 0, row 1, column 0, column 1. In the first tile both columns are reached from row 0; in the
    # second, column 0 from row 0 and column 1 from row 1; in the third, column 1 by way of column 0 and row 1.
    parents = np.array([[-1, -1, -1], [-1, -1, 0], [0, 0, 0], [0, 1, 1]])
    ends = np.zeros((4, 3), dtype=np.bool_)
    ends[2:] = True
    node, tile = _apart(ends, parents)
    assert sorted(zip(tile.tolist(), node.tolist(), strict=True)) == [(0, 2), (1, 2), (1, 3), (2, 2)]


def test_a_path_keeps_and_gives_up_in_turn() -> None:
    keep = np.array([[True, False], [True, False]])[:, :, None]
    # Column 1 from row 1, row 1 from column 0, column 0 from row 0, the source.
    parents = np.array([[-1], [0], [0], [1]])
    keep[0, 0] = False
    _flip(keep, parents, np.array([3]), np.array([0]))
    assert keep[:, :, 0].tolist() == [[True, False], [False, True]]
