import numpy as np
import pytest

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.transposable.solve import Solver, transposable_mask

MAGNITUDE = np.abs(np.random.default_rng(0).standard_normal((16, 8, 3, 3))).astype(np.float32)


def test_other_patterns_are_those_of_magnitude() -> None:
    pattern = NMPattern.parse("2:4")
    assert np.array_equal(choose_mask(MAGNITUDE, pattern, "exact"), pattern.keep_largest(MAGNITUDE, group_axis=1))


@pytest.mark.parametrize("solver", ["exact", "greedy", "two-approximation", "entropy"])
@pytest.mark.parametrize("text", ["T2:4", "T4:8"])
def test_masks_are_exactly_transposable_whatever_the_solver(solver: Solver, text: str) -> None:
    pattern = NMPattern.parse(text)
    keep = choose_mask(MAGNITUDE, pattern, solver)
    for axis in (0, 1):
        groups = np.moveaxis(keep, axis, -1).reshape(-1, pattern.m)
        assert (groups.sum(1) == pattern.n).all()


def test_tiles_that_an_approximation_fills_stay_its_own() -> None:
    pattern = NMPattern.parse("T2:4")
    # It over-prunes, or there would be nothing to repair here.
    assert transposable_mask(MAGNITUDE, pattern, solver="two-approximation").mean() < 0.5
    greedy = transposable_mask(MAGNITUDE, pattern, solver="greedy")
    exact = transposable_mask(MAGNITUDE, pattern, solver="exact")
    found = choose_mask(MAGNITUDE, pattern, "greedy")
    assert np.array_equal(found, greedy) or greedy.mean() < 0.5
    assert not np.array_equal(found, exact)
