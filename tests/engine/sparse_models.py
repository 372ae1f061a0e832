"""A small FP16 file with every kind of layer that a sparse tactic can or cannot run, and engines that say they run it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.core.artifacts.baking import LintReport
from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact, EngineLayer
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph

SPARSE_HALF = "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64_sptensor16x8x32"
SPARSE_SINGLE = "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_nt_n_tilesize128x128x64_sptensor16x8x32"
DENSE_SINGLE = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x64_tensor16x8x16"
DENSE_HALF = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64_tensor16x8x16"
# node -> (channels out, channels in, kernel), groups, is it 2:4
CONVOLUTIONS: dict[str, tuple[int, int, int, int, bool]] = {
    "stem": (8, 3, 3, 1, False),
    "a": (8, 8, 3, 1, True),
    "b": (8, 8, 1, 1, True),
    "depthwise": (8, 1, 3, 8, False),
    "dense": (8, 8, 3, 1, False),
}


def weight(shape: tuple[int, ...], *, is_sparse: bool, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[Any]:
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    if is_sparse:
        values *= NMPattern(n=2, m=4).keep_largest(np.abs(values), group_axis=1)
    return values.astype(dtype)


def make_model(dtype: npt.DTypeLike = np.float16) -> onnx.ModelProto:
    """A chain of the convolutions above, each with a ReLU "<name>.relu"."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, constants, tensor = [], [], "images"
    for name, (out, into, kernel, groups, is_sparse) in CONVOLUTIONS.items():
        values = weight((out, into, kernel, kernel), is_sparse=is_sparse, dtype=dtype)
        constants.append(numpy_helper.from_array(values, f"{name}.weight"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [tensor, f"{name}.weight"], [f"{name}.out"], name=name, group=groups, pads=pads))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu.out"], name=f"{name}.relu"))
        tensor = f"{name}.relu.out"
    inputs = [helper.make_tensor_value_info("images", kind, ["batch", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info(tensor, kind, ["batch", 8, 8, 8])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def read(model: onnx.ModelProto) -> tuple[Graph, LintReport]:
    graph = parse_graph(model.SerializeToString(), name="test.onnx")
    return graph, lint_graph(graph, name="test.onnx")


def engine_layer(node: str, tactic: str = DENSE_SINGLE, **changes: Any) -> EngineLayer:
    """The layer that a node and its ReLU were merged into, as the inspector tells it."""
    values: dict[str, Any] = {
        "name": f"{node} + {node}.relu",
        "onnx_nodes": (node, f"{node}.relu"),
        "tactic": tactic,
        "is_sparse": "spars" in tactic if tactic else None,
        "reason": "told",
    }
    return EngineLayer(**{**values, **changes})


def make_engine(graph: Graph, *layers: EngineLayer, **changes: Any) -> EngineArtifact:
    """An engine of TensorRT 10 on an A100 with `layers`, and a dense one for every other convolution."""
    given = {node for layer in layers for node in layer.onnx_nodes}
    rest = tuple(engine_layer(name) for name in CONVOLUTIONS if name not in given)
    values: dict[str, Any] = {
        "backend": "tensorrt",
        "plan": "sparse.plan",
        "plan_sha256": "1" * 64,
        "source_sha256": graph.sha256,
        "precision": "fp16",
        "options": {"batch": 64, "sparse_tactics": True},
        "versions": {"tensorrt": "10.16.1"},
        "device": DeviceFacts(kind="cuda", name="NVIDIA A100", details={"compute_capability": "8.0"}),
        "layers": (*layers, *rest),
        "exposed": (),
        "sparse_kernels": "as the test says",
    }
    return EngineArtifact(**{**values, **changes})
