"""Ratios of the times of two engines, of one build of each or of several, with what can be concluded from them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.timing import EngineRatio, EngineRole, Speedup
from masksparse_deploy.profiling.latencies import independent_blocks, median_interval, round_ratios
from masksparse_deploy.profiling.quotients import build_quotient, relative_times

__all__ = ["RoundRatio", "engine_ratio", "ratio_over_rounds"]

Array = npt.NDArray[np.float64]

# Fewer blocks than these leave the test for correlated neighbours too weak.
_FEWEST_BLOCKS = 20


@dataclass(frozen=True, eq=False)
class RoundRatio:
    """A ratio over rounds, and the independent values (blocks of rounds) that its interval was made from."""

    speedup: Speedup
    blocks: Array


def ratio_over_rounds(slower_ms: Array, faster_ms: Array, confidence: float) -> RoundRatio:
    """The median over rounds of the ratio within a round; its interval holds for these builds, not for others.

    Args:
        slower_ms: float64 (builds, rounds, inferences); several builds enter by their geometric mean in each round.
        faster_ms: likewise, of the other engine.
        confidence: the wanted coverage.
    """
    means = [np.exp(np.log(np.median(times, axis=2)).mean(axis=0)) for times in (slower_ms, faster_ms)]
    ratios = round_ratios(*(mean[:, None] for mean in means))
    blocks, _ = independent_blocks(ratios, minimum=_FEWEST_BLOCKS)
    interval = median_interval(blocks, confidence)
    # the median of all rounds may lie just outside an interval made from blocks
    speedup = _spanning(float(np.median(ratios)), interval.low, interval.high, min(confidence, interval.coverage))
    return RoundRatio(speedup, blocks)


def engine_ratio(
    times_ms: Mapping[EngineRole, Array], slower: EngineRole, faster: EngineRole, confidence: float
) -> EngineRatio:
    """How many times as fast `faster` is, with an interval that covers what builds differ by and what rounds do.

    Two intervals are joined: that of the ratios of builds, and that over rounds for the builds at hand. The first rests on
    builds that vary alike in both engines (`profiling.quotients`); joining it with the second can only widen it. Of one build
    of each nothing is known about others: the interval is that over rounds alone.

    Args:
        times_ms: engine -> float64 (builds, rounds, inferences), all of the same rounds.
        slower: the numerator.
        faster: the denominator.
        confidence: the wanted coverage; few builds reach less, and the interval says so.
    """
    over_rounds = ratio_over_rounds(times_ms[slower], times_ms[faster], confidence).speedup
    if len(times_ms[slower]) == len(times_ms[faster]) == 1:
        return _concluded(slower, faster, over_rounds, (over_rounds.ratio,))
    # relative to all engines of a round, so that every build is held against the same
    relative = relative_times(np.concatenate([np.median(times, axis=2) for times in times_ms.values()]))
    ends = np.cumsum([len(times) for times in times_ms.values()])[:-1]
    of_role = dict(zip(times_ms, np.split(relative, ends), strict=True))
    quotient = build_quotient(of_role[slower], of_role[faster], confidence)
    rounds = over_rounds.interval
    joined = _spanning(
        quotient.ratio,
        min(quotient.low, rounds.low),
        max(quotient.high, rounds.high),
        min(confidence, quotient.coverage, rounds.confidence),
    )
    return _concluded(slower, faster, joined, tuple(quotient.of_pairs.tolist()))


def _concluded(slower: EngineRole, faster: EngineRole, found: Speedup, of_builds: tuple[float, ...]) -> EngineRatio:
    low, high = found.interval.low, found.interval.high
    return EngineRatio(
        slower=slower,
        faster=faster,
        ratio=found.ratio,
        interval=found.interval,
        conclusion="faster" if low > 1 else "slower" if high < 1 else "not told apart",
        of_builds=of_builds,
    )


def _spanning(ratio: float, low: float, high: float, confidence: float) -> Speedup:
    """With an interval that holds the ratio."""
    return Speedup(ratio=ratio, interval=Interval(low=min(low, ratio), high=max(high, ratio), confidence=confidence))
