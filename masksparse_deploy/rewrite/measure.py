"""Timing forms against one another: engines of a backend, run in turn in random order, known times taken from a file."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.engines import BackendStatus
from masksparse_deploy.core.config import EngineOptions, ProfileOptions, RewriteOptions
from masksparse_deploy.core.errors import OutputError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.engine.protocol import Backend
from masksparse_deploy.profiling.known_times import Times, TimeStore, time_key
from masksparse_deploy.profiling.latencies import median_interval, round_ratios
from masksparse_deploy.profiling.sampling import Clock, sample_rounds

__all__ = ["Stopwatch"]

_CONFIDENCE = 0.95
_WARMUP_COUNT = 2
# What an inference takes less than this, several are timed together in a round.
_SHORT_S = 0.005
_MOST_PER_ROUND = 10
# No clock that is read here tells less apart.
_SHORTEST_MS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """Times models with one backend.

    Attributes:
        backend: builds and runs the engines.
        engine_options: batch and threads.
        options: rounds and seed of the order.
        store: known times.
        status: of the backend.
        clock: seconds; tests pass a stand-in.
    """

    backend: Backend
    engine_options: EngineOptions
    options: RewriteOptions
    store: TimeStore
    status: BackendStatus
    clock: Clock = time.perf_counter
    _taken: set[str] = field(default_factory=set)

    def compare(
        self, models: Mapping[str, onnx.ModelProto], progress: Progress = silent, *, rounds: int | None = None
    ) -> tuple[Times, bool]:
        """Times of several models of the same input, and whether they come from an earlier run.

        Args:
            models: the first is what the others are compared with; one input of fixed channels, height and width.
            progress: told after each round.
            rounds: how often; as the options say by default.

        Raises:
            ArtifactError: the runtime refuses a model.
            MachineError: the backend does not work on this machine.
            OutputError: an engine or the times cannot be written.
        """
        key = self.key(models)
        rounds = rounds or self.options.rounds
        known = self.store.find(key, rounds=rounds)
        if known is not None:
            return known, key not in self._taken
        times = self._take(models, rounds, progress)
        self._taken.add(key)
        self.store.keep(key, times)
        return times, False

    def key(self, models: Mapping[str, onnx.ModelProto]) -> str:
        """What these models' times are known by; models that do the same arithmetic have the same."""
        return time_key(models, self.engine_options, self.status)

    def _take(self, models: Mapping[str, onnx.ModelProto], rounds: int, progress: Progress) -> Times:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="masksparse-")))
            engines: dict[str, Callable[[], None]] = {}
            for index, model in enumerate(models.values()):
                name = f"form{index}"
                path = folder / f"{name}.onnx"
                _write(path, model.SerializeToString())
                self.backend.build(path, folder, self.engine_options, name=name)
                path.unlink()
                session = stack.enter_context(
                    self.backend.open(metadata_path(folder, name), threads=self.engine_options.threads)
                )
                batch, *size = session.input_shape
                shape = (batch or self.engine_options.batch, *(length or 1 for length in size))
                images = np.random.default_rng(self.options.seed).standard_normal(shape, dtype=np.float32)
                engines[name] = session.prepare(images)
            samples = sample_rounds(engines, self._sampling(engines, rounds), clock=self.clock, progress=progress)
        # less than one step of the clock reads as zero
        samples = {name: np.maximum(times, _SHORTEST_MS) for name, times in samples.items()}
        first = samples["form0"]
        ratios = [round_ratios(first, times) for times in samples.values()]
        intervals = [median_interval(values, _CONFIDENCE) for values in ratios]
        return Times(
            median_ms=tuple(float(np.median(times)) for times in samples.values()),
            speedups=tuple(float(np.median(values)) for values in ratios),
            intervals=tuple(Interval(low=i.low, high=i.high, confidence=min(i.coverage, _CONFIDENCE)) for i in intervals),
            rounds=rounds,
        )

    def _sampling(self, engines: Mapping[str, Callable[[], None]], rounds: int) -> ProfileOptions:
        """How often to run in a round, so that short inferences are timed as well as long ones."""
        first = next(iter(engines.values()))
        first()
        start = self.clock()
        first()
        taken = self.clock() - start
        count = min(max(int(_SHORT_S / taken), 1), _MOST_PER_ROUND) if taken > 0 else _MOST_PER_ROUND
        return ProfileOptions(rounds=rounds, inferences_per_round=count, warmup=_WARMUP_COUNT, seed=self.options.seed)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"{path}, which is to be timed, cannot be written ({error.strerror or error}); free some space there, or name "
            "another folder for temporary files in the environment variable TMPDIR"
        ) from error
