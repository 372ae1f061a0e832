"""The float64 reference evaluation of whole networks, and what it refuses."""

import ml_dtypes
import numpy as np
import onnx
import onnx.shape_inference
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.evaluate import absolute_layer, apply_layer, evaluate, unsupported_operators
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.graph.cases import SCALAR, Array, integers, make_model, node, random_floats
from tests.models.make_onnx import residual_pair


def residual_graph() -> Graph:
    return parse_graph(residual_pair()[0].SerializeToString(), name="dense")


def test_a_network_in_several_chunks_agrees_with_the_runtime() -> None:
    model = residual_pair()[0].SerializeToString()
    images = random_floats(130, 3, 8, 8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images})
    result = evaluate(parse_graph(model, name="dense"), images)
    assert list(result) == ["logits"]
    np.testing.assert_allclose(result["logits"], expected, rtol=1e-4, atol=1e-4)  # six layers of the tolerance above


def test_intermediate_tensors_and_single_precision() -> None:
    graph, images = residual_graph(), random_floats(2, 3, 8, 8)
    result = evaluate(graph, images, ["stem.out", "images", "logits"], dtype=np.float32)
    assert {name: array.dtype for name, array in result.items()} == dict.fromkeys(result, np.dtype(np.float32))
    np.testing.assert_array_equal(result["images"], images)
    np.testing.assert_allclose(result["logits"], evaluate(graph, images)["logits"], rtol=1e-4, atol=1e-4)


def test_one_wrong_weight_is_seen() -> None:
    dense = residual_pair()[0]
    images = random_floats(4, 3, 8, 8)
    before = evaluate(parse_graph(dense.SerializeToString(), name="dense"), images)["logits"]
    (kernel,) = (tensor for tensor in dense.graph.initializer if tensor.name == "layer1.conv2.weight")
    changed = numpy_helper.to_array(kernel).copy()
    changed[2, 3, 1, 1] += 0.01
    kernel.CopyFrom(numpy_helper.from_array(changed, kernel.name))
    after = evaluate(parse_graph(dense.SerializeToString(), name="dense"), images)["logits"]
    assert np.abs(after - before).max() > 1e-6


def test_layers_alone_give_what_the_network_gives() -> None:
    graph, images = residual_graph(), random_floats(2, 3, 8, 8)
    layers = weighted_layers(graph)
    names = [name for layer in layers for name in (layer.node.inputs[0], layer.node.outputs[0])]
    tensors = evaluate(graph, images, names)
    for layer in layers:
        x, y = tensors[layer.node.inputs[0]], tensors[layer.node.outputs[0]]
        np.testing.assert_array_equal(apply_layer(layer, x), y)
        # |sum| <= sum of absolute values; 1e-12 for the rounding of both
        assert (absolute_layer(layer, x) * (1 + 1e-12) >= np.abs(y)).all()


def test_absolute_layer_takes_the_size_of_scalar_factors() -> None:
    proto = node("Gemm", "x", "w", "b", alpha=-0.5, beta=-2.0)
    model = make_model([proto], {"w": random_floats(8, 3), "b": random_floats(3)}, ("batch", 8))
    (layer,) = weighted_layers(parse_graph(model, name="gemm"))
    x = random_floats(2, 8)
    assert layer.bias is not None
    expected = 0.5 * np.abs(x).astype(np.float64) @ np.abs(layer.weight) + 2 * np.abs(layer.bias)
    np.testing.assert_allclose(absolute_layer(layer, x), expected, rtol=1e-12)


def test_a_batch_size_fixed_in_the_file_is_no_limit() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"], name="flat")]
    graph = parse_graph(make_model(nodes, {"s": integers(2, 168)}, (2, 4, 7, 6)), name="fixed")
    assert evaluate(graph, random_floats(5, 4, 7, 6))["y"].shape == (5, 168)


def test_a_file_that_works_for_one_batch_size_only_is_refused() -> None:
    nodes = [helper.make_node("Squeeze", ["x", "s"], ["y"], name="drop")]
    graph = parse_graph(make_model(nodes, {"s": integers(0)}, (1, 4, 7, 6)), name="fixed")
    assert evaluate(graph, random_floats(1, 4, 7, 6))["y"].shape == (4, 7, 6)
    with pytest.raises(UsageError, match=r"Squeeze 'drop' cannot be computed .* \(5, 4, 7, 6\).* with a dynamic batch"):
        evaluate(graph, random_floats(5, 4, 7, 6))


REFUSED = {
    "Cos": node("Cos"),
    "Pad with mode reflect": node("Pad", "x", "p", mode="reflect"),
    "MaxPool with storage_order or dilations": node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
    "MaxPool that is not two-dimensional": node("MaxPool", kernel_shape=[2]),
    "Pad with a computed parameter": node("Pad", "x", "shape"),
    "Dropout in training mode": node("Dropout", "x", "", "train"),
    "Reshape to an empty tensor": node("Reshape", "x", "empty", allowzero=1),
    "ConvTranspose that is not two-dimensional": node("ConvTranspose", "x", "flat"),
}
REFUSED_CONVERSIONS = {
    "Cast to STRING": node("Cast", to=TensorProto.STRING),
    "QuantizeLinear of float8_e4m3fn": node("QuantizeLinear", "x", "scale", "float8"),
    "QuantizeLinear with a computed parameter": node("QuantizeLinear", "x", "x"),
    "QuantizeLinear in blocks": node("QuantizeLinear", "x", "scales", "zeros", axis=1, block_size=2),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_covered_is_named(reason: str) -> None:
    shape = ("batch", 4, 7) if "[2]" in str(REFUSED[reason]) or "two-dim" in reason else ("batch", 4, 7, 6)
    picked = [
        helper.make_node("Flatten", ["x"], ["f"], axis=0, name="flat"),
        helper.make_node("Squeeze", ["f"], ["v"], name="v"),
    ]
    lengths = helper.make_node("Cast", ["v"], ["shape"], to=TensorProto.INT64, name="lengths")
    nodes = [*picked, lengths, helper.make_node("Sin", ["x"], ["s"], name="sine"), REFUSED[reason]]
    constants: dict[str, Array] = {
        "p": integers(0, 0, 1, 1, 0, 0, 1, 1),
        "train": np.array(True),
        "empty": integers(0, 0),
        "flat": random_floats(4, 2, 3),
    }
    graph = parse_graph(make_model(nodes, constants, shape), name="case")
    assert unsupported_operators(graph) == tuple(sorted((reason, "Sin")))


@pytest.mark.parametrize("reason", REFUSED_CONVERSIONS)
def test_conversions_that_are_not_covered_are_named(reason: str) -> None:
    conversion = onnx.NodeProto()
    conversion.CopyFrom(REFUSED_CONVERSIONS[reason])
    conversion.output[0] = "converted"
    constants = {
        "scale": SCALAR,
        "float8": np.zeros((), ml_dtypes.float8_e4m3fn),
        "scales": np.ones((3, 2, 7, 6), np.float32),
        "zeros": np.zeros((3, 2, 7, 6), np.int8),
    }
    nodes = [conversion, helper.make_node("Cast", ["converted"], ["y"], to=TensorProto.FLOAT, name="back")]
    graph = parse_graph(make_model(nodes, constants, (3, 4, 7, 6), opset=21), name="case")
    assert unsupported_operators(graph) == (reason,)


def test_all_operators_that_are_not_covered_are_named_at_once() -> None:
    nodes = [helper.make_node("Sin", ["x"], ["a"], name="one"), helper.make_node("Cos", ["a"], ["y"], name="two")]
    graph = parse_graph(make_model(nodes, {}), name="case")
    assert unsupported_operators(graph) == ("Cos", "Sin")
    with pytest.raises(UsageError, match="does not cover Cos, Sin; replace these operators"):
        evaluate(graph, random_floats(1, 4, 7, 6))


def test_images_that_do_not_fit_are_refused_with_both_shapes() -> None:
    with pytest.raises(UsageError, match=r"\(2, 1, 8, 8\), the model's input 'images' takes \(count, 3, 8, 8\)"):
        evaluate(residual_graph(), random_floats(2, 1, 8, 8))
    with pytest.raises(UsageError, match=r"\(2, 8\)"):
        evaluate(residual_graph(), random_floats(2, 8))


def test_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="no tensor 'nothing'; its outputs are logits"):
        evaluate(residual_graph(), random_floats(1, 3, 8, 8), ["nothing"])
