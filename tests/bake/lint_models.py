"""Small files for the linter, and its answers about them."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.core.artifacts.baking import LintLayer, LintReport
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.reader import parse_graph

TWO_FOUR = NMPattern(n=2, m=4)


def report_of(model: onnx.ModelProto) -> LintReport:
    return lint_graph(parse_graph(model.SerializeToString(), name="test.onnx"), name="test.onnx")


def layer_of(report: LintReport, node: str) -> LintLayer:
    (layer,) = [layer for layer in report.layers if layer.node == node]
    return layer


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def pruned(weight: np.ndarray, *, axis: int = 1) -> np.ndarray:
    return np.where(TWO_FOUR.keep_largest(np.abs(weight), group_axis=axis), weight, np.float32(0))


def pruned_along_taps(weight: np.ndarray) -> np.ndarray:
    return pruned(weight.reshape(weight.shape[0], -1)).reshape(weight.shape)


def one_layer(op: str, weight: np.ndarray, *, x: list[Any], rank: int | None = None, **attributes: Any) -> onnx.ModelProto:
    """A file with the one node "layer" from "x" to "y" with the weight "w"."""
    return model_of([helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)], {"w": weight}, x=x, rank=rank)


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, x: list[Any], rank: int | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (rank or len(x)))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
