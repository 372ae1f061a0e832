"""Approximations keep at most n everywhere, say where they keep less, and hold what they guarantee."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksparse_deploy.learn.transposable.entropy import regularised_plan
from masksparse_deploy.learn.transposable.greedy import keep_greedily, prune_two_approximately
from masksparse_deploy.learn.transposable.solve import Solver, solve_tiles
from masksparse_deploy.learn.transposable.swaps import saturate_by_swaps
from tests.learn.transposable.tiles import KINDS, best_sums_by_trying_all, kept_sums, random_tiles

SOLVERS: tuple[Solver, ...] = ("greedy", "two-approximation", "entropy")
# Sums of 16 terms, up to two of which are compared, in float64.
SUMMATION = 32 * 2.0**-53


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (4, 4), (4, 8), (3, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_line_keeps_more_than_n_and_saturation_is_told(solver: Solver, n: int, m: int, kind: str) -> None:
    found = solve_tiles(random_tiles(50, m, kind=kind), n, solver=solver)
    in_lines = np.concatenate([found.keep.sum(axis=1), found.keep.sum(axis=2)], axis=1)
    assert (in_lines <= n).all()
    assert (found.saturated == (in_lines == n).all(axis=1)).all()


@settings(max_examples=300, deadline=None)
@given(values=st.lists(st.floats(0, 1024, width=32), min_size=16, max_size=16), n=st.integers(1, 3))
def test_the_two_approximation_prunes_at_most_twice_the_least(values: list[float], n: int) -> None:
    tile = np.array(values, dtype=np.float32).reshape(1, 4, 4)
    pruned = kept_sums(tile, ~prune_two_approximately(tile, n))[0]
    least = kept_sums(tile, np.ones_like(tile, dtype=np.bool_))[0] - best_sums_by_trying_all(tile, n)[0]
    assert pruned <= 2 * least + SUMMATION * tile.sum()


def test_the_guarantee_can_be_violated() -> None:
    # Pruning the larger diagonal of two: ten times what is necessary.
    tile = np.where(np.eye(2, dtype=np.bool_), 10.0, 1.0)[None]
    pruned = kept_sums(tile, np.eye(2, dtype=np.bool_)[None])[0]
    assert pruned > 2 * (tile.sum() - best_sums_by_trying_all(tile, 1)[0])


def test_greedy_takes_the_largest_first() -> None:
    tile = np.array([[[9, 8], [7, 1]]], dtype=np.float32)
    assert keep_greedily(tile, 1)[0].tolist() == [[True, False], [False, True]]  # 9 and then 1, though 8 + 7 is more
    assert solve_tiles(tile, 1).keep[0].tolist() == [[False, True], [True, False]]


def test_the_two_approximation_prunes_the_smallest_first() -> None:
    tile = np.array([[[9, 2], [3, 1]]], dtype=np.float32)
    # 1 goes, then 2, as its row has lost nothing yet, and 3, as its column has not; then all lines have lost one.
    assert prune_two_approximately(tile, 1)[0].tolist() == [[True, False], [False, False]]


def test_a_swap_gives_a_row_and_a_column_one_weight_more() -> None:
    # Greedy, n = 2: the last row and the last column end with one each and meet in a kept weight.
    tile = np.array([[[9, 8, 1], [8, 9, 2], [1, 2, 9]]], dtype=np.float32)
    before = keep_greedily(tile, 2)
    assert before[0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    after = saturate_by_swaps(before, tile, 2)
    # Giving up 8 for 2 + 1 loses, 9 for 2 + 2 too: no exchange is made.
    assert (after == before).all()
    tile[0, 2, 1] = tile[0, 1, 2] = 6
    after = saturate_by_swaps(before, tile, 2)
    assert after[0].tolist() == [[True, True, False], [True, False, True], [False, True, True]]


def test_a_free_place_is_taken_without_an_exchange() -> None:
    tile = np.ones((1, 4, 4), dtype=np.float32)
    assert saturate_by_swaps(np.zeros((1, 4, 4), dtype=np.bool_), tile, 4).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 5), kind=st.sampled_from(KINDS))
def test_swaps_lose_neither_weights_nor_magnitude(seed: int, n: int, kind: str) -> None:
    tiles = random_tiles(20, 6, kind=kind, seed=seed) / np.float32(4)  # room for the sum of three
    before = keep_greedily(tiles, n)
    after = saturate_by_swaps(before, tiles, n)
    assert (after.sum(axis=(1, 2)) >= before.sum(axis=(1, 2))).all()
    # A swap is judged by a sum of three float32 terms; there are at most as many as weights.
    slack = 36 * 3 * 2.0**-24 * tiles.max(axis=(1, 2)).astype(np.float64)
    assert (kept_sums(tiles, after) >= kept_sums(tiles, before) - slack).all()
    assert (after.sum(axis=1) <= n).all()
    assert (after.sum(axis=2) <= n).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 8)])
def test_the_regularised_plan_has_rows_and_columns_of_n(n: int, m: int) -> None:
    plan = np.exp(regularised_plan(random_tiles(50, m), n, steps=3000))
    assert plan.max() <= 1
    # What 3,000 rounds in float32 leave; 300 leave ten times as much on the slowest of these tiles.
    assert np.abs(plan.sum(axis=1) - n).mean() < 1e-3
    assert np.abs(plan.sum(axis=2) - n).mean() < 1e-3


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_saturated_tile_keeps_more_than_the_exact_one(n: int, m: int, solver: Solver) -> None:
    tiles = random_tiles(1000, m)
    found, best = (solve_tiles(tiles, n, solver=name) for name in (solver, "exact"))
    ahead = kept_sums(tiles, found.keep) - kept_sums(tiles, best.keep)
    assert (ahead[found.saturated] <= SUMMATION * m * m).all()


def test_a_tile_that_is_not_saturated_may_keep_more_than_the_exact_one() -> None:
    # Four weights of 9 fill two rows and two columns: the last row and column then have room, but no place for a second weight.
    tile = np.array([[[9, 9, 0], [9, 9, 0], [0, 0, 0.5]]])
    found, best = (solve_tiles(tile, 2, solver=solver) for solver in ("greedy", "exact"))
    assert not found.saturated.any()
    assert kept_sums(tile, found.keep) > kept_sums(tile, best.keep)


def test_the_entropy_comes_closer_than_greedy_and_both_than_the_two_approximation() -> None:
    tiles = random_tiles(1000, 8)
    sums = [
        kept_sums(tiles, solve_tiles(tiles, 4, solver=solver).keep).sum()
        for solver in ("two-approximation", "greedy", "entropy")
    ]
    assert sums == sorted(sums)
