import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from masksparse_deploy.profiling.quotients import _arrangements, build_quotient, relative_times


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (2, 1 - 2 / 6), (3, 0.9), (4, 1 - 2 / 70), (5, 1 - 2 * 4 / 252)])
def test_what_few_builds_can_reach(count: int, expected: float) -> None:
    """By hand: of the C(2n, n) orders of all builds only one has every build of the one before every build of the other.

    With five of each, the orders with U = 0, 1 and 2 are 1, 1 and 2, and 2 * 4 / 252 = 3.2 % is still below 5 %.
    """
    times = np.arange(1.0, count + 1)
    found = build_quotient(times, times + 0.1, 0.95)
    assert found.coverage == pytest.approx(expected, abs=1e-12)


def test_the_distribution_is_that_of_mann_and_whitney() -> None:
    """Sums of the counts against SciPy's exact p-values."""
    first, second = 4, 5
    total = math.comb(9, 4)
    assert sum(_arrangements(first, second, u) for u in range(21)) == total
    generator = np.random.default_rng(0)
    for _ in range(10):
        x, y = generator.standard_normal(first), generator.standard_normal(second)
        test = mannwhitneyu(x, y, alternative="less", method="exact")
        ours = sum(_arrangements(first, second, u) for u in range(int(test.statistic) + 1)) / total
        assert ours == pytest.approx(test.pvalue, rel=1e-12)


@pytest.mark.parametrize("draw", ["standard_normal", "standard_exponential"])
def test_the_interval_covers_the_factor_as_often_as_it_says(draw: str) -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        dense, sparse = np.exp(0.05 * getattr(generator, draw)((2, 3)))
        found = build_quotient(1.2 * dense, sparse, 0.95)
        assert found.coverage == pytest.approx(0.9)
        covered += found.low < 1.2 < found.high
    # 900 expected, standard deviation sqrt(1000 * 0.9 * 0.1) = 9.5; four of them
    assert abs(covered - 900) <= 38


def test_where_one_engine_alone_varies_the_range_is_that_of_a_median() -> None:
    """What the documentation warns of: of three values one lies on either side of the median with 1 - 2 / 8."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        found = build_quotient(np.full(3, 1.2), np.exp(0.05 * generator.standard_normal(3)), 0.95)
        covered += found.low < 1.2 < found.high
    # 750 expected, standard deviation sqrt(1000 * 0.75 * 0.25) = 13.7; four of them
    assert abs(covered - 750) <= 55


def test_the_ends_are_order_statistics_of_the_ratios() -> None:
    found = build_quotient(np.array([2.0, 2.2, 2.1]), np.array([1.0, 1.1, 1.05]), 0.95)
    assert (found.low, found.high) == (2.0 / 1.1, 2.2 / 1.0)
    assert len(found.of_pairs) == 9
    assert found.ratio == np.median(found.of_pairs)
    # half the confidence needs less than the range
    narrow = build_quotient(np.array([2.0, 2.2, 2.1]), np.array([1.0, 1.1, 1.05]), 0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_what_slows_a_round_cancels() -> None:
    slowness = np.exp(np.random.default_rng(2).standard_normal(50))
    times = np.array([[2.0], [1.0], [4.0]]) * slowness
    relative = relative_times(times)
    np.testing.assert_allclose(relative / relative[1], [2.0, 1.0, 4.0], rtol=1e-12)
