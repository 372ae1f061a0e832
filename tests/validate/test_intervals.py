import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.validate.intervals import compare_accuracy, drop_interval, share_interval


def test_no_flip_in_ten_thousand():
    # the binomial probability of no flip at the upper end is half of the error: 1 - 0.025^(1 / 10,000)
    assert share_interval(0, 10_000, 0.95).high == pytest.approx(1 - 0.025 ** (1 / 10_000), rel=1e-9)
    assert share_interval(0, 10_000, 0.95).high <= 3.7e-4


def test_published_interval():
    # 10 of 100 at 95 %: 4.90 % to 17.62 % in the tables of the exact method
    interval = share_interval(10, 100, 0.95)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.0490, 0.1762)


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, None), (7, None, 1.0)])
def test_all_and_none(count, low, high):
    interval = share_interval(count, 7, 0.9)
    assert low is None or interval.low == low
    assert high is None or interval.high == high


def _coverage(total: int, share: float, confidence: float, interval=share_interval) -> float:
    """The probability that the interval holds the true share, by enumeration of all outcomes."""
    inside = 0.0
    for count in range(total + 1):
        found = interval(count, total, confidence)
        if found.low <= share <= found.high:
            inside += float(binom.pmf(count, total, share))
    return inside


@pytest.mark.parametrize("total", [1, 2, 5, 13, 30])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_coverage_by_enumeration(total, share):
    # 1e-12 for the rounding of the summed probabilities
    assert _coverage(total, share, 0.95) >= 0.95 - 1e-12


def test_coverage_test_catches_the_normal_approximation():
    from masksparse_deploy.core.artifacts.document import Interval

    def wald(count, total, confidence):
        share = count / total
        half = 1.96 * math.sqrt(share * (1 - share) / total)
        return Interval(low=share - half, high=share + half, confidence=confidence)

    assert _coverage(30, 0.004, 0.95, wald) < 0.95


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.1, 0.0), (0.2, 0.1), (0.5, 0.4)])
def test_drop_coverage_by_enumeration(shares):
    total, drop = 9, 100 * (shares[0] - shares[1])
    inside = 0.0
    for lost in range(total + 1):
        for won in range(total + 1 - lost):
            found = drop_interval(lost, won, total, 0.9)
            if found.low - 1e-9 <= drop <= found.high + 1e-9:  # 1e-9 points for the rounding of `drop`
                inside += float(multinomial.pmf([lost, won, total - lost - won], total, [*shares, 1 - sum(shares)]))
    assert inside >= 0.9 - 1e-12


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.floats(0.5, 0.999))
def test_interval_holds_the_measured_share(total_count, confidence):
    total, count = total_count
    interval = share_interval(count, total, confidence)
    assert 0 <= interval.low <= count / total <= interval.high <= 1


def test_compare_accuracy():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    dense = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 1])
    sparse = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0])
    # lost: samples 3 and 8; won: sample 7; flips: 3, 7, 8 and 9 (wrong both times, but another class)
    result = compare_accuracy(dense, sparse, labels, 0.95)
    assert (result.dense_correct, result.sparse_correct) == (8, 7)
    assert result.drop_points == pytest.approx(10.0)
    assert (result.disagreement_count, result.flip_rate) == (4, 0.4)
    assert result.drop_interval == drop_interval(2, 1, 10, 0.95)
    assert result.drop_interval.low < result.drop_points < result.drop_interval.high


def test_equal_networks_have_an_interval_around_zero():
    interval = drop_interval(0, 0, 597, 0.95)
    assert interval.low == -interval.high < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share_interval(3, 2, 0.95), "3 of 2 is not a share"),
        (lambda: share_interval(0, 0, 0.95), "0 of 0 is not a share"),
        (lambda: share_interval(1, 2, 95), "confidence 95 is not between 0 and 1"),
        (lambda: drop_interval(3, 2, 4, 0.95), "3 lost and 2 won samples are more than the 4"),
        (lambda: compare_accuracy(np.zeros(2), np.zeros(3), np.zeros(2, np.int64), 0.9), "2 dense and 3 sparse classes"),
    ],
)
def test_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
