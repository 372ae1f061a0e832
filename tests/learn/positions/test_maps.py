import math
from fractions import Fraction

import numpy as np
import pytest

from masksparse_deploy.learn.positions.maps import (
    PositionMaps,
    dropped_count,
    freezing_step,
    keep_highest,
    pool_scores,
    ramped_rate,
)

SIZES = {"a": (7, 9), "b": (7, 9), "c": (4, 5), "d": (2, 3)}


def maps(**change: object) -> PositionMaps:
    return PositionMaps(**{"sizes": SIZES, "image_size": (7, 9), "propagated": True, "seed": 0, **change})


@pytest.mark.parametrize("propagated", [True, False])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_every_layer_drops_the_rounded_share(propagated: bool, rate: float) -> None:
    for number in range(5):
        for name, keep in maps(propagated=propagated).keep(number, rate).items():
            assert keep.shape == SIZES[name]
            exact = Fraction(str(rate)) * keep.size
            assert np.count_nonzero(~keep) == math.floor(exact + Fraction(1, 2))


def test_halves_are_rounded_up() -> None:
    assert [dropped_count((1, 5), rate) for rate in (0.09, 0.1, 0.5)] == [0, 1, 3]


def test_of_equal_scores_the_first_are_dropped() -> None:
    keep = keep_highest(np.array([[2.0, 1.0], [1.0, 1.0]]), 0.5)
    assert keep.tolist() == [[True, False], [False, True]]


def test_layers_of_one_size_share_a_propagated_mask_and_have_their_own_else() -> None:
    propagated, independent = maps().keep(3, 0.3), maps(propagated=False).keep(3, 0.3)
    assert np.array_equal(propagated["a"], propagated["b"])
    assert not np.array_equal(independent["a"], independent["b"])


def test_propagated_masks_of_different_sizes_drop_the_same_places() -> None:
    sizes = {"fine": (16, 16), "coarse": (8, 8)}

    def agreement(propagated: bool) -> float:
        found = []
        for number in range(20):
            keep = maps(sizes=sizes, image_size=(16, 16), propagated=propagated).keep(number, 0.5)
            spread = np.repeat(np.repeat(keep["coarse"], 2, 0), 2, 1)
            found.append(np.corrcoef(keep["fine"].ravel(), spread.ravel())[0, 1])
        return float(np.mean(found))

    # Of four uniform scores, each is correlated with their mean by 1/2, less after cutting both at the median. A mean of
    # 20 correlations of 256 pairs in 64 squares strays by less than 0.1.
    assert agreement(propagated=True) > 0.25
    assert abs(agreement(propagated=False)) < 0.1


def test_pooling_takes_the_mean_of_the_pixels_that_a_position_stands_for() -> None:
    scores = np.random.default_rng(0).random((7, 9))
    pooled = pool_scores(scores, (4, 5))
    for row in range(4):
        for column in range(5):
            part = scores[row * 7 // 4 : -(-(row + 1) * 7 // 4), column * 9 // 5 : -(-(column + 1) * 9 // 5)]
            assert pooled[row, column] == pytest.approx(part.mean(), rel=1e-12)
    assert np.array_equal(pool_scores(scores, (7, 9)), scores)


def test_maps_differ_by_number_and_seed_and_by_nothing_else() -> None:
    first = maps().keep(1, 0.3)["a"]
    assert np.array_equal(first, maps().keep(1, 0.3)["a"])
    assert not np.array_equal(first, maps().keep(2, 0.3)["a"])
    assert not np.array_equal(first, maps(seed=1).keep(1, 0.3)["a"])


def test_a_map_drops_more_as_the_share_grows() -> None:
    few, many = (maps().keep(1, rate)["a"] for rate in (0.2, 0.4))
    assert not (many & ~few).any()


@pytest.mark.parametrize("total", [1, 2, 5, 9, 10, 11, 100, 391])
def test_the_ramp_rises_from_nothing_to_the_final_share(total: int) -> None:
    rates = [ramped_rate(step, total, 0.3, 0.9) for step in range(total)]
    assert rates == sorted(rates)
    assert rates[-1] == 0.3
    assert rates[freezing_step(total, 0.9)] == 0.3
    assert all(rate == 0 for rate in rates[: total // 10])
    # Nine tenths of the steps, where there are enough of them for one to be left.
    assert freezing_step(total, 0.9) == (math.ceil(0.9 * total) if total >= 10 else total - 1)


def test_the_ramp_is_that_of_the_paper() -> None:
    # In the middle between a tenth and nine tenths p is a half: s = s_f (1 - 1/4).
    assert ramped_rate(50, 100, 0.4, 0.9) == pytest.approx(0.3)
    assert ramped_rate(10, 100, 0.4, 0.9) == 0
    assert 0 < ramped_rate(11, 100, 0.4, 0.9) < ramped_rate(89, 100, 0.4, 0.9) < 0.4


def test_the_ramp_may_end_earlier() -> None:
    assert ramped_rate(30, 100, 0.4, 0.5) == pytest.approx(0.3)
    assert ramped_rate(49, 100, 0.4, 0.5) < 0.4 == ramped_rate(50, 100, 0.4, 0.5)
