"""The paired comparison: engines in turn against the dense one, with the dense engine against itself as control."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact
from masksparse_deploy.core.artifacts.gpu_state import GpuState
from masksparse_deploy.core.artifacts.timing import (
    BuildTime,
    EndToEnd,
    EngineRatio,
    EngineRole,
    Latency,
    LayerTime,
    ProfileReport,
    RunConditions,
    Speedup,
)
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import DeviceTimed
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.profiling import conditions, gpu_checks
from masksparse_deploy.profiling.gpu_state import GpuWatch, watch_gpu
from masksparse_deploy.profiling.latencies import latency
from masksparse_deploy.profiling.layer_times import layer_times
from masksparse_deploy.profiling.opened import EVENT_STEP_MS, Opened, open_builds
from masksparse_deploy.profiling.ratios import engine_ratio, ratio_over_rounds
from masksparse_deploy.profiling.sampling import Clock, clock_step_ms, sample_timers
from masksparse_deploy.profiling.twins import check_twins, has_sparse_tactics, same_arithmetic

__all__ = ["profile_builds", "profile_pair"]

Array = npt.NDArray[np.float64]
RoleTimes = dict[EngineRole, Array]

# What users get, what sparse kernels alone bring, and what the zeros bring without them.
_RATIOS: tuple[tuple[EngineRole, EngineRole], ...] = (("dense", "sparse"), ("forbidden", "sparse"), ("dense", "forbidden"))
_END_TO_END = ", end to end"
_GPU_READINGS = 10
_PAIR_AND_CONTROL = 3


def profile_pair(
    dense_metadata_path: Path,
    sparse_metadata_path: Path,
    images: npt.NDArray[np.float32],
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> ProfileReport:
    """`profile_builds` of one build of each engine, without one whose sparse tactics are forbidden."""
    builds: dict[EngineRole, Sequence[Path]] = {"dense": (dense_metadata_path,), "sparse": (sparse_metadata_path,)}
    return profile_builds(builds, images, engine_options, profile_options, clock=clock, progress=progress)


def profile_builds(
    builds: Mapping[EngineRole, Sequence[Path]],
    images: npt.NDArray[np.float32],
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    *,
    clock: Clock = time.perf_counter,
    watch: Callable[[], AbstractContextManager[GpuWatch]] = watch_gpu,
    progress: Progress = silent,
) -> ProfileReport:
    """Time all builds in one process, interleaved in random order with a second handle of the first dense build.

    On a device that tells its own times these are what is compared, and inferences with transfers are timed in the same
    rounds on `clock`.

    Args:
        builds: engine -> the engine.json of each of its builds; "dense" and "sparse" must be there.
        images: float32 (count, channels, height, width); the first batch is used, repeated where there are too few.
        engine_options: the batch and the threads to run with.
        profile_options: rounds, inferences a round, warm-up, confidence and seed.
        clock: seconds, as time.perf_counter.
        watch: opens an observation of the GPU, where the engines run on one.
        progress: told after each round.

    Returns:
        The report. A run whose figures must not be used says so in `invalid_because`; it is no error.

    Raises:
        UsageError: a file is missing, or there are no images or of another shape.
        ArtifactError: an engine is damaged, or they differ in more than their weights.
        MachineError: the backend does not work on this machine.
    """
    engines = {role: tuple(EngineArtifact.read(path) for path in paths) for role, paths in builds.items()}
    check_twins(engines)
    if len(images) == 0:
        raise UsageError("there are no images to time the engines with; the test data is empty")
    dense_engine, sparse_engine = engines["dense"][0], engines["sparse"][0]
    backend = get_backend(dense_engine.backend)
    device = backend.status().device or dense_engine.device
    details = conditions.machine_details()
    step_ms = clock_step_ms(clock)
    details["clock_step_ms"] = f"{step_ms:.3g}"
    layers: tuple[LayerTime, ...] = ()
    with ExitStack() as stack:
        threads, batch = engine_options.threads, engine_options.batch
        opened = open_builds(stack, backend, builds, engines, images, batch=batch, threads=threads)
        gpu = _watched(stack, watch, device, details)
        on_device = isinstance(opened[0].session, DeviceTimed)
        times = _sample(opened, profile_options, clock, gpu, progress)
        for one in opened:
            if isinstance(one.session, DeviceTimed) and one.role is not None and one.number == 1:
                found = one.session.layer_times_ms(one.batch, count=profile_options.rounds)
                layers += layer_times(one.role, one.artifact, found)
        state = None if gpu is None else gpu.state
    batch = len(opened[0].batch)
    device_step_ms = EVENT_STEP_MS if on_device else step_ms
    of_role = _by_role(opened, times, "", device_step_ms)
    control_ms = np.maximum(times["control 1"], device_step_ms)[None]
    confidence = profile_options.confidence
    latencies = {role: _latency(values, batch) for role, values in of_role.items()}
    over_rounds = ratio_over_rounds(of_role["dense"], of_role["sparse"], confidence)
    control = ratio_over_rounds(of_role["dense"][:1], control_ms, confidence).speedup
    ratios = _ratios(of_role, confidence)
    tells_builds = has_sparse_tactics(dense_engine) or len(opened) > _PAIR_AND_CONTROL
    details["rounds_per_block"] = str(profile_options.rounds // len(over_rounds.blocks))
    if device != dense_engine.device:
        details["built_on"] = dense_engine.device.name
    if has_sparse_tactics(dense_engine) and len(builds["dense"]) == len(builds["sparse"]) == 1:
        details["builds"] = "one of each: the interval holds for these engines, not for other builds of the same files"
    shortest_ms = min(latencies["dense"].median_ms, latencies["sparse"].median_ms)
    same = same_arithmetic(engines["dense"], engines["sparse"])
    problems = (
        conditions.check_round_count(profile_options.rounds, confidence),
        conditions.check_clock(device_step_ms, shortest_ms),
        conditions.check_control(control),
        conditions.check_same_arithmetic(over_rounds.speedup) if same else None,
        conditions.check_drift(of_role["dense"][0]),
        conditions.check_independence(over_rounds.blocks),
        *_gpu_problems(state),
    )
    return ProfileReport(
        dense_engine_sha256=dense_engine.digest,
        sparse_engine_sha256=sparse_engine.digest,
        backend=dense_engine.backend,
        device=device.name,
        dense=latencies["dense"],
        sparse=latencies["sparse"],
        speedup=_speedup(ratios),
        control=control,
        sparse_kernels=sparse_engine.sparse_kernels,
        conditions=RunConditions(
            batch=batch,
            threads=threads,
            warmup_count=profile_options.warmup,
            round_count=profile_options.rounds,
            inferences_per_round=profile_options.inferences_per_round,
            seed=profile_options.seed,
            details=details,
        ),
        invalid_because=tuple(problem for problem in problems if problem is not None),
        clock=_clock_name(on_device, profile_options.cuda_graph),
        forbidden=latencies.get("forbidden"),
        ratios=ratios if tells_builds else (),
        builds=_build_times(opened, of_role) if tells_builds else (),
        end_to_end=_end_to_end(opened, times, step_ms, confidence) if on_device else None,
        gpu=state,
        layers=layers,
    )


def _watched(
    stack: ExitStack,
    watch: Callable[[], AbstractContextManager[GpuWatch]],
    device: DeviceFacts,
    details: dict[str, str],
) -> GpuWatch | None:
    """The GPU under observation; where that cannot be, why not is among the details."""
    if device.kind != "cuda":
        return None
    try:
        return stack.enter_context(watch())
    except MachineError as error:
        details["gpu_state"] = f"clocks, temperature, power and other processes were not recorded: {error}"
        return None


def _sample(
    opened: Sequence[Opened], options: ProfileOptions, clock: Clock, gpu: GpuWatch | None, progress: Progress
) -> dict[str, Array]:
    """All times, by name of the build, those with transfers too."""
    timers = {one.name: one.timer(clock, cuda_graph=options.cuda_graph) for one in opened}
    for one in opened:
        timer = one.end_to_end_timer(clock) if one.role is not None else None
        if timer is not None:
            timers[one.name + _END_TO_END] = timer
    every = max(options.rounds // _GPU_READINGS, 1)

    def between(rounds_done: int) -> None:
        if gpu is not None and rounds_done % every == 0:
            gpu.read("during")

    if gpu is not None:
        gpu.read("start")
    times = sample_timers(timers, options, between=between, progress=progress)
    if gpu is not None:
        gpu.read("end")
    return times


def _by_role(opened: Sequence[Opened], times: Mapping[str, Array], suffix: str, step_ms: float) -> RoleTimes:
    """Engine -> float64 (builds, rounds, inferences), ms; less than one step of the clock reads as zero and counts as one."""
    found: dict[EngineRole, list[Array]] = {}
    for one in opened:
        if one.role is not None:
            found.setdefault(one.role, []).append(np.maximum(times[one.name + suffix], step_ms))
    return {role: np.stack(values) for role, values in found.items()}


def _latency(times_ms: Array, batch: int) -> Latency:
    """Of all builds together, round by round."""
    return latency(times_ms.transpose(1, 0, 2).ravel(), batch=batch)


def _ratios(of_role: RoleTimes, confidence: float) -> tuple[EngineRatio, ...]:
    pairs = (pair for pair in _RATIOS if set(pair) <= of_role.keys())
    return tuple(engine_ratio(of_role, slower, faster, confidence) for slower, faster in pairs)


def _speedup(ratios: tuple[EngineRatio, ...]) -> Speedup:
    """The first ratio is what users get."""
    return Speedup(ratio=ratios[0].ratio, interval=ratios[0].interval)


def _end_to_end(opened: Sequence[Opened], times: Mapping[str, Array], step_ms: float, confidence: float) -> EndToEnd:
    of_role = _by_role(opened, times, _END_TO_END, step_ms)
    batch = len(opened[0].batch)
    speedup = _speedup(_ratios(of_role, confidence))
    return EndToEnd(dense=_latency(of_role["dense"], batch), sparse=_latency(of_role["sparse"], batch), speedup=speedup)


def _build_times(opened: Sequence[Opened], of_role: RoleTimes) -> tuple[BuildTime, ...]:
    return tuple(
        BuildTime(
            engine=one.role,
            number=one.number,
            engine_sha256=one.artifact.digest,
            median_ms=float(np.median(of_role[one.role][one.number - 1])),
            sparse_kernels=one.artifact.sparse_kernels,
        )
        for one in opened
        if one.role is not None
    )


def _clock_name(on_device: bool, cuda_graph: bool) -> str:
    if not on_device:
        return "wall clock"
    return "CUDA events, CUDA graphs" if cuda_graph else "CUDA events"


def _gpu_problems(state: GpuState | None) -> tuple[str | None, ...]:
    return () if state is None else (gpu_checks.check_throttled(state), gpu_checks.check_shared(state))
