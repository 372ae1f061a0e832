"""How many times as fast one engine is as another, when both were built several times.

A builder that times kernels while it builds decides differently each time. Builds of one file are therefore draws from a
distribution of engines, and a ratio that is to hold for the next build must cover what builds differ by. Rounds cannot tell
that, however many there are.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BuildQuotient", "build_quotient", "relative_times"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BuildQuotient:
    """A ratio of the times of two engines' builds.

    Attributes:
        ratio: the median of `of_pairs` (Hodges and Lehmann's estimate of a factor between two distributions).
        low, high: the ends of the interval.
        coverage: of the interval; exact if builds of both engines are independent and vary alike, that is, if the times of
            the two differ in distribution by a factor only. Nothing is assumed about the shape of that distribution.
        of_pairs: float64 (numerator builds * denominator builds,), the ratio of each build to each, ascending.
    """

    ratio: float
    low: float
    high: float
    coverage: float
    of_pairs: Array


def relative_times(times_ms: Array) -> Array:
    """One time for each build, in which what slows all builds of a round cancels.

    Args:
        times_ms: float64 (builds, rounds), a build's median time in a round.

    Returns:
        float64 (builds,): the median over rounds of a build's time, relative to the geometric mean of all builds of the round.
    """
    logarithms = np.log(times_ms)
    result: Array = np.exp(np.median(logarithms - logarithms.mean(axis=0), axis=1))
    return result


def build_quotient(numerator: Array, denominator: Array, confidence: float) -> BuildQuotient:
    """The factor between two distributions of build times, with an interval from order statistics of the ratios.

    With n and m independent builds and no factor between them, the number of pairs in which the first takes less time has the
    distribution of Mann and Whitney's U, so that the k-th smallest and the k-th largest of the n m ratios cover the factor
    with 1 - 2 P(U <= k - 1) (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, section 4.3). Three builds of
    each reach 90 % at most, four 97 %; if the builds of one engine are all alike and the other's are not, three reach 75 %, as
    the interval is then that of a median of three. Where even the smallest and the largest ratio reach less than `confidence`,
    these are returned with the coverage that they have.

    Args:
        numerator: float64 (n,), one time a build.
        denominator: float64 (m,), in the same unit.
        confidence: the wanted coverage, in (0, 1).
    """
    pairs = np.sort((numerator[:, None] / denominator).ravel())
    counts = len(numerator), len(denominator)
    total = math.comb(sum(counts), counts[0])
    rank, below = 1, _arrangements(*counts, 0)
    while 2 * (below + _arrangements(*counts, rank)) <= (1 - confidence) * total:
        below += _arrangements(*counts, rank)
        rank += 1
    return BuildQuotient(
        ratio=float(np.median(pairs)),
        low=float(pairs[rank - 1]),
        high=float(pairs[len(pairs) - rank]),
        coverage=max(1 - 2 * below / total, 0.0),
        of_pairs=pairs,
    )


@functools.cache
def _arrangements(first: int, second: int, statistic: int) -> int:
    """In how many orders of `first` and `second` values exactly `statistic` pairs have the first value in front.

    The largest of all is one of the first values, and none of its pairs counts, or one of the second, and all of its do.
    """
    if statistic < 0:
        return 0
    if first == 0 or second == 0:
        return int(statistic == 0)
    return _arrangements(first - 1, second, statistic) + _arrangements(first, second - 1, statistic - first)
