"""What makes a timing run invalid, and the state of the machine it ran on.

Each function looks at one condition and returns a sentence with the figures, or None where the condition is met.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.timing import Speedup
from masksparse_deploy.profiling.latencies import correlation_limit, fewest_values, neighbour_correlation

__all__ = [
    "check_clock",
    "check_control",
    "check_drift",
    "check_independence",
    "check_round_count",
    "check_same_arithmetic",
    "machine_details",
]

Array = npt.NDArray[np.float64]

CONTROL_LIMIT = 0.02
CONTROL_WIDTH_LIMIT = 0.15
DRIFT_LIMIT = 0.20
CLOCK_LIMIT = 0.01
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def check_round_count(count: int, confidence: float) -> str | None:
    """Too few rounds: no interval between order statistics reaches the confidence."""
    needed = fewest_values(confidence)
    if count >= needed:
        return None
    return (
        f"{count} rounds are too few for an interval of {100 * confidence:.4g} % confidence, which needs at least {needed}: "
        "raise the number of rounds"
    )


def check_control(control: Speedup, limit: float = CONTROL_LIMIT, width_limit: float = CONTROL_WIDTH_LIMIT) -> str | None:
    """The dense engine timed against itself: an interval clear of 1 shows a bias, a wide one that nothing can be told apart.

    Args:
        control: the dense engine's speedup against itself.
        limit: how far the interval may stay clear of 1.
        width_limit: largest accepted high / low - 1.
    """
    low, high = control.interval.low, control.interval.high
    told = f"the dense engine against itself gave {control.ratio:.3f}x, interval [{low:.3f}, {high:.3f}]"
    if low > 1 + limit or high < 1 - limit:
        return (
            f"{told}, which excludes 1 by more than {100 * limit:g} %: something other than the engines decides the times; "
            "free the machine and run again"
        )
    if high > (1 + width_limit) * low:
        return (
            f"{told}, wider than {100 * width_limit:g} %: this run cannot tell engines apart; free the machine, or raise the "
            "number of rounds"
        )
    return None


def check_same_arithmetic(speedup: Speedup, limit: float = CONTROL_LIMIT) -> str | None:
    """Two engines that do the same arithmetic with the same kernels differ in time only if the measurement is biased.

    Args:
        speedup: of the sparse engine, where no layer of it runs a sparse kernel.
        limit: how far the interval may stay clear of 1.
    """
    low, high = speedup.interval.low, speedup.interval.high
    if low <= 1 + limit and high >= 1 - limit:
        return None
    return (
        f"both engines do the same arithmetic, as no layer runs a sparse kernel, and yet the ratio is {speedup.ratio:.3f}x, "
        f"interval [{low:.3f}, {high:.3f}]: something other than the engines decides the times; free the machine and run again"
    )


def check_drift(dense_ms: Array, limit: float = DRIFT_LIMIT) -> str | None:
    """The dense engine's median changed between the halves of the run: the figures mix two states of the machine.

    Args:
        dense_ms: float64 (rounds, inferences), milliseconds.
        limit: largest relative change that is accepted.
    """
    half = len(dense_ms) // 2
    first, second = float(np.median(dense_ms[:half])), float(np.median(dense_ms[half:]))
    if first > 0 and abs(second / first - 1) <= limit:
        return None
    return (
        f"the dense engine's median went from {first:.4g} ms in the first half of the run to {second:.4g} ms in the second, "
        f"more than {100 * limit:g} %: other load, or clocks that change; free the machine, fix its clocks and run again"
    )


def check_clock(step_ms: float, median_ms: float, limit: float = CLOCK_LIMIT) -> str | None:
    """The clock's steps are too long for the latencies.

    Args:
        step_ms: smallest step seen.
        median_ms: the shorter of the two engines' medians.
        limit: largest accepted ratio of the two.
    """
    if step_ms <= limit * median_ms:
        return None
    return (
        f"the clock moves in steps of {step_ms:.4g} ms, more than {100 * limit:g} % of the median latency, {median_ms:.4g} ms: "
        "use a larger batch"
    )


def check_independence(blocks: Array) -> str | None:
    """Neighbours resemble each other even when rounds are joined into blocks, so that the interval would be too narrow."""
    count = len(blocks)
    correlation, limit = neighbour_correlation(blocks), correlation_limit(count)
    if correlation <= limit:
        return None
    return (
        f"neighbouring rounds are correlated ({correlation:.2f}, limit {limit:.2f}) even when joined into {count} blocks: the "
        "interval is too narrow; free the machine, or raise the number of rounds"
    )


def machine_details() -> dict[str, str]:
    """Load and frequency policy of the CPU, where the system tells."""
    details = {}
    if hasattr(os, "getloadavg"):
        try:
            details["load_average_1min"] = f"{os.getloadavg()[0]:.2f}"
        except OSError:
            details["load_average_1min"] = "not told by the system"
    if _GOVERNOR.is_file():
        details["frequency_governor"] = _GOVERNOR.read_text().strip()
    return details
