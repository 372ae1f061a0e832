"""The arithmetic of an estimate."""

import numpy as np
import pytest

from masksparse_deploy.forecast.estimate import Gain, estimate, joint_confidence, measured_speedup, median_gain

TEN = np.full(20, 10.0)


def test_gains_are_taken_off_the_networks_time() -> None:
    gains = [
        Gain(count=3, ms=1.0, low=0.5, high=1.5, confidence=0.99),
        Gain(count=1, ms=-1.0, low=-1.0, high=-1.0, confidence=0.99),
    ]
    found = estimate(TEN, gains, 0.95)
    assert found is not None
    assert found.ratio == pytest.approx(10 / (10 - 2))
    assert (found.interval.low, found.interval.high) == pytest.approx((10 / (10 - 0.5), 10 / (10 - 3.5)))


def test_the_ends_come_from_the_networks_noise_too() -> None:
    times = np.repeat([9.0, 11.0], 10)
    found = estimate(times, [Gain(count=1, ms=1.0, low=1.0, high=1.0, confidence=0.99)], 0.95)
    assert found is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((11 / 10, 9 / 8))
    losing = estimate(times, [Gain(count=1, ms=-1.0, low=-1.0, high=-1.0, confidence=0.99)], 0.95)
    assert losing is not None
    assert (losing.interval.low, losing.interval.high) == pytest.approx((9 / 10, 11 / 12))


def test_an_interval_claims_no_more_than_its_rounds_reach() -> None:
    """Ten rounds reach 1 - 2^-9 for each of two medians, and both hold together with 1 - 2^-8 at least."""
    ten = np.linspace(9, 11, 10)
    ms, interval = median_gain(ten, ten - 1, 0.9999)
    gains = [Gain(count=1, ms=ms, low=interval.low, high=interval.high, confidence=interval.confidence)]
    found = estimate(ten, gains, 0.9999)
    assert found is not None and found.interval.confidence == pytest.approx(1 - 2**-8)
    enough = estimate(np.linspace(9, 11, 40), [], 0.95)
    assert enough is not None and enough.interval.confidence == 0.95


def test_without_gains_nothing_changes() -> None:
    found = estimate(TEN, [], 0.95)
    assert found is not None and (found.ratio, found.interval.low, found.interval.high) == (1.0, 1.0, 1.0)


def test_more_gain_than_time_tells_nothing() -> None:
    assert estimate(TEN, [Gain(count=1, ms=9.0, low=8.0, high=10.0, confidence=0.99)], 0.95) is None


@pytest.mark.parametrize(("confidence", "covers"), [(joint_confidence(0.95, 4), True), (0.1, False)])
def test_the_joint_interval_covers_the_true_speedup(confidence: float, covers: bool) -> None:
    """Three kinds and a network with noise: 200 runs miss the truth as rarely as they may, unless each interval is too narrow.

    With a chance of 5 % 200 runs miss it 10 times, and more than 20 times with a probability of 0.1 % (binomial). Intervals of
    10 % for each kind, which add up to more than that, miss it more often.
    """
    random = np.random.default_rng(0)
    truth, missed = 10 / (10 - 3 * 0.5), 0
    for _ in range(200):
        gains = []
        for _ in range(3):
            ms, interval = median_gain(2 + random.normal(0, 0.1, 20), 1.5 + random.normal(0, 0.1, 20), confidence)
            gains.append(Gain(count=1, ms=ms, low=interval.low, high=interval.high, confidence=interval.confidence))
        found = estimate(np.full(20, 10.0), gains, 0.95)
        assert found is not None
        missed += not found.interval.low <= truth <= found.interval.high
    assert (missed <= 20) == covers


def test_a_speedup_is_the_median_of_ratios_within_rounds() -> None:
    dense = np.array([2.0, 4.0, 6.0] * 7)
    found = measured_speedup(dense, dense / 2, 0.95)
    assert (found.ratio, found.interval.low, found.interval.high) == (2.0, 2.0, 2.0)
