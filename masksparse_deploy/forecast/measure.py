"""Timing small and large networks in turn, on the device's own clock where it has one."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import EngineOptions, ForecastOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.engine.protocol import Backend, DeviceTimed, Session
from masksparse_deploy.profiling.sampling import Clock

__all__ = ["Candidate", "Timing", "time_in_turn"]

_WARMUP_COUNT = 5
_MS_PER_S = 1000.0
# No clock that is read here tells less apart.
_SHORTEST_MS = 1e-6

# Runs one inference and returns its milliseconds.
Timer = Callable[[], float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A model and the options that its engine is built with."""

    model: onnx.ModelProto
    options: EngineOptions


@dataclass(frozen=True, eq=False, kw_only=True)
class Timing:
    """What was found about several engines.

    Attributes:
        round_ms: of each the median of every round, float64 (rounds,).
        engines: of each what its build tells.
    """

    round_ms: Mapping[str, npt.NDArray[np.float64]]
    engines: Mapping[str, EngineArtifact]


def time_in_turn(
    candidates: Mapping[str, Candidate],
    backend: Backend,
    options: ForecastOptions,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> Timing:
    """Build engines and time them in turn, in an order that is drawn anew for every round.

    The engines share one folder, so that the second build finds the times of kernels that the first took. Where the device
    tells its times, these are taken, of inferences that are replayed as CUDA graphs if all of them can be.

    Args:
        candidates: what is timed, of the same input.
        backend: builds and runs the engines.
        options: rounds, inferences a round, seed of the order.
        clock: seconds; for sessions whose device does not tell its times.
        progress: told after each build and while timing.

    Raises:
        ArtifactError: the runtime refuses a model.
        MachineError: the backend does not work on this machine, or an engine does not run.
        OutputError: an engine cannot be written.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="masksparse-")))
        engines, sessions = {}, {}
        for index, (name, candidate) in enumerate(candidates.items()):
            progress("building", index, len(candidates))
            path = folder / f"{name}.onnx"
            write_atomic(path, candidate.model.SerializeToString())
            engines[name] = backend.build(path, folder, candidate.options, name=name)
            path.unlink()
            threads = candidate.options.threads
            sessions[name] = stack.enter_context(backend.open(metadata_path(folder, name), threads=threads))
        batches = [candidate.options.batch for candidate in candidates.values()]
        timers = _timers(sessions, batches, clock, options.seed)
        samples = _rounds(timers, options, progress)
    return Timing(
        round_ms={name: np.maximum(np.median(rows, axis=1), _SHORTEST_MS) for name, rows in samples.items()}, engines=engines
    )


def _timers(sessions: Mapping[str, Session], batches: list[int], clock: Clock, seed: int) -> dict[str, Timer]:
    images = {}
    for (name, session), batch in zip(sessions.items(), batches, strict=True):
        count, *image = session.input_shape
        shape = (count or batch, *(length or 1 for length in image))
        images[name] = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    on_device = {name: session for name, session in sessions.items() if isinstance(session, DeviceTimed)}
    if len(on_device) < len(sessions):
        return {name: _on_host(session.prepare(images[name]), clock) for name, session in sessions.items()}
    try:
        return {name: session.time_on_device(images[name], cuda_graph=True) for name, session in on_device.items()}
    except MachineError:  # what cannot be recorded as a graph is launched kernel by kernel, in all engines alike
        return {name: session.time_on_device(images[name], cuda_graph=False) for name, session in on_device.items()}


def _on_host(infer: Callable[[], None], clock: Clock) -> Timer:
    def timed() -> float:
        start = clock()
        infer()
        return _MS_PER_S * (clock() - start)

    return timed


def _rounds(timers: Mapping[str, Timer], options: ForecastOptions, progress: Progress) -> dict[str, npt.NDArray[np.float64]]:
    """The times of each engine, float64 (rounds, inferences a round), milliseconds."""
    order = np.random.default_rng(options.seed)
    names = list(timers)
    times = {name: np.zeros((options.rounds, options.inferences_per_round)) for name in names}
    for timer in timers.values():
        for _ in range(_WARMUP_COUNT):
            timer()
    for number in range(options.rounds):
        for index in order.permutation(len(names)):
            name = names[index]
            times[name][number] = [timers[name]() for _ in range(options.inferences_per_round)]
        progress("timing", number + 1, options.rounds)
    return times
