"""The engines of a comparison, opened together, each with the timers of its inferences."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import EngineRole
from masksparse_deploy.engine.protocol import Backend, DeviceTimed, Session
from masksparse_deploy.profiling.sampling import Clock, Timer, stopwatch
from masksparse_deploy.profiling.twins import no_twins

__all__ = ["EVENT_STEP_MS", "Opened", "open_builds"]

# CUDA events tell about half a microsecond apart (CUDA runtime API, cudaEventElapsedTime).
EVENT_STEP_MS = 5e-4


@dataclass(frozen=True, eq=False)
class Opened:
    """One build, open.

    Attributes:
        role: which engine it is a build of; None for the second handle of the first dense build, the control.
        number: of the build, from 1.
        artifact: its metadata.
        session: bound to nothing yet.
        batch: one batch of images, as the session takes it.
    """

    role: EngineRole | None
    number: int
    artifact: EngineArtifact
    session: Session
    batch: npt.NDArray[np.float32]

    @property
    def name(self) -> str:
        """Unique in a comparison."""
        return f"{self.role or 'control'} {self.number}"

    def timer(self, clock: Clock, *, cuda_graph: bool) -> Timer:
        """One inference without transfers: on the device's own clock where it has one, else on `clock`."""
        if isinstance(self.session, DeviceTimed):
            return self.session.time_on_device(self.batch, cuda_graph=cuda_graph)
        return stopwatch(self.session.prepare(self.batch), clock)

    def end_to_end_timer(self, clock: Clock) -> Timer | None:
        """One inference with copies to the device and back, on `clock`; None where nothing is copied."""
        if not isinstance(self.session, DeviceTimed):
            return None
        return stopwatch(self.session.prepare_with_transfers(self.batch), clock)


def open_builds(
    stack: ExitStack,
    backend: Backend,
    paths: Mapping[EngineRole, Sequence[Path]],
    artifacts: Mapping[EngineRole, Sequence[EngineArtifact]],
    images: npt.NDArray[np.float32],
    *,
    batch: int,
    threads: int,
) -> tuple[Opened, ...]:
    """Open all builds, and the first dense one twice; the stack closes them.

    Args:
        stack: what the sessions live in.
        backend: of all of them.
        paths: engine -> the engine.json of each build.
        artifacts: engine -> what these hold.
        images: float32 (count, channels, height, width); the first batch is used, repeated where there are too few.
        batch: images an inference, where the engines leave that open.
        threads: of the CPU.

    Raises:
        ArtifactError: an engine is damaged, or they take inputs of different shapes.
        MachineError: the backend does not work on this machine.
    """
    wanted: list[tuple[EngineRole | None, int, EngineArtifact, Path]] = []
    for role, of_role in paths.items():
        for index, path in enumerate(of_role):
            wanted.append((role, index + 1, artifacts[role][index], path))
    wanted.append((None, 1, artifacts["dense"][0], paths["dense"][0]))
    opened = []
    for name, number, artifact, path in wanted:
        session = stack.enter_context(backend.open(path, threads=threads))
        size = session.input_shape[0] or batch
        opened.append(Opened(name, number, artifact, session, images[np.arange(size) % len(images)]))
    first = opened[0]
    for other in opened[1:]:
        if other.session.input_shape != first.session.input_shape:
            raise no_twins("input shape", first.session.input_shape, other.session.input_shape, other.role or "control")
    return tuple(opened)
