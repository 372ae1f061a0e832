"""The paired comparison: engines in turn against the dense one, with the dense engine against itself as control."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact
from masksparse_deploy.core.artifacts.gpu_state import GpuState
from masksparse_deploy.core.artifacts.timing import EngineRole, LayerTime, ProfileReport, RunConditions
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import DeviceTimed
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.profiling import conditions, gpu_checks
from masksparse_deploy.profiling.gpu_state import GpuWatch, watch_gpu
from masksparse_deploy.profiling.layer_times import layer_times
from masksparse_deploy.profiling.opened import EVENT_STEP_MS, Opened, open_builds
from masksparse_deploy.profiling.ratios import ratio_over_rounds
from masksparse_deploy.profiling.role_times import build_times, by_role, end_to_end, latencies, ratios_of, speedup_of
from masksparse_deploy.profiling.sampling import Clock, clock_step_ms, sample_timers
from masksparse_deploy.profiling.twins import check_twins, has_sparse_tactics, same_arithmetic

__all__ = ["profile_builds", "profile_pair"]

Array = npt.NDArray[np.float64]

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
    with ExitStack() as stack:
        batch, threads = engine_options.batch, engine_options.threads
        opened = open_builds(stack, backend, builds, engines, images, batch=batch, threads=threads)
        gpu = _watched(stack, watch, device, details)
        on_device = isinstance(opened[0].session, DeviceTimed)
        times, whole_times = _sample(opened, profile_options, clock, gpu, progress)
        layers = _layer_times(opened, count=profile_options.rounds)
        state = None if gpu is None else gpu.state
    batch, confidence = len(opened[0].batch), profile_options.confidence
    device_step_ms = EVENT_STEP_MS if on_device else step_ms
    of_role = by_role(opened, times, device_step_ms)
    found = latencies(of_role, batch)
    ratios = ratios_of(of_role, confidence)
    over_rounds = ratio_over_rounds(of_role["dense"], of_role["sparse"], confidence)
    control_ms = np.maximum(times["control 1"], device_step_ms)[None]
    control = ratio_over_rounds(of_role["dense"][:1], control_ms, confidence).speedup
    tells_builds = has_sparse_tactics(dense_engine) or len(opened) > _PAIR_AND_CONTROL
    details["rounds_per_block"] = str(profile_options.rounds // len(over_rounds.blocks))
    if device != dense_engine.device:
        details["built_on"] = dense_engine.device.name
    if has_sparse_tactics(dense_engine) and len(builds["dense"]) == len(builds["sparse"]) == 1:
        details["builds"] = "one of each: the interval holds for these engines, not for other builds of the same files"
    same = same_arithmetic(engines["dense"], engines["sparse"])
    problems = (
        conditions.check_round_count(profile_options.rounds, confidence),
        conditions.check_clock(device_step_ms, min(found["dense"].median_ms, found["sparse"].median_ms)),
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
        architecture=device.architecture,
        dense=found["dense"],
        sparse=found["sparse"],
        speedup=speedup_of(ratios),
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
        forbidden=found.get("forbidden"),
        ratios=ratios if tells_builds else (),
        builds=build_times(opened, of_role) if tells_builds else (),
        end_to_end=end_to_end(by_role(opened, whole_times, step_ms), batch, confidence) if on_device else None,
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
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The times without and those with transfers, by name of the build, all from the same rounds."""
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
    whole = {name.removesuffix(_END_TO_END): found for name, found in times.items() if name.endswith(_END_TO_END)}
    return {one.name: times[one.name] for one in opened}, whole


def _layer_times(opened: Sequence[Opened], *, count: int) -> tuple[LayerTime, ...]:
    """Of the first build of each engine, where the session tells them."""
    rows: tuple[LayerTime, ...] = ()
    for one in opened:
        if isinstance(one.session, DeviceTimed) and one.role is not None and one.number == 1:
            rows += layer_times(one.role, one.artifact, one.session.layer_times_ms(one.batch, count=count))
    return rows


def _clock_name(on_device: bool, cuda_graph: bool) -> str:
    if not on_device:
        return "wall clock"
    return "CUDA events, CUDA graphs" if cuda_graph else "CUDA events"


def _gpu_problems(state: GpuState | None) -> tuple[str | None, ...]:
    return () if state is None else (gpu_checks.check_throttled(state), gpu_checks.check_shared(state))
