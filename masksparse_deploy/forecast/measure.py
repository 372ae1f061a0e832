"""Timing small and large networks in turn, on the device's own clock where it has one."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import EngineOptions, ForecastOptions, ProfileOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.engine.protocol import Backend, DeviceTimed, Session
from masksparse_deploy.profiling.sampling import Clock, Timer, sample_timers, stopwatch

__all__ = ["Candidate", "Timing", "time_in_turn"]

_WARMUP_COUNT = 5
# No clock that is read here tells less apart.
_SHORTEST_MS = 1e-6


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

    Where the device tells its times, these are taken, of inferences that are replayed as CUDA graphs if all of them can be.

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
        rounds = ProfileOptions(
            rounds=options.rounds,
            inferences_per_round=options.inferences_per_round,
            warmup=_WARMUP_COUNT,
            seed=options.seed,
        )
        samples = sample_timers(timers, rounds, progress=progress)
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
        return {name: stopwatch(session.prepare(images[name]), clock) for name, session in sessions.items()}
    try:
        return {name: session.time_on_device(images[name], cuda_graph=True) for name, session in on_device.items()}
    except MachineError:  # what cannot be recorded as a graph is launched kernel by kernel, in all engines alike
        return {name: session.time_on_device(images[name], cuda_graph=False) for name, session in on_device.items()}
