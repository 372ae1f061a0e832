"""The reference evaluation of quantized values, casts and weights in reduced precision."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from masksparse_deploy.graph.evaluate import evaluate, unsupported_operators
from masksparse_deploy.graph.reader import parse_graph
from tests.graph.cases import TOLERANCE, Array, make_model, random_floats, run_runtime

CHANNEL_SCALES = np.float32([0.02, 0.5, 1.0, 0.013])
QUANTIZED: dict[str, tuple[str, dict[str, Any], dict[str, Array]]] = {
    "per tensor": ("x", {}, {"s": np.float32(0.02), "z": np.int8(0)}),
    "with a zero point": ("x", {}, {"s": np.float32(0.02), "z": np.uint8(117)}),
    "per channel": ("x", {"axis": 1}, {"s": CHANNEL_SCALES, "z": np.zeros(4, np.int8)}),
    "per row, axis from the back": ("x", {"axis": -1}, {"s": random_floats(6) ** 2 + 0.01, "z": np.zeros(6, np.int8)}),
    "without a zero point": ("x", {}, {"s": np.float32(0.02)}),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_values_agree_with_the_runtime(name: str) -> None:
    x, attributes, constants = QUANTIZED[name]
    nodes = [
        helper.make_node("QuantizeLinear", [x, *constants], ["q"], name="quantize", **attributes),
        helper.make_node("DequantizeLinear", ["q", *constants], ["y"], name="dequantize", **attributes),
    ]
    model = make_model(nodes, constants)
    graph = parse_graph(model, name=name)
    assert unsupported_operators(graph) == ()
    images = 2 * random_floats(3, 4, 7, 6, seed=9)
    tensors = evaluate(graph, images, ["q", "y"])
    assert tensors["q"].dtype == constants.get("z", np.zeros((), np.uint8)).dtype
    # no quotient of these images lies within 2^-24 of a tie, so both round to the same integers; y is rounded once to FP32
    np.testing.assert_allclose(tensors["y"], run_runtime(model, images), rtol=2e-7)
    assert (tensors["q"] == np.iinfo(tensors["q"].dtype).max).any()  # some values are beyond the range


def test_quantizing_rounds_ties_to_even_and_saturates() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    model = make_model(nodes, {"s": np.float32(2), "z": np.int8(0)}, ("batch", 8))
    images = np.float32([[-1000, -5, -3, -1, 1, 3, 5, 1000]])
    expected = [[-128, -2, -2, 0, 0, 2, 2, 127]]
    np.testing.assert_array_equal(evaluate(parse_graph(model, name="ties"), images)["y"], expected)
    np.testing.assert_array_equal(run_runtime(model, images), expected)


def test_dequantized_constants_of_every_layout() -> None:
    stored = np.random.default_rng(3).integers(-127, 128, (4, 4, 3, 3), dtype=np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], name="weights", axis=0),
        helper.make_node("DequantizeLinear", ["b", "t"], ["g"], name="bias"),
        helper.make_node("Conv", ["x", "f", "g"], ["y"], name="conv"),
    ]
    constants = {"w": stored, "s": CHANNEL_SCALES, "b": np.int32([3, -70000, 5, 0]), "t": np.float32(1e-4)}
    model = make_model(nodes, constants)
    graph, images = parse_graph(model, name="conv"), random_floats(3, 4, 7, 6)
    actual = evaluate(graph, images, ["f", "y"])
    expected = stored.astype(np.float64) * CHANNEL_SCALES.astype(np.float64)[:, None, None, None]
    np.testing.assert_array_equal(actual["f"], expected)
    # sums of 36 products of at most 127 * 4: 36 * 500 * 2^-24
    np.testing.assert_allclose(actual["y"], run_runtime(model, images), rtol=TOLERANCE, atol=2e-3)


@pytest.mark.parametrize("to", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
def test_a_cast_between_floats_changes_nothing(to: int) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=to, name="there"),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    graph, images = parse_graph(make_model(nodes, {}), name="cast"), random_floats(2, 4, 7, 6)
    np.testing.assert_array_equal(evaluate(graph, images)["y"], images)
    assert evaluate(graph, images, dtype=np.float32)["y"].dtype == np.float32


def test_a_cast_to_integers_cuts_off_and_one_to_truth_values_asks_for_zero() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32, name="cut"),
        helper.make_node("Cast", ["i"], ["b"], to=TensorProto.BOOL, name="ask"),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    graph = parse_graph(make_model(nodes, {}, ("batch", 4)), name="cast")
    tensors = evaluate(graph, np.float32([[-1.9, -0.5, 0.9, 2.9]]), ["i", "b", "y"])
    assert tensors["i"].dtype == np.int32
    np.testing.assert_array_equal(tensors["i"], [[-1, 0, 0, 2]])
    np.testing.assert_array_equal(tensors["b"], [[True, False, False, True]])
    assert tensors["y"].dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_in_reduced_precision_are_taken_as_stored(dtype: Any) -> None:
    weight = random_floats(6, 3).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=kind, name="there"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="product"),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    graph, images = parse_graph(make_model(nodes, {"w": weight}, ("batch", 6)), name="low"), random_floats(2, 6)
    expected = images.astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_array_equal(evaluate(graph, images)["y"], expected)
