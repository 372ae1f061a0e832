"""The times of a comparison by engine, and what they add up to."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.timing import BuildTime, EndToEnd, EngineRatio, EngineRole, Latency, Speedup
from masksparse_deploy.profiling.latencies import latency
from masksparse_deploy.profiling.opened import Opened
from masksparse_deploy.profiling.ratios import engine_ratio

__all__ = ["RoleTimes", "build_times", "by_role", "end_to_end", "latencies", "ratios_of", "speedup_of"]

Array = npt.NDArray[np.float64]

# Engine -> float64 (builds, rounds, inferences), milliseconds.
RoleTimes = dict[EngineRole, Array]

# What users get, what sparse kernels alone bring, and what other weights bring without them.
_RATIOS: tuple[tuple[EngineRole, EngineRole], ...] = (("dense", "sparse"), ("forbidden", "sparse"), ("dense", "forbidden"))


def by_role(opened: Sequence[Opened], times_ms: Mapping[str, Array], step_ms: float) -> RoleTimes:
    """The times of all builds of each engine; less than one step of the clock reads as zero and counts as one.

    Args:
        opened: the builds, and the control, which is left out.
        times_ms: name of a build -> float64 (rounds, inferences).
        step_ms: of the clock.
    """
    found: dict[EngineRole, list[Array]] = {}
    for one in opened:
        if one.role is not None:
            found.setdefault(one.role, []).append(np.maximum(times_ms[one.name], step_ms))
    return {role: np.stack(values) for role, values in found.items()}


def latencies(times_ms: RoleTimes, batch: int) -> dict[EngineRole, Latency]:
    """Of all builds of an engine together, round by round."""
    return {role: latency(values.transpose(1, 0, 2).ravel(), batch=batch) for role, values in times_ms.items()}


def ratios_of(times_ms: RoleTimes, confidence: float) -> tuple[EngineRatio, ...]:
    """The ratios of the engines that are there, dense to sparse first."""
    pairs = (pair for pair in _RATIOS if set(pair) <= times_ms.keys())
    return tuple(engine_ratio(times_ms, slower, faster, confidence) for slower, faster in pairs)


def speedup_of(ratios: tuple[EngineRatio, ...]) -> Speedup:
    """What users get."""
    return Speedup(ratio=ratios[0].ratio, interval=ratios[0].interval)


def end_to_end(times_ms: RoleTimes, batch: int, confidence: float) -> EndToEnd:
    """Of times with transfers."""
    found = latencies(times_ms, batch)
    return EndToEnd(dense=found["dense"], sparse=found["sparse"], speedup=speedup_of(ratios_of(times_ms, confidence)))


def build_times(opened: Sequence[Opened], times_ms: RoleTimes) -> tuple[BuildTime, ...]:
    """One row a build."""
    return tuple(
        BuildTime(
            engine=one.role,
            number=one.number,
            engine_sha256=one.artifact.digest,
            median_ms=float(np.median(times_ms[one.role][one.number - 1])),
            sparse_kernels=one.artifact.sparse_kernels,
        )
        for one in opened
        if one.role is not None
    )
