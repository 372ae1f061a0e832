"""Statistics of latencies: pure functions of arrays, with no assumption about how the times are distributed."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from masksparse_deploy.core.artifacts.timing import Latency

__all__ = [
    "MedianInterval",
    "correlation_limit",
    "fewest_values",
    "independent_blocks",
    "latency",
    "median_interval",
    "neighbour_correlation",
    "round_ratios",
]

Array = npt.NDArray[np.float64]

# One-sided 1 % quantile of the standard normal distribution: the lag-1 correlation of n independent values is about N(0, 1/n).
_CORRELATION_QUANTILE = 2.326


@dataclass(frozen=True)
class MedianInterval:
    """An interval for the median of a distribution; `coverage` is exact for independent values."""

    low: float
    high: float
    coverage: float


def latency(samples_ms: Array, *, batch: int) -> Latency:
    """Summary of single inferences, float64 (count,), milliseconds.

    p90 and p99 are the smallest sample that at least 90 % and 99 % of the samples do not exceed. The throughput counts
    images, `batch` an inference, over the total time.
    """
    p90, p99 = (float(np.quantile(samples_ms, q, method="inverted_cdf")) for q in (0.9, 0.99))
    mean = float(samples_ms.mean())
    return Latency(
        median_ms=float(np.median(samples_ms)),
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=mean,
        throughput_per_s=1000 * batch / mean if mean > 0 else 0.0,
        samples_ms=tuple(samples_ms.tolist()),
    )


def round_ratios(numerator_ms: Array, denominator_ms: Array) -> Array:
    """Ratio of the medians within each round: float64 (rounds, inferences) twice -> (rounds,)."""
    ratios: Array = np.median(numerator_ms, axis=1) / np.median(denominator_ms, axis=1)
    return ratios


def median_interval(values: Array, confidence: float) -> MedianInterval:
    """The narrowest symmetric interval between order statistics that covers the median with at least `confidence`.

    Of n independent values from any continuous distribution, B ~ Binomial(n, 1/2) lie below its median, so that
    P(X_(k) < median < X_(n+1-k)) = 1 - 2 P(B <= k - 1) (David and Nagaraja, Order Statistics, section 7.1). Where even the
    smallest and the largest value reach less than `confidence`, these are returned with the coverage that they have.

    Args:
        values: float64 (count,), at least one.
        confidence: the wanted coverage, in (0, 1).
    """
    ordered = np.sort(values)
    count = len(ordered)
    # the largest k with 2 P(B <= k - 1) <= 1 - confidence
    tails = 2 * binom.cdf(np.arange((count + 1) // 2), count, 0.5)
    rank = max(int(np.searchsorted(tails, 1 - confidence, side="right")), 1)
    coverage = max(1 - float(tails[rank - 1]), 0.0)
    return MedianInterval(low=float(ordered[rank - 1]), high=float(ordered[count - rank]), coverage=coverage)


def fewest_values(confidence: float) -> int:
    """The smallest count n for which smallest and largest value cover the median: 1 - 2^(1 - n) >= confidence."""
    return math.ceil(1 - math.log2(1 - confidence))


def neighbour_correlation(values: Array) -> float:
    """Lag-1 correlation of the signs of `values` around their median; 0 where all values are equal.

    The interval of the median counts values below it: these signs are what must be independent.
    """
    signs = np.sign(values - np.median(values))
    energy = float(signs @ signs)
    return float(signs[:-1] @ signs[1:]) / energy if energy else 0.0


def correlation_limit(count: int) -> float:
    """The lag-1 correlation that `count` independent values exceed with a probability of about 1 %: 2.33 / sqrt(count)."""
    return _CORRELATION_QUANTILE / math.sqrt(count)


def independent_blocks(values: Array, *, minimum: int) -> tuple[Array, int]:
    """Join neighbours until they look independent: medians of blocks, and the size of a block.

    The size doubles until the lag-1 correlation is within its limit, or until fewer than `minimum` blocks would be left. A
    rest that fills no block is dropped. The coverage of an interval from the result is approximate for a size above 1.
    """
    size = 1
    blocks = values
    while neighbour_correlation(blocks) > correlation_limit(len(blocks)) and len(values) // (2 * size) >= minimum:
        size *= 2
        count = len(values) // size
        blocks = np.median(values[: count * size].reshape(count, size), axis=1)
    return blocks, size
