"""The exact solvers find the largest sum: against all admissible tiles, against linear programs, and against one another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksparse_deploy.learn.transposable.enumeration import admissible_tiles
from masksparse_deploy.learn.transposable.solve import Solver, solve_tiles
from tests.learn.transposable.tiles import (
    KINDS,
    assert_exactly_n,
    best_sum_by_linear_program,
    best_sums_by_trying_all,
    kept_sums,
    random_tiles,
)

# Both sums are added up in float64 by the tests: up to 1,024 terms, each rounded by half of 2^-52 of the sum.
SUMMATION = 1024 * 2.0**-53
# A documented bound on what rounding to whole numbers may lose: 2 n m 2^(e-41) with 2^e at most twice the largest magnitude.
FLOW = 2.0**-39


def few(n: int, m: int) -> bool:
    return m <= 4 or (min(n, m - n) == 1 and m <= 6) or m == 5


@pytest.mark.parametrize(("n", "m"), [(n, m) for m in range(1, 7) for n in range(1, m + 1) if few(n, m)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_admissible_tile_keeps_more(n: int, m: int, kind: str) -> None:
    tiles = random_tiles(40, m, kind=kind)
    found = solve_tiles(tiles, n)
    assert_exactly_n(found.keep, n)
    assert found.saturated.all()
    best = best_sums_by_trying_all(tiles, n)
    # What whole numbers may lose is 2 n m 2^(e-49): less than float64 sums do.
    np.testing.assert_allclose(kept_sums(tiles, found.keep), best, rtol=SUMMATION)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_enumeration_finds_the_best_too(n: int, m: int, kind: str) -> None:
    tiles = random_tiles(40, m, kind=kind)
    found = solve_tiles(tiles, n, solver="enumeration")
    assert_exactly_n(found.keep, n)
    np.testing.assert_allclose(kept_sums(tiles, found.keep), best_sums_by_trying_all(tiles, n), rtol=SUMMATION)


@pytest.mark.parametrize(("n", "m", "count"), [(4, 4, 1), (2, 4, 90), (1, 4, 24), (1, 5, 120), (2, 5, 2040), (1, 6, 720)])
def test_all_admissible_tiles_are_there(n: int, m: int, count: int) -> None:
    # m! for n = 1; 90 and 2040 as published for n = 2 (OEIS A001499).
    tiles = admissible_tiles(n, m)
    assert len(tiles) == count
    assert len(np.unique(tiles.reshape(count, -1), axis=0)) == count
    assert_exactly_n(tiles, n)


@pytest.mark.parametrize(("n", "m", "count"), [(4, 8, 12), (1, 8, 6), (7, 8, 6), (3, 12, 6), (8, 16, 6), (16, 32, 2)])
@pytest.mark.parametrize("solver", ["exact", "flow"])
@pytest.mark.parametrize("kind", ["normal", "few values"])
def test_no_fractional_tile_keeps_more(n: int, m: int, count: int, solver: Solver, kind: str) -> None:
    tiles = random_tiles(count, m, kind=kind)
    found = solve_tiles(tiles, n, solver=solver)
    assert_exactly_n(found.keep, n)
    best = [best_sum_by_linear_program(tile, n) for tile in tiles]
    # HiGHS is right to 1e-7 in every reduced cost, of which there are m^2, for coefficients of at most 1.
    np.testing.assert_allclose(kept_sums(tiles, found.keep), best, rtol=0, atol=1e-7 * m**2 * tiles.max())


@pytest.mark.parametrize(("n", "m", "count"), [(4, 8, 1000), (1, 8, 300), (5, 12, 300), (8, 16, 300), (16, 32, 60)])
@pytest.mark.parametrize("kind", KINDS)
def test_prices_and_flow_agree(n: int, m: int, count: int, kind: str) -> None:
    tiles = random_tiles(min(count, 100) if kind != "normal" else count, m, kind=kind)
    ours, theirs = (solve_tiles(tiles, n, solver=solver) for solver in ("exact", "flow"))
    assert_exactly_n(ours.keep, n)
    assert_exactly_n(theirs.keep, n)
    ahead = kept_sums(tiles, ours.keep) - kept_sums(tiles, theirs.keep)
    sums, largest = kept_sums(tiles, ours.keep), tiles.max(axis=(1, 2)).astype(np.float64)
    assert (ahead >= -SUMMATION * sums).all()  # ours rounds less
    assert (ahead <= SUMMATION * sums + FLOW * n * m * largest).all()


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.one_of(st.integers(0, 4), st.floats(0, 2.0**100, width=32)), min_size=16, max_size=16),
    n=st.integers(1, 4),
)
def test_any_tile_is_solved(values: list[float], n: int) -> None:
    tile = np.array(values, dtype=np.float32).reshape(1, 4, 4)
    found = solve_tiles(tile, n)
    assert_exactly_n(found.keep, n)
    assert kept_sums(tile, found.keep)[0] == pytest.approx(best_sums_by_trying_all(tile, n)[0], rel=SUMMATION)


def test_float64_magnitudes_are_not_rounded_to_float32() -> None:
    # The other diagonal is better by 2^-40, which float32 cannot tell from 1.
    diagonal = np.eye(8, dtype=np.bool_)[::-1]
    tile = np.where(diagonal, 1 + 2.0**-40, 1.0)[None]
    assert (solve_tiles(tile, 1).keep[0] == diagonal).all()
    assert not (solve_tiles(tile.astype(np.float32), 1).keep[0] == diagonal).all()


def test_a_transposed_tile_keeps_the_transposed_weights() -> None:
    tiles = random_tiles(200, 8)  # no ties: the best is unique
    keep = solve_tiles(tiles, 4).keep
    assert (solve_tiles(tiles.transpose(0, 2, 1), 4).keep == keep.transpose(0, 2, 1)).all()


def test_a_tile_less_than_best_is_seen() -> None:
    tiles = random_tiles(5, 4)
    keep = solve_tiles(tiles, 2).keep
    keep[3] = admissible_tiles(2, 4)[kept_sums(np.repeat(tiles[3:4], 90, axis=0), admissible_tiles(2, 4)).argsort()[-2]]
    short = best_sums_by_trying_all(tiles, 2) * (1 - SUMMATION) > kept_sums(tiles, keep)
    assert short.tolist() == [False, False, False, True, False]
    assert best_sum_by_linear_program(tiles[3], 2) > kept_sums(tiles, keep)[3] + 1e-7 * 16 * tiles.max()
