"""Stand-ins for TensorRT and the CUDA runtime, with just what the backend uses: networks that add one to their input."""

import ctypes
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

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


class OneRange:
    """A context of TensorRT 8.6: the engine's range of shapes goes to the first one alone, others must ask for it."""

    def __init__(self, *, is_first: bool) -> None:
        self.active_optimization_profile = 0 if is_first else -1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active_optimization_profile = index
        return index == 0


class FakeContext(OneRange):
    """Computes output = input + 1."""

    def __init__(self, engine: "FakeEngine") -> None:
        engine.contexts += 1
        super().__init__(is_first=engine.contexts == 1)
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = engine.shape

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        has_range = self.active_optimization_profile == 0
        return has_range and self.engine.smallest_batch <= shape[0] <= self.engine.largest_batch

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
        self.contexts = 0
        self.smallest_batch, self.largest_batch = 1, 4
        self.inspected = INSPECTED
        self.refittable, self.takes_weights = True, True
        self.weights: dict[str, int] = {}
        self.content = b"plan"

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "images" else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def get_tensor_dtype(self, name: str) -> type[np.float32]:
        return np.float32

    def serialize(self) -> bytes:
        return self.content

    def create_execution_context(self) -> FakeContext | None:
        return FakeContext(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda layout: self.inspected)


class FakeNetwork:
    """A parsed network: one input, and a layer for each of LAYER_OUTPUTS."""

    num_inputs = 1

    def __init__(self, shape: tuple[int, ...], log: list[Any]) -> None:
        self._input = SimpleNamespace(name="images", shape=shape, dtype="float", is_shape_tensor=False)
        tensors = [SimpleNamespace(name=name) for name in LAYER_OUTPUTS]
        self._layers = [
            SimpleNamespace(num_outputs=1, precision_is_set=False, type="conv", get_output=lambda index, tensor=tensor: tensor)
            for tensor in tensors
        ]
        self._log = log
        self.num_layers = len(self._layers)

    def get_input(self, index: int) -> Any:
        return self._input

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._layers)

    def mark_output(self, tensor: Any) -> None:
        self._log.append(("output", tensor.name))


class FakeRefitter:
    """Takes the weights that its engine names in `weights`; those of `missing` must be given too."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.given: dict[str, np.ndarray] = {}

    def get_all_weights(self) -> list[str]:
        return list(self.engine.weights)

    def set_named_weights(self, name: str, array: np.ndarray) -> bool:
        assert array.flags.c_contiguous
        self.given[name] = array
        return name in self.engine.weights and array.size == self.engine.weights[name]

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.engine.weights if name not in self.given]

    def refit_cuda_engine(self) -> bool:
        self.engine.content = b",".join(sorted(name.encode() for name in self.given))
        return self.engine.takes_weights


class FakeParserRefitter:
    """Gives a refitter all initializers of an ONNX file that it asks for."""

    num_errors = 1

    def __init__(self, refitter: FakeRefitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, content: bytes) -> bool:
        for tensor in onnx.load_model_from_string(content).graph.initializer:
            if tensor.name in self.refitter.engine.weights:
                array = onnx.numpy_helper.to_array(tensor)
                if not self.refitter.set_named_weights(tensor.name, np.ascontiguousarray(array)):
                    return False
        return True

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "weights of another count", node_name=lambda: "fc", node_operator=lambda: "Gemm")


class FakeTimingCache:
    """Kernel times as one line a kernel."""

    def __init__(self, content: bytes) -> None:
        self.lines = set(content.splitlines())

    def combine(self, other: "FakeTimingCache", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.lines |= other.lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


class FakeConfig:
    """A builder configuration that writes down what it is told; members that its version lacks cannot be set."""

    def __init__(self, trt: "FakeTensorRT") -> None:
        self.__dict__["trt"] = trt
        self.__dict__["cache"] = FakeTimingCache(b"")

    def __getattr__(self, name: str) -> Any:
        names = {
            "set_flag": "set",
            "clear_flag": "clear",
            "set_memory_pool_limit": "pool",
            "add_optimization_profile": "profile",
        }
        names |= {"set_tactic_sources": "sources", "set_preview_feature": "preview"}
        if name not in names:
            raise AttributeError(name)
        return lambda *arguments: self.trt.log.append((names[name], *arguments))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.trt.lacks:
            raise AttributeError(name)
        self.trt.log.append((name, value))
        self.__dict__[name] = value

    def get_preview_feature(self, feature: str) -> bool:
        return not self.trt.__version__.startswith("8.")

    def create_timing_cache(self, content: bytes) -> FakeTimingCache:
        if content == self.trt.refused_times:
            self.trt.logger.log("warning", "Failed to deserialize timing cache. Returning an empty timing cache.")
            content = b""
        return FakeTimingCache(content)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        self.__dict__["cache"] = cache
        return True

    def get_timing_cache(self) -> FakeTimingCache:
        return self.cache  # type: ignore[no-any-return]


class FakeTensorRT:
    """The module of one version; records what is asked of it in `log`."""

    nptype = staticmethod(np.dtype)
    TensorIOMode = SimpleNamespace(INPUT="input")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    LayerType = SimpleNamespace(QUANTIZE="quantize", DEQUANTIZE="dequantize", SHAPE="shape")

    def __init__(self, version: str = "10.16.1") -> None:
        self.__version__ = version
        major = int(version.partition(".")[0])
        creation = {8: {"EXPLICIT_BATCH": 0}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 11: {"STRONGLY_TYPED": 0}}
        precision = {} if major == 11 else {"FP16": "fp16", "INT8": "int8"}
        levels = {"NONE": "none", "AMPERE_PLUS": "ampere"} | ({} if major == 8 else {"SAME_COMPUTE_CAPABILITY": "same"})
        self.DataType = SimpleNamespace(**({} if major == 8 else {"BF16": "bf16"}))
        self.PreviewFeature = SimpleNamespace(**({} if major == 11 else {"PROFILE_SHARING_0806": "sharing"}))
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**creation[major])
        self.BuilderFlag = SimpleNamespace(
            SPARSE_WEIGHTS="sparse", TF32="tf32", REFIT="refit", VERSION_COMPATIBLE="compatible", **precision
        )
        self.HardwareCompatibilityLevel = SimpleNamespace(**levels)
        self.TacticSource = SimpleNamespace(EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4)
        self.ILogger = type(
            "ILogger", (), {"Severity": SimpleNamespace(ERROR="error", INTERNAL_ERROR="bug", WARNING="warning")}
        )
        self.log: list[Any] = []
        self.lacks: set[str] = set()
        self.logger: Any = None
        self.parses = True
        self.plan: bytes | None = b"plan"
        self.engine: FakeEngine | None = FakeEngine()
        self.told: tuple[tuple[str, str], ...] = ()
        self.times = b""
        self.refused_times: bytes | None = None
        self.host_code_allowed = False
        self.Refitter = lambda engine, logger: FakeRefitter(engine)
        if major > 8:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
            self.OnnxParserRefitter = FakeParserRefitter

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger

        def create_network(flags: int) -> FakeNetwork:
            self.log.append(("network", flags))
            return FakeNetwork((-1, 3, 8, 8), self.log)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: FakeConfig(self),
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: self.log.append(("shape", *shapes))),
            build_serialized_network=self._build,
        )

    def _build(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        for severity, line in self.told:
            self.logger.log(severity, line)
        monitor = config.__dict__.get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Timing kernels", None, 3)
            if not all(monitor.step_complete("Timing kernels", step) for step in range(2)):
                return None
            monitor.phase_finish("Timing kernels")
        config.cache.lines |= set(self.times.splitlines())
        return self.plan

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            parse=lambda content: self.parses,
            num_errors=1,
            get_error=lambda index: SimpleNamespace(desc=lambda: "no importer for Foo"),
        )

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        runtime = SimpleNamespace(engine_host_code_allowed=False)

        def deserialize(plan: bytes) -> FakeEngine | None:
            self.host_code_allowed = runtime.engine_host_code_allowed
            return self.engine

        runtime.deserialize_cuda_engine = deserialize
        return runtime


def install(monkeypatch: pytest.MonkeyPatch, trt: Any) -> None:
    """Have Polygraphy work with `trt` instead of the installed TensorRT."""
    config = importlib.import_module("polygraphy.backend.trt.config")
    util = importlib.import_module("polygraphy.backend.trt.util")
    for module in (config, util):
        monkeypatch.setattr(module, "trt", trt)
