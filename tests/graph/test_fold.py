"""Constants moved to where they are read change nothing else of a graph."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.fold import fold_constants
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph
from tests.bake.file_models import model_of, values

# Quarters, so that FP32 computes the convolution exactly
IMAGES = np.rint(4 * values(3, 4, 5, 5, seed=2)) / np.float32(4)


def network() -> onnx.ModelProto:
    """A dequantized kernel, a transposed matrix in half precision, and the same kinds of operators on activations."""
    node = helper.make_node
    constants = {
        "conv.weight": np.arange(-72, 72).reshape(4, 4, 3, 3).astype(np.int8),
        "scale": np.array([0.5, 1, 2, 4], np.float32),
        "zero": np.zeros(4, np.int8),
        "fc.weight": values(3, 4).astype(np.float16),
        "step": np.float32(0.25),
        "middle": np.int8(0),
        "axes": np.array([2, 3]),
        "unread": values(2),
    }
    nodes = [
        node("Cast", ["x"], ["x.cast"], name="cast.x", to=TensorProto.FLOAT),
        node("DequantizeLinear", ["conv.weight", "scale", "zero"], ["kernel"], name="kernel", axis=0),
        node("Conv", ["x.cast", "kernel"], ["c"], name="conv"),
        node("QuantizeLinear", ["c", "step", "middle"], ["c8"], name="quantize"),
        node("DequantizeLinear", ["c8", "step", "middle"], ["d"], name="dequantize"),
        node("Relu", ["d"], ["r"], name="relu"),
        node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        node("Squeeze", ["p", "axes"], ["s"], name="squeeze"),
        node("Identity", ["s"], ["i"], name="identity"),
        node("Cast", ["fc.weight"], ["matrix"], name="cast", to=TensorProto.FLOAT),
        node("Transpose", ["matrix"], ["turned"], name="turn", perm=[1, 0]),
        node("MatMul", ["i", "turned"], ["y"], name="fc"),
    ]
    return model_of(nodes, constants, x=["batch", 4, 5, 5], y=["batch", 3])


@pytest.fixture(scope="module")
def graph() -> Graph:
    return parse_graph(network().SerializeToString(), name="network")


def test_only_what_constants_pass_through_goes(graph: Graph) -> None:
    kept = [node.name for node in fold_constants(graph).nodes]
    assert kept == ["cast.x", "conv", "quantize", "dequantize", "relu", "pool", "squeeze", "identity", "fc"]


def test_constants_are_what_the_layers_multiply_by(graph: Graph) -> None:
    folded = fold_constants(graph)
    assert folded.constants.keys() == {"kernel", "turned", "step", "middle", "axes"}
    assert folded.constants["kernel"].dtype == folded.constants["turned"].dtype == np.float32
    steps = np.array([0.5, 1, 2, 4], np.float32).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(folded.constants["kernel"], np.arange(-72, 72).reshape(4, 4, 3, 3) * steps)
    for before, after in zip(weighted_layers(graph), weighted_layers(folded), strict=True):
        assert before.node.name == after.node.name and after.route == ()
        np.testing.assert_array_equal(before.weight, after.weight)


def test_the_function_stays(graph: Graph) -> None:
    session = onnxruntime.InferenceSession(network().SerializeToString(), providers=["CPUExecutionProvider"])
    before = session.run(None, {"x": IMAGES})[0]
    # Up to the quantizer FP32 is exact; behind it are means of 9 and sums of 4: about 12 roundings of 2^-24 of terms up to 70
    np.testing.assert_allclose(evaluate(fold_constants(graph), IMAGES)["y"], before, rtol=0, atol=12 * 4 * 70 * 2.0**-24)


def test_a_graph_without_anything_to_fold_is_itself(graph: Graph) -> None:
    folded = fold_constants(graph)
    assert fold_constants(folded) is folded
