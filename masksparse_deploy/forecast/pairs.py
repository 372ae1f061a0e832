"""The same weights with sparse tactics forbidden and allowed: what is known from an earlier run, else timed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.core.artifacts.engines import BackendStatus, EngineLayer
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions, ForecastOptions
from masksparse_deploy.core.files import canonical_json, sha256_bytes
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import Backend
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.forecast.estimate import measured_speedup
from masksparse_deploy.forecast.measure import Candidate, time_in_turn
from masksparse_deploy.profiling.known_times import Times, TimeStore, time_key
from masksparse_deploy.profiling.sampling import Clock

__all__ = ["ALLOWED", "PairTimer", "PairTimes"]

Array = npt.NDArray[np.float64]

# What else decides on a time that is kept: it is to change when the way of timing does.
_METHOD = "forecast 1"
_FORBIDDEN = "forbidden"
# Name of the engine that may have sparse tactics.
ALLOWED = "allowed"


@dataclass(frozen=True, eq=False, kw_only=True)
class PairTimes:
    """Medians of rounds, float64 (rounds,), of the engine without and of the one with sparse tactics.

    `picked` says whether a sparse tactic runs where they are allowed, None where the runtime does not tell.
    """

    dense_ms: Array
    sparse_ms: Array
    dense_tactic: str
    sparse_tactic: str
    picked: bool | None
    from_cache: bool


@dataclass(frozen=True, kw_only=True)
class PairTimer:
    """Times pairs of engines with one backend.

    Attributes:
        backend: builds and runs the engines.
        engine_options: batch, and whatever else both engines are built with.
        options: rounds, inferences a round, confidence and seed.
        store: known times.
        status: of the backend.
        clock: seconds; tests pass a stand-in.
    """

    backend: Backend
    engine_options: EngineOptions
    options: ForecastOptions
    store: TimeStore
    status: BackendStatus
    clock: Clock = time.perf_counter
    _taken: set[str] = field(default_factory=set)

    def compare(
        self, dense: onnx.ModelProto, sparse: onnx.ModelProto, *, layer: str | None = None, progress: Progress = silent
    ) -> PairTimes:
        """Time one model without sparse tactics against another with them, or find what an earlier run found.

        Args:
            dense: built with sparse tactics forbidden.
            sparse: the same network, whose weights may differ; built with sparse tactics allowed.
            layer: the node whose tactics are told; None for the number of layers with a sparse one.
            progress: told after each build and while timing.

        Raises:
            ArtifactError: the runtime refuses a model.
            MachineError: the backend does not work on this machine, or an engine does not run.
            OutputError: an engine or the times cannot be written.
        """
        times, from_cache = self._times({_FORBIDDEN: dense, ALLOWED: sparse}, layer, progress)
        dense_ms, sparse_ms = (np.array(row) for row in times.round_ms)
        dense_tactic, sparse_tactic = times.tactics
        picked = read_tactic(sparse_tactic).is_sparse if sparse_tactic else None
        return PairTimes(
            dense_ms=dense_ms,
            sparse_ms=sparse_ms,
            dense_tactic=dense_tactic,
            sparse_tactic=sparse_tactic,
            picked=picked,
            from_cache=from_cache,
        )

    def alone(self, model: onnx.ModelProto, progress: Progress = silent) -> Array:
        """The medians of rounds, float64 (rounds,), of one model with sparse tactics forbidden; raises as `compare`."""
        times, _ = self._times({_FORBIDDEN: model}, None, progress)
        return np.array(times.round_ms[0])

    def _times(self, models: Mapping[str, onnx.ModelProto], layer: str | None, progress: Progress) -> tuple[Times, bool]:
        """The times of models by the role of their engines, and whether they come from an earlier run."""
        # kernel times that are kept hold one best tactic a layer: those of the first engine must not decide on the second's
        options = self.engine_options.model_copy(update={"timing_cache": NO_TIMING_CACHE})
        candidates = {
            role: Candidate(model=model, options=options.model_copy(update={"sparse_tactics": role == ALLOWED}))
            for role, model in models.items()
        }
        key = self._key(candidates)
        known = self.store.find(key, rounds=self.options.rounds)
        if known is not None:
            return known, key not in self._taken
        timing = time_in_turn(candidates, self.backend, self.options, clock=self.clock, progress=progress)
        rounds = list(timing.round_ms.values())
        speedups = [measured_speedup(rounds[0], row, self.options.confidence) for row in rounds]
        times = Times(
            median_ms=tuple(float(np.median(row)) for row in rounds),
            speedups=tuple(speedup.ratio for speedup in speedups),
            intervals=tuple(speedup.interval for speedup in speedups),
            rounds=self.options.rounds,
            round_ms=tuple(tuple(row.tolist()) for row in rounds),
            tactics=tuple(_tactic(timing.engines[role].layers, layer) for role in candidates),
        )
        self._taken.add(key)
        self.store.keep(key, times)
        return times, False

    def _key(self, candidates: Mapping[str, Candidate]) -> str:
        keys = [time_key({role: candidate.model}, candidate.options, self.status) for role, candidate in candidates.items()]
        return sha256_bytes(canonical_json([_METHOD, self.options.inferences_per_round, *keys]))


def _tactic(layers: Sequence[EngineLayer], node: str | None) -> str:
    """The kernel of the engine's layer that a node became part of; a sparse one where there are several. "" if not told."""
    named = [
        layer
        for layer in layers
        if layer.tactic and (node is None or node in layer.onnx_nodes or node in layer.name.split(" + "))
    ]
    return next((layer.tactic for layer in named if layer.is_sparse), named[0].tactic if named else "")
