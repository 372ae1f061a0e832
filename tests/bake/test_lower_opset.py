from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from torch import nn

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.lower_opset import lower_opset
from masksparse_deploy.core.errors import UsageError
from tests.models.tiny_cnn import EXAMPLE_SHAPE, example_images, tiny_cnn

FLOAT = onnx.TensorProto.FLOAT


def run(model: bytes, images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    output: npt.NDArray[Any] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return output


def one_node(node: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]], shape: list[int]) -> onnx.ModelProto:
    """x (2, 4, 6, 6) -> y of `shape`, opset 18."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4, 6, 6])],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_network_computes_the_same_in_opset_17() -> None:
    model, images = tiny_cnn(), example_images(4)
    lowered = export_onnx(model, EXAMPLE_SHAPE, opset=17)
    proto = onnx.load_model_from_string(lowered)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [17]
    assert proto.ir_version == 8
    assert {node.op_type for node in proto.graph.node} >= {"Conv", "ReduceMean"}
    assert [len(node.input) for node in proto.graph.node if node.op_type == "ReduceMean"] == [1]
    np.testing.assert_array_equal(run(lowered, images), run(export_onnx(model, EXAMPLE_SHAPE, opset=18), images))


AXES = np.array([2, 3], np.int64)
CASES: dict[str, tuple[onnx.NodeProto, dict[str, npt.NDArray[Any]], list[int]]] = {
    "mean": (helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0), {"axes": AXES}, [2, 4]),
    "max kept": (helper.make_node("ReduceMax", ["x", "axes"], ["y"]), {"axes": AXES[:1]}, [2, 4, 1, 6]),
    "sum of everything": (helper.make_node("ReduceSumSquare", ["x"], ["y"], keepdims=0), {}, []),
    "mean over nothing": (helper.make_node("ReduceMean", ["x"], ["y"], noop_with_empty_axes=1), {}, [2, 4, 6, 6]),
    "pad": (
        helper.make_node("Pad", ["x", "pads"], ["y"]),
        {"pads": np.array([0, 1, 0, 0, 0, 1, 0, 0], np.int64)},
        [2, 6, 6, 6],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_means_the_same_in_opset_17(name: str) -> None:
    model = one_node(*CASES[name])
    images = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    # For the mean over nothing the specification's words stand in: older runtimes refuse the node.
    expected = images if name == "mean over nothing" else run(model.SerializeToString(), images)
    lower_opset(model)
    assert not {tensor.name for tensor in model.graph.initializer} & {"axes"}
    np.testing.assert_array_equal(run(model.SerializeToString(), images), expected)


@pytest.mark.parametrize(
    ("node", "constants", "shape"),
    [
        (helper.make_node("Mish", ["x"], ["y"], name="n"), {}, [2, 4, 6, 6]),
        (
            helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"], name="n"),
            {"pads": np.array([1, 1], np.int64), "axes": np.array([1], np.int64)},
            [2, 6, 6, 6],
        ),
    ],
)
def test_what_opset_17_lacks_is_named(node: onnx.NodeProto, constants: dict[str, Any], shape: list[int]) -> None:
    with pytest.raises(UsageError, match=rf"{node.op_type} n cannot be written in opset 17; use opset 18 or newer"):
        lower_opset(one_node(node, constants, shape))


def test_a_network_that_needs_a_newer_opset_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be written in opset 17"):
        export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Mish()), EXAMPLE_SHAPE, opset=17)
