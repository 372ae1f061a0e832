"""From the times of layers to an estimate for the network; pure functions of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.timing import Speedup
from masksparse_deploy.profiling.latencies import median_interval, round_ratios

__all__ = ["Gain", "estimate", "joint_confidence", "measured_speedup", "median_gain"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What `count` layers of one kind gain each, in milliseconds, with the interval of the median and its confidence."""

    count: int
    ms: float
    low: float
    high: float
    confidence: float


def joint_confidence(confidence: float, count: int) -> float:
    """The confidence that each of `count` intervals needs for all of them to hold together with `confidence` (Bonferroni)."""
    return 1 - (1 - confidence) / max(count, 1)


def median_gain(dense_ms: Array, sparse_ms: Array, confidence: float) -> tuple[float, Interval]:
    """The median over rounds of what the sparse engine takes less, float64 (rounds,) twice, and its interval."""
    gains = dense_ms - sparse_ms
    interval = median_interval(gains, confidence)
    return float(np.median(gains)), Interval(
        low=interval.low, high=interval.high, confidence=min(interval.coverage, confidence)
    )


def measured_speedup(dense_ms: Array, sparse_ms: Array, confidence: float) -> Speedup:
    """The median over rounds of the ratio within a round, float64 (rounds,) twice, and its interval."""
    ratios = round_ratios(dense_ms[:, None], sparse_ms[:, None])
    interval = median_interval(ratios, confidence)
    return Speedup(
        ratio=float(np.median(ratios)),
        interval=Interval(low=interval.low, high=interval.high, confidence=min(interval.coverage, confidence)),
    )


def estimate(network_ms: Array, gains: Sequence[Gain], confidence: float) -> Speedup | None:
    """What the network would gain if its layers gained in it what they gain alone.

    With T the network's median time and G the sum of all gains it is T / (T - G). Its interval is what that takes on over the
    intervals of T and of all gains: where each of these holds, so does it. What each of them may fail by adds up (Bonferroni).

    Args:
        network_ms: float64 (rounds,), the dense network.
        gains: of the kinds of layers, their intervals each of `joint_confidence` for one more than there are of them.
        confidence: of all of them together.

    Returns:
        The estimate, whose interval has less than `confidence` where few rounds reach no more; None where the layers gain more
        than the network takes, so that they cannot tell of it.
    """
    times = median_interval(network_ms, joint_confidence(confidence, len(gains) + 1))
    total = sum(gain.count * gain.ms for gain in gains)
    low, high = (sum(gain.count * getattr(gain, end) for gain in gains) for end in ("low", "high"))
    if high >= times.low:
        return None
    missed = 1 - times.coverage + sum(1 - gain.confidence for gain in gains)
    # T / (T - G) rises with G, and falls with T where G is positive, rises where it is not
    ends = [_ratio(time, gain) for time in (times.low, times.high) for gain in (low, high)]
    return Speedup(
        ratio=_ratio(float(np.median(network_ms)), total),
        interval=Interval(low=min(ends), high=max(ends), confidence=max(min(confidence, 1 - missed), 0.0)),
    )


def _ratio(network_ms: float, gain_ms: float) -> float:
    return network_ms / (network_ms - gain_ms)
