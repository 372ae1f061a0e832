"""A machine made of numbers: engines take as long as a function of their ONNX model says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.progress import Progress, silent

# latency_s(model): seconds of one inference.
LatencyModel = Callable[[onnx.ModelProto], float]


class FakeClock:
    """Seconds that pass only when a fake engine runs."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeBackend:
    """Builds nothing; remembers the models, and how often inferences were run."""

    name = "onnxruntime"

    def __init__(self, latency_s: LatencyModel, *, device: str = "a fake CPU") -> None:
        self.clock = FakeClock()
        self.built: list[onnx.ModelProto] = []
        self.run_count = 0
        self._latency_s = latency_s
        self._device = device
        self._models: dict[Path, onnx.ModelProto] = {}

    def status(self) -> BackendStatus:
        device = DeviceFacts(kind="cpu", name=self._device, details={})
        return BackendStatus(backend=self.name, available=True, reason="", versions={"onnxruntime": "9.9"}, device=device)

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
        model = onnx.load(onnx_path)
        if self._latency_s(model) < 0:
            raise ArtifactError("refused by the fake runtime")
        self.built.append(model)
        self._models[folder / f"{name}.engine.json"] = model
        return EngineArtifact.model_construct(backend=self.name)

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator["FakeSession"]:
        yield FakeSession(self, self._models[metadata_path])

    def spend(self, model: onnx.ModelProto) -> None:
        self.run_count += 1
        self.clock.now_s += self._latency_s(model)


class FakeSession:
    """Runs by moving the clock."""

    output_names = ("y",)

    def __init__(self, backend: FakeBackend, model: onnx.ModelProto) -> None:
        self._backend = backend
        self._model = model
        dims = model.graph.input[0].type.tensor_type.shape.dim
        self.input_shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)

    def run(self, images: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        raise AssertionError("timing runs engines through prepare()")

    def prepare(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        return lambda: self._backend.spend(self._model)


def is_small(model: onnx.ModelProto) -> bool:
    """Whether a model is a layer with its surroundings, not a network."""
    return model.graph.name == "surrounded"


def convolutions(model: onnx.ModelProto) -> dict[str, int]:
    """Groups of each convolution, by node name."""
    groups = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            groups[node.name] = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return groups
