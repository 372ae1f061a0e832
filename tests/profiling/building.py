"""A stand-in for a backend with sparse tactics on a GPU: builds that differ by chance, and a device that tells its time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.timing import EngineRole
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.engine.source import read_source
from tests.profiling.machines import FakeClock

GPU = DeviceFacts(kind="cuda", name="a fake GPU", details={"compute_capability": "9.0"})
TRANSFER_S = 1e-3
PLAN = b"plan"


class DeviceSession:
    """Runs by moving the clock; the device's time leaves the transfers out."""

    input_shape: tuple[int | None, ...] = (None, 3, 8, 8)
    output_names = ("logits",)

    def __init__(self, clock: FakeClock, draw_s: Callable[[], float]) -> None:
        self.clock, self.draw_s = clock, draw_s
        self.cuda_graph: bool | None = None

    def run(self, images: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        raise AssertionError("profiling runs engines through timers")

    def prepare(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        raise AssertionError("on a device that tells its time, this is what is asked")

    def time_on_device(self, images: npt.NDArray[np.float32], *, cuda_graph: bool) -> Callable[[], float]:
        self.cuda_graph = cuda_graph

        def infer() -> float:
            seconds = self.draw_s()
            self.clock.now_s += seconds
            return 1000 * seconds

        return infer

    def prepare_with_transfers(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        def infer() -> None:
            self.clock.now_s += self.draw_s() + TRANSFER_S

        return infer

    def layer_times_ms(self, images: npt.NDArray[np.float32], *, count: int) -> Mapping[str, tuple[float, ...]]:
        return {"pool": (0.5,) * count, "conv": (1.5,) * count}


class BuildingBackend:
    """Engines take `seconds` by their role, times what the draw of the build gives, times noise of each inference.

    Args:
        seconds: of one inference of each engine.
        build_spread: standard deviation of the logarithm of what a build is slower by.
        spread: likewise for an inference.
    """

    name = "tensorrt"

    def __init__(
        self, clock: FakeClock, seconds: Mapping[EngineRole, float], *, build_spread: float, spread: float = 0.01, seed: int = 0
    ) -> None:
        self.clock, self.seconds, self.build_spread, self.spread = clock, seconds, build_spread, spread
        self.generator = np.random.default_rng(seed)
        self.slowness: dict[str, float] = {}
        self.built: list[tuple[str, EngineOptions]] = []
        self.sessions: dict[str, DeviceSession] = {}

    def status(self) -> BackendStatus:
        return BackendStatus(backend=self.name, available=True, reason="", versions={}, device=GPU)

    def build(
        self, onnx_path: Path, folder: Path, options: EngineOptions, *, name: str, expose: tuple[str, ...] = (), **_: Any
    ) -> EngineArtifact:
        self.built.append((name, options))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.plan").write_bytes(PLAN)
        artifact = EngineArtifact(
            backend=self.name,
            plan=f"{name}.plan",
            plan_sha256=sha256_bytes(PLAN),
            source_sha256=read_source(onnx_path).graph.sha256,
            precision="fp16",
            options={"batch": options.batch, "sparse_tactics": options.sparse_tactics, "tactic_sources": "default"},
            versions={"tensorrt": "10.16.1"},
            device=GPU,
            layers=(EngineLayer(name="conv", onnx_nodes=("node",), tactic=f"tactic of {name}", is_sparse=None, reason=""),),
            exposed=expose,
            sparse_kernels=f"kernels of {name}",
            timing_cache_sha256="" if options.timing_cache == NO_TIMING_CACHE else "cache",
        )
        artifact.write(folder / f"{name}.engine.json")
        return artifact

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator[DeviceSession]:
        name = metadata_path.name.removesuffix(".engine.json")
        slowness = self.slowness.setdefault(name, float(np.exp(self.build_spread * self.generator.standard_normal())))
        base = self.seconds[name.partition("-")[0]]  # type: ignore[index]
        draw = lambda: base * slowness * float(np.exp(self.spread * self.generator.standard_normal()))  # noqa: E731
        self.sessions[name] = session = DeviceSession(self.clock, draw)
        yield session
