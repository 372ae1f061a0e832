"""What a builder told of the tactics it timed, kept of engines that do not last."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masksparse_deploy.core.artifacts.engines import BackendStatus, EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.build_log import BuildLog, TacticTiming, parse_log
from masksparse_deploy.engine.protocol import Backend, Session
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.engine.why_not_sparse.matching import parts

__all__ = ["ListeningBackend", "builder_times"]


@dataclass(frozen=True)
class ListeningBackend:
    """A backend, and by the name of each engine it built what its builder told."""

    backend: Backend
    logs: dict[str, BuildLog] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in `engine.protocol.Backend`."""
        return self.backend.name

    def status(self) -> BackendStatus:
        """As in `engine.protocol.Backend`."""
        return self.backend.status()

    def build(
        self,
        onnx_path: Path,
        folder: Path,
        options: EngineOptions,
        *,
        name: str,
        expose: tuple[str, ...] = (),
        progress: Progress = silent,
    ) -> EngineArtifact:
        """As in `engine.protocol.Backend`; the log is read while it is there."""
        artifact = self.backend.build(onnx_path, folder, options, name=name, expose=expose, progress=progress)
        if artifact.build_log:
            self.logs[name] = parse_log((folder / artifact.build_log).read_text(encoding="utf-8", errors="replace"))
        return artifact

    def open(self, metadata_path: Path, *, threads: int = 0) -> AbstractContextManager[Session]:
        """As in `engine.protocol.Backend`."""
        return self.backend.open(metadata_path, threads=threads)


def builder_times(log: BuildLog | None, node: str) -> dict[str, Any] | None:
    """The fastest sparse and the fastest dense tactic that the builder timed for a node's layer alone, in JSON's types.

    Returns:
        How many tactics it timed and how many of them are sparse; where one is, both times in milliseconds, of the same formats
        of tensors if "same_formats". None where the log tells no times of the layer, or there is none.
    """
    timings = [] if log is None else [timing for timing in log.timings if node in parts(timing.layer)]
    if not timings:
        return None
    sparse = [timing for timing in timings if read_tactic(timing.tactic).is_sparse]
    found: dict[str, Any] = {"tactic_count": len(timings), "sparse_count": len(sparse)}
    dense = [timing for timing in timings if timing not in sparse]
    if not sparse or not dense:
        return found
    fastest = _fastest(sparse)
    same = [timing for timing in dense if timing.formats == fastest.formats]
    other = _fastest(same or dense)
    return {
        **found,
        "sparse_ms": fastest.time_ms,
        "dense_ms": other.time_ms,
        "same_formats": bool(same),
        "sparse_tactic": fastest.tactic,
        "dense_tactic": other.tactic,
    }


def _fastest(timings: Sequence[TacticTiming]) -> TacticTiming:
    return min(timings, key=lambda timing: timing.time_ms)
