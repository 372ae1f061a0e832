from itertools import pairwise
from math import comb
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksparse_deploy.profiling.latencies import (
    correlation_limit,
    fewest_values,
    independent_blocks,
    latency,
    median_interval,
    neighbour_correlation,
    round_ratios,
)

FINITE = st.floats(min_value=1e-3, max_value=1e3)


def exact_coverage(count: int, covers: list[bool]) -> float:
    """Each value lies below the median with probability 1/2: covers[b] tells of the outcomes with b values below it."""
    return sum(comb(count, below) for below in range(count + 1) if covers[below]) / 2**count


def around_zero(count: int, below: int) -> npt.NDArray[np.float64]:
    """`count` distinct values of which `below` are negative: the true median is 0."""
    return np.arange(count) - below + 0.5


@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 10, 25, 100])
def test_the_coverage_is_exact_and_no_narrower_interval_would_do(count: int, confidence: float) -> None:
    covers, narrower_covers = [], []
    for below in range(count + 1):
        values = around_zero(count, below)
        interval = median_interval(values, confidence)
        covers.append(interval.low < 0 < interval.high)
        low, high = np.searchsorted(values, [interval.low, interval.high])
        narrower_covers.append(bool(low + 1 < high and values[low + 1] < 0 < values[high - 1]))
    coverage = median_interval(around_zero(count, 0), confidence).coverage
    assert exact_coverage(count, covers) == pytest.approx(coverage, abs=1e-12)
    # the planted fault: one order statistic further in
    assert exact_coverage(count, narrower_covers) < confidence
    assert (coverage >= confidence) == (count >= fewest_values(confidence))


@given(st.lists(FINITE, min_size=1, max_size=60), st.randoms())
def test_the_interval_holds_the_sample_median_in_any_order(values: list[float], shuffler: Random) -> None:
    interval = median_interval(np.array(values), 0.95)
    assert interval.low <= np.median(values) <= interval.high
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    assert median_interval(np.array(shuffled), 0.95) == interval


@given(st.lists(FINITE, min_size=1, max_size=60), st.floats(min_value=0.51, max_value=0.99))
def test_more_confidence_never_gives_a_narrower_interval(values: list[float], confidence: float) -> None:
    narrow, wide = median_interval(np.array(values), confidence), median_interval(np.array(values), 0.995)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


def test_latency_counts_samples() -> None:
    summary = latency(np.arange(1.0, 101.0), batch=8)
    assert (summary.median_ms, summary.p90_ms, summary.p99_ms, summary.mean_ms) == (50.5, 90.0, 99.0, 50.5)
    assert summary.throughput_per_s == pytest.approx(8 * 100 / (5050 / 1000))
    assert summary.samples_ms[:3] == (1.0, 2.0, 3.0)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_percentiles_are_ordered(samples: list[float]) -> None:
    summary = latency(np.array(samples), batch=1)
    levels = (min(samples), summary.median_ms, summary.p90_ms, summary.p99_ms, max(samples))
    # the median of an even count lies between two samples, and may exceed p90 only for fewer than two
    assert len(samples) < 2 or all(a <= b for a, b in pairwise(levels))


def test_ratios_use_the_median_of_each_round() -> None:
    dense, sparse = np.array([[2.0, 2.0, 90.0], [4.0, 4.0, 4.0]]), np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 70.0]])
    np.testing.assert_array_equal(round_ratios(dense, sparse), [2.0, 2.0])


def slow_wave(generator: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Median 0; neighbours correlate by 0.7."""
    values = np.zeros(count)
    previous = generator.standard_normal()
    for index in range(count):
        previous = 0.7 * previous + np.sqrt(1 - 0.49) * generator.standard_normal()
        values[index] = previous
    return values


def test_independent_values_stay_and_dependent_ones_are_joined() -> None:
    generator = np.random.default_rng(0)
    independent, size = independent_blocks(generator.standard_normal(400), minimum=20)
    assert (len(independent), size) == (400, 1)
    blocks, size = independent_blocks(slow_wave(generator, 400), minimum=20)
    assert size > 1
    assert len(blocks) == 400 // size
    assert neighbour_correlation(blocks) <= correlation_limit(len(blocks))


def test_blocks_stop_at_the_minimum() -> None:
    ramp = np.arange(100.0)
    blocks, size = independent_blocks(ramp, minimum=20)
    assert (len(blocks), size) == (25, 4)
    assert neighbour_correlation(blocks) > correlation_limit(25)


def test_equal_values_have_no_correlation() -> None:
    assert neighbour_correlation(np.ones(50)) == 0.0


def test_blocks_restore_the_coverage_that_dependence_takes() -> None:
    generator = np.random.default_rng(1)
    runs = 200
    raw = joined = 0
    for _ in range(runs):
        values = slow_wave(generator, 200)
        for is_joined in (False, True):
            interval = median_interval(independent_blocks(values, minimum=20)[0] if is_joined else values, 0.95)
            covered = interval.low <= 0 <= interval.high
            joined += is_joined and covered
            raw += covered and not is_joined
    # treated as independent, 95 % become about 63 %: the interval is too narrow by sqrt((1 + r) / (1 - r)), r the signs' lag-1
    # correlation; three standard deviations of a share of 200 are at most 0.11
    assert raw / runs < 0.80
    assert joined / runs > 0.85
