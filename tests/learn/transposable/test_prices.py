"""Prices prove what they say they prove, and nothing else."""

import numpy as np
import pytest

from masksparse_deploy.learn.transposable.prices import improve_prices, proved_keep
from masksparse_deploy.learn.transposable.selection_network import nth_and_next_largest
from tests.learn.transposable.tiles import best_sums_by_trying_all, kept_sums, random_tiles


@pytest.mark.parametrize("m", [2, 3, 5, 8, 12, 16, 31, 32])
def test_a_network_selects_like_a_sort(m: int) -> None:
    values = np.random.default_rng(m).integers(0, 9, (m, 50)).astype(np.float32)
    ordered = -np.sort(-values, axis=0)
    for n in range(1, m):
        larger, smaller = nth_and_next_largest(list(values.copy()), n, spare=np.empty(50, dtype=np.float32))
        assert (larger == ordered[n - 1]).all()
        assert (smaller == ordered[n]).all()


def test_most_random_tiles_are_proved_and_what_is_proved_is_best() -> None:
    tiles = random_tiles(400, 4)
    rows, columns = np.zeros((2, 4, 400), dtype=np.float32)
    last = np.ascontiguousarray(tiles.transpose(1, 2, 0))
    improve_prices(last, rows, columns, 2, rounds=4)
    keep, proved = proved_keep(last, rows, columns, 2)
    assert 0.9 < proved.mean() < 1  # some are left, so that "all" below says something about both kinds
    sums = kept_sums(tiles, keep.transpose(2, 0, 1))
    assert (sums[proved] >= best_sums_by_trying_all(tiles, 2)[proved] * (1 - 2.0**-48)).all()


def identity(size: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles with twos on the diagonal and zeros elsewhere, and prices that prove the diagonal."""
    tiles = np.repeat(2 * np.eye(4, dtype=np.float32)[:, :, None], size, axis=2)
    return tiles, np.full((4, size), 0.5, dtype=np.float32), np.full((4, size), 0.5, dtype=np.float32)


def test_separating_prices_prove() -> None:
    tiles, rows, columns = identity()
    keep, proved = proved_keep(tiles, rows, columns, 1)
    assert proved.all()
    assert (keep[:, :, 0] == np.eye(4, dtype=np.bool_)).all()


def test_prices_that_keep_another_number_prove_nothing() -> None:
    tiles, rows, columns = identity()
    assert not proved_keep(tiles, rows, columns, 2)[1].any()


def test_one_wrong_price_proves_nothing() -> None:
    tiles, rows, columns = identity(3)
    rows[2, 1] = 3
    assert proved_keep(tiles, rows, columns, 1)[1].tolist() == [True, False, True]


def test_right_rows_do_not_hide_wrong_columns() -> None:
    tiles, rows, columns = identity()
    tiles[1] = tiles[0]  # every row has one weight above its price, but the first column has two
    keep, proved = proved_keep(tiles, rows, columns, 1)
    assert (keep.sum(axis=1) == 1).all()
    assert not proved.any()


def test_a_weight_at_its_price_proves_nothing() -> None:
    tiles, rows, columns = identity()
    tiles[0, 3] = 1
    assert not proved_keep(tiles, rows, columns, 1)[1].any()


def test_prices_that_are_not_numbers_prove_nothing() -> None:
    tiles, rows, columns = identity()
    rows[0] = np.nan
    assert not proved_keep(tiles, rows, columns, 1)[1].any()
