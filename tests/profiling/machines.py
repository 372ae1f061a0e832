"""A machine made of numbers: a clock that moves only when it is read or when a fake engine runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact, EngineLayer
from masksparse_deploy.core.config import EngineOptions

DEVICE = DeviceFacts(kind="cpu", name="a fake CPU", details={})
READING_S = 1e-7


class FakeClock:
    """Seconds; every reading takes 0.1 microseconds, and shows whole multiples of `step_s`."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now_s += READING_S
        return self.now_s if self._step_s == 0 else self._step_s * np.floor(self.now_s / self._step_s)


# latency_s(role, time): seconds of one inference of the engine "dense", "control" or "sparse" that starts at `time`.
LatencyModel = Callable[[str, float], float]


class FakeSession:
    """Runs by moving the clock."""

    def __init__(self, role: str, clock: FakeClock, latency_s: LatencyModel) -> None:
        self.role, self.clock, self.latency_s = role, clock, latency_s
        self.batches: list[tuple[int, ...]] = []

    input_shape: tuple[int | None, ...] = (None, 3, 4, 4)
    output_names = ("logits",)

    def run(self, images: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        raise AssertionError("profiling runs engines through prepare()")

    def prepare(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        self.batches.append(images.shape)

        def infer() -> None:
            self.clock.now_s += self.latency_s(self.role, self.clock.now_s)

        return infer


class FakeBackend:
    """Opens fake sessions: the first of the dense engine as "dense", the second as "control"."""

    name = "onnxruntime"

    def __init__(self, clock: FakeClock, latency_s: LatencyModel, *, sparse_batch: int | None = None) -> None:
        self.clock, self.latency_s, self.sparse_batch = clock, latency_s, sparse_batch
        self.sessions: dict[str, FakeSession] = {}
        self.threads: set[int] = set()

    def status(self) -> BackendStatus:
        return BackendStatus(backend=self.name, available=True, reason="", versions={}, device=DEVICE)

    def build(self, onnx_path: Path, folder: Path, options: EngineOptions, **_: Any) -> EngineArtifact:
        raise AssertionError("profiling builds nothing")

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator[FakeSession]:
        role = metadata_path.name.removesuffix(".engine.json")
        if role in self.sessions:
            role = "control"
        self.threads.add(threads)
        self.sessions[role] = FakeSession(role, self.clock, self.latency_s)
        if role == "sparse":
            self.sessions[role].input_shape = (self.sparse_batch, 3, 4, 4)
        yield self.sessions[role]


def write_engine(folder: Path, name: str, **changes: Any) -> Path:
    """An engine's metadata without a plan; returns its path."""
    values: dict[str, Any] = {
        "backend": "onnxruntime",
        "plan": f"{name}.plan.onnx",
        "plan_sha256": "0" * 64,
        "source_sha256": "1" * 64,
        "precision": "fp32",
        "options": {"batch": 4, "threads": 1},
        "versions": {"onnxruntime": "1.31.1"},
        "device": DEVICE,
        "layers": (EngineLayer(name="conv", onnx_nodes=("conv",), tactic="", is_sparse=False, reason=""),),
        "exposed": (),
        "sparse_kernels": f"kernels of {name}",
    }
    path = folder / f"{name}.engine.json"
    EngineArtifact(**{**values, **changes}).write(path)
    return path
