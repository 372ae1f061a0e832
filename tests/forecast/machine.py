"""A machine made of numbers: times are a function of the model and of the permission for sparse tactics."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact, EngineLayer
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError
from masksparse_deploy.core.progress import Progress, silent

DENSE_TACTIC = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x32"
SPARSE_TACTIC = "sm80_xmma_sparse_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64"

# latency_ms(model, allowed): of one inference; negative for a model that the runtime refuses.
LatencyModel = Callable[[onnx.ModelProto, bool], float]


class FakeBackend:
    """Remembers what was built; a layer gets the sparse tactic where these are allowed and the engine is faster with it."""

    name = "tensorrt"

    def __init__(self, latency_ms: LatencyModel, *, device: str = "a fake GPU", graphs: bool = True) -> None:
        self.built: list[onnx.ModelProto] = []
        self.options: list[EngineOptions] = []
        self.graphs = graphs
        self.replayed: list[bool] = []
        self.version = "10.16.1"
        self._latency_ms = latency_ms
        self._device = device
        self._engines: dict[Path, tuple[onnx.ModelProto, bool]] = {}
        self._noise = np.random.default_rng(0)

    def status(self) -> BackendStatus:
        device = DeviceFacts(kind="cuda", name=self._device, details={"compute_capability": "9.0"})
        versions = {"tensorrt": self.version}
        return BackendStatus(backend=self.name, available=True, reason="", versions=versions, device=device)

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
        if self._latency_ms(model, options.sparse_tactics) < 0:
            raise ArtifactError("refused by the fake runtime")
        self.built.append(model)
        self.options.append(options)
        assert options.timing_cache == NO_TIMING_CACHE, "one engine's kernel times would decide on the other's tactics"
        self._engines[folder / f"{name}.engine.json"] = (model, options.sparse_tactics)
        sparse = options.sparse_tactics and self._latency_ms(model, True) < self._latency_ms(model, False)
        layers = tuple(
            EngineLayer(
                name=node.name,
                onnx_nodes=(node.name,),
                tactic=SPARSE_TACTIC if sparse and node.name not in ("first", "stem") else DENSE_TACTIC,
                is_sparse=sparse and node.name not in ("first", "stem"),
                reason="",
            )
            for node in model.graph.node
            if node.op_type == "Conv"
        )
        return EngineArtifact.model_construct(backend=self.name, layers=layers)

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator["FakeSession"]:
        yield FakeSession(self, *self._engines[metadata_path])

    def run(self, model: onnx.ModelProto, allowed: bool) -> float:
        """Milliseconds, with a noise of a thousandth."""
        return self._latency_ms(model, allowed) * (1 + 1e-3 * float(self._noise.random()))


class FakeSession:
    """Tells its own times, as a GPU does."""

    output_names = ("y",)

    def __init__(self, backend: FakeBackend, model: onnx.ModelProto, allowed: bool) -> None:
        self._backend, self._model, self._allowed = backend, model, allowed
        dims = model.graph.input[0].type.tensor_type.shape.dim
        self.input_shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)

    def run(self, images: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        raise AssertionError("a forecast looks at no outputs")

    def prepare(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        raise AssertionError("the device tells its times")

    def time_on_device(self, images: npt.NDArray[np.float32], *, cuda_graph: bool) -> Callable[[], float]:
        if cuda_graph and not self._backend.graphs:
            raise MachineError("it cannot be recorded")
        self._backend.replayed.append(cuda_graph)
        return lambda: self._backend.run(self._model, self._allowed)

    def prepare_with_transfers(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        raise AssertionError("a forecast times no transfers")

    def layer_times_ms(self, images: npt.NDArray[np.float32], *, count: int) -> Mapping[str, tuple[float, ...]]:
        raise AssertionError("a forecast does not take networks apart")


def is_kind(model: onnx.ModelProto) -> bool:
    """Whether a model is a layer with its surroundings, not a network."""
    return bool(model.graph.name == "kind")


def network(dtype: Any = np.float16, *, batch: int | str = "batch", channels: int = 8) -> onnx.ModelProto:
    """A stem of three channels, two 3x3 layers of one kind, a depthwise one, a strided one and a classifier; weights normal."""
    random = np.random.default_rng(3)
    constants: dict[str, npt.NDArray[Any]] = {}

    def conv(name: str, x: str, y: str, shape: tuple[int, ...], **attributes: Any) -> onnx.NodeProto:
        constants[f"{name}.weight"] = random.standard_normal(shape).astype(dtype)
        constants[f"{name}.bias"] = np.zeros(shape[0], dtype)
        given = {"pads": [1, 1, 1, 1], **attributes}
        return helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [y], name=name, **given)

    square = (channels, channels, 3, 3)
    nodes = [
        conv("stem", "x", "a", (channels, 3, 3, 3)),
        conv("conv1", "a", "b", square),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        conv("conv2", "c", "d", square),
        conv("depthwise", "d", "e", (channels, 1, 3, 3), group=channels),
        conv("conv3", "e", "f", (2 * channels, channels, 1, 1), strides=[2, 2], pads=[0, 0, 0, 0]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["h"], name="flatten"),
        helper.make_node("Gemm", ["h", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    constants["fc.weight"] = random.standard_normal((10, 2 * channels)).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", element, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", element, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
