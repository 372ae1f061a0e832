"""Stand-ins for TensorRT and the CUDA runtime, with just what the backend uses: networks that add one to their input."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

from masksparse_deploy.core.artifacts.engines import DeviceFacts
from masksparse_deploy.engine.driver import DriverAnswer

GPU = DriverAnswer(DeviceFacts(kind="cuda", name="Fake GPU", details={"compute_capability": "9.0"}))
INSPECTED = '{"Layers": [{"Name": "conv", "TacticName": "sparse_x", "Metadata": "[ONNX Layer: conv]"}], "Bindings": []}'
LAYER_OUTPUTS = ("stem.out", "logits")


class FakeCudart:
    """cuda.bindings.runtime over host memory; counts what is allocated."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams = 0
        self.out_of_memory = False

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        if self.out_of_memory:
            return 2, 0
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: int) -> tuple[int]:  # noqa: N802
        assert kind in (1, 2)
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)


class FakeContext:
    """Computes output = input + 1."""

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = engine.shape

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= self.engine.largest_batch

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shape))
        view = {n: np.ctypeslib.as_array((ctypes.c_float * count).from_address(a)) for n, a in self.addresses.items()}
        for name in self.engine.names[1:]:
            view[name][:] = view["images"] + 1
        return True


class FakeEngine:
    """One input, "images", and the outputs in `names`."""

    def __init__(self, shape: tuple[int, ...] = (-1, 3, 8, 8), names: tuple[str, ...] = ("images", "logits")) -> None:
        self.shape, self.names = shape, names
        self.num_io_tensors = len(names)
        self.largest_batch = 4

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "images" else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def get_tensor_dtype(self, name: str) -> type[np.float32]:
        return np.float32

    def create_execution_context(self) -> FakeContext | None:
        return FakeContext(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda layout: INSPECTED)


class FakeTensorRT:
    """The module of one version; records what is asked of it in `log`."""

    nptype = staticmethod(np.dtype)
    TensorIOMode = SimpleNamespace(INPUT="input")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

    def __init__(self, version: str = "10.16.1") -> None:
        self.__version__ = version
        major = int(version.partition(".")[0])
        creation = {8: {"EXPLICIT_BATCH": 0}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 11: {"STRONGLY_TYPED": 0}}
        precision = {} if major == 11 else {"FP16": "fp16", "INT8": "int8"}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**creation[major])
        self.BuilderFlag = SimpleNamespace(SPARSE_WEIGHTS="sparse", TF32="tf32", **precision)
        self.log: list[Any] = []
        self.parses = True
        self.plan: bytes | None = b"plan"
        self.engine: FakeEngine | None = FakeEngine()
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        def create_network(flags: int) -> Any:
            self.log.append(("network", flags))
            tensors = [SimpleNamespace(name=name) for name in LAYER_OUTPUTS]
            layers = [SimpleNamespace(num_outputs=1, get_output=lambda index, tensor=tensor: tensor) for tensor in tensors]
            return SimpleNamespace(
                num_layers=len(layers),
                get_layer=lambda index: layers[index],
                mark_output=lambda tensor: self.log.append(("output", tensor.name)),
            )

        def record(what: str) -> Any:
            return lambda *arguments: self.log.append((what, *arguments))

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: SimpleNamespace(
                set_memory_pool_limit=record("pool"),
                set_flag=record("set"),
                clear_flag=record("clear"),
                add_optimization_profile=record("profile"),
            ),
            create_optimization_profile=lambda: SimpleNamespace(set_shape=record("shape")),
            build_serialized_network=lambda network, config: self.plan,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            parse=lambda content: self.parses,
            num_errors=1,
            get_error=lambda index: SimpleNamespace(desc=lambda: "no importer for Foo"),
        )

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine)
