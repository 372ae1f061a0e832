"""A stand-in for TensorRT whose engines compute: plans are ONNX files that ONNX Runtime runs."""

import ctypes
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnxruntime

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.engine.built_precision import expected_precisions
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.engine.fake_tensorrt import FakeConfig, OneRange
from tests.engine.timed_cuda import TimedCudart, TimedTensorRT

# What one layer takes by a dense tactic and by a sparse one, and how much that varies.
DENSE_MS, SPARSE_MS, SPREAD = 0.5, 0.3, 0.01
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# What the inspector calls the format of the tensors, and what names of kernels tell of them.
FORMATS = {
    "fp32": ("Float", "f32f32_f32f32_f32"),
    "fp16": ("Half", "f16f16_f16f32_f16"),
    "int8": ("Int8", "i8i8_i8i32_f32"),
}
PATTERN = NMPattern(n=2, m=4)


class ComputingTensorRT(TimedTensorRT):
    """The module; layers with 2:4 weights in half precision or INT8 get a sparse tactic where that is allowed."""

    def __init__(self, cudart: TimedCudart, version: str = "10.16.1") -> None:
        super().__init__(version)
        self.cudart = cudart
        self.generator = np.random.default_rng(0)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        builder = super().Builder(logger)

        def create_network(flags: int) -> ParsedNetwork:
            self.log.clear()  # of this build's options
            return ParsedNetwork()

        def build(network: ParsedNetwork, config: FakeConfig) -> bytes:
            return bytes([("set", "sparse") in self.log]) + network.with_outputs().SerializeToString()

        builder.create_network, builder.build_serialized_network = create_network, build
        return builder

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(parse=network.read, num_errors=0)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            engine_host_code_allowed=False, deserialize_cuda_engine=lambda plan: ComputingEngine(self, plan[1:], bool(plan[0]))
        )


class ParsedNetwork:
    """An ONNX file, and the tensors marked as outputs besides its own."""

    num_inputs = 1

    def __init__(self) -> None:
        self.model = onnx.ModelProto()
        self.marked: list[str] = []

    def read(self, content: bytes) -> bool:
        self.model.ParseFromString(content)
        return True

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_input(self, index: int) -> Any:
        value = self.model.graph.input[index]
        shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
        return SimpleNamespace(name=value.name, shape=shape, dtype="float", is_shape_tensor=False)

    def get_layer(self, index: int) -> Any:
        outputs = self.model.graph.node[index].output
        return SimpleNamespace(num_outputs=len(outputs), get_output=lambda place: SimpleNamespace(name=outputs[place]))

    def __iter__(self) -> Iterator[Any]:
        return iter(())  # Polygraphy looks for layers of a precision of their own

    def mark_output(self, tensor: Any) -> None:
        self.marked.append(tensor.name)

    def with_outputs(self) -> onnx.ModelProto:
        inferred = onnx.shape_inference.infer_shapes(self.model)
        self.model.graph.output.extend(value for value in inferred.graph.value_info if value.name in self.marked)
        return self.model


class ComputingEngine:
    """A plan, loaded."""

    refittable = True
    contexts = 0

    def __init__(self, trt: ComputingTensorRT, content: bytes, allows_sparse: bool) -> None:
        self.trt, self.allows_sparse = trt, allows_sparse
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (self.input,) = self.session.get_inputs()
        self.values = {value.name: value for value in (self.input, *self.session.get_outputs())}
        self.num_io_tensors = len(self.values)
        graph = parse_graph(content, name="plan")
        self.layers, self.precisions = weighted_layers(graph), expected_precisions(graph)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == self.input.name else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(length if isinstance(length, int) else -1 for length in self.values[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return DTYPES[self.values[name].type]

    def create_execution_context(self) -> "ComputingContext":
        return ComputingContext(self)

    def is_sparse(self, layer: WeightedLayer) -> bool:
        fits = self.precisions[layer.node.name] != "fp32" and layer.weight.shape[layer.group_axis] % PATTERN.m == 0
        return self.allows_sparse and fits and PATTERN.count_violations(layer.weight != 0, group_axis=layer.group_axis) == 0

    def create_engine_inspector(self) -> Any:
        entries = []
        for layer in self.layers:
            told, types = FORMATS[self.precisions[layer.node.name]]
            kind = "sparse_" if self.is_sparse(layer) else ""
            entries.append(
                {
                    "Name": f"layer {layer.node.name}",
                    "LayerType": "CaskConvolution",
                    "ParameterType": "Convolution",
                    "Inputs": [{"Name": layer.node.inputs[0], "Format/Datatype": told}],
                    "Outputs": [{"Name": layer.node.outputs[0], "Format/Datatype": told}],
                    "Weights": {"Type": told, "Count": layer.weight.size},
                    "TacticName": f"sm80_xmma_{kind}fprop_implicit_gemm_{types}_nhwckrsc_nhwc",
                    "Metadata": f"[ONNX Layer: {layer.node.name}]",
                }
            )
        text = json.dumps({"Layers": entries, "Bindings": []})
        return SimpleNamespace(get_engine_information=lambda layout: text)


class ComputingContext(OneRange):
    """Runs an engine on host memory; the device's clock moves by what its layers take."""

    def __init__(self, engine: ComputingEngine) -> None:
        engine.contexts += 1
        super().__init__(is_first=engine.contexts == 1)
        self.engine, self.cudart = engine, engine.trt.cudart
        self.addresses: dict[str, int] = {}
        self.shape = engine.get_tensor_shape(engine.input.name)
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return self.active_optimization_profile == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == self.engine.input.name else (self.shape[0], *self.engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.cudart.recording is not None:
            self.cudart.recording.append(self._compute)
        else:
            self._compute()
        return True

    def _compute(self) -> None:
        name = self.engine.input.name
        images = np.empty(self.shape, self.engine.get_tensor_dtype(name))
        ctypes.memmove(images.ctypes.data, self.addresses[name], images.nbytes)
        names = [output.name for output in self.engine.session.get_outputs()]
        for output, array in zip(names, self.engine.session.run(names, {name: images}), strict=True):
            ctypes.memmove(self.addresses[output], np.ascontiguousarray(array).ctypes.data, array.nbytes)
        for layer in self.engine.layers:
            base = SPARSE_MS if self.engine.is_sparse(layer) else DENSE_MS
            ms = base * float(np.exp(SPREAD * self.engine.trt.generator.standard_normal()))
            self.cudart.now_ms += ms
            if self.profiler is not None:
                self.profiler.report_layer_time(f"layer {layer.node.name}", ms)
