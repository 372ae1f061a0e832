"""The float64 reference evaluation, held against ONNX Runtime operator by operator."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.evaluate import absolute_layer, apply_layer, evaluate, unsupported_operators
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.operators import convolution, transposed_convolution
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.models.make_onnx import residual_pair

Array = npt.NDArray[Any]

# ONNX Runtime computes in float32: sums of at most n = 288 terms of size 1 are off by n 2^-24 = 2e-5 at worst.
TOLERANCE = 2e-5


def make_model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    shape: tuple[Any, ...] = ("batch", 4, 7, 6),
    *,
    opset: int = 20,
) -> bytes:
    """A model from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    # the checker wants the output's rank, which shape inference knows
    data: bytes = onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString()
    return data


def run_runtime(model: bytes, images: Array) -> Array:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": images})
    return np.asarray(output)


def random_floats(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def integers(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def node(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs or ("x",)), ["y"], name="case", **attributes)


SCALAR = np.float32(0.25)
FOUR = random_floats(4)
CASES: dict[str, tuple[onnx.NodeProto, dict[str, Array]]] = {
    "conv": (node("Conv", "x", "w", "b", pads=[1, 1, 1, 1]), {"w": random_floats(5, 4, 3, 3), "b": random_floats(5)}),
    "conv same upper": (node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": random_floats(5, 4, 3, 2)}),
    "conv same lower": (node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[2, 1]), {"w": random_floats(5, 4, 3, 2)}),
    "conv valid": (node("Conv", "x", "w", auto_pad="VALID"), {"w": random_floats(5, 4, 3, 2)}),
    "transposed conv": (
        node("ConvTranspose", "x", "w", "b", strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]),
        {"w": random_floats(4, 5, 3, 3), "b": random_floats(5)},
    ),
    "transposed conv in groups": (node("ConvTranspose", "x", "w", group=2), {"w": random_floats(4, 3, 2, 2)}),
    "transposed conv same upper": (
        node("ConvTranspose", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]),
        {"w": random_floats(4, 5, 3, 3)},
    ),
    "transposed conv same lower": (
        node("ConvTranspose", "x", "w", auto_pad="SAME_LOWER", strides=[2, 1]),
        {"w": random_floats(4, 5, 3, 2)},
    ),
    "transposed conv valid": (node("ConvTranspose", "x", "w", auto_pad="VALID"), {"w": random_floats(4, 5, 3, 2)}),
    "transposed conv of a given shape": (
        node("ConvTranspose", "x", "w", output_shape=[14, 13], strides=[2, 2]),
        {"w": random_floats(4, 5, 3, 4)},
    ),
    "relu": (node("Relu"), {}),
    "leaky relu": (node("LeakyRelu", alpha=0.3), {}),
    "leaky relu default": (node("LeakyRelu"), {}),
    "clip": (node("Clip", "x", "low", "high"), {"low": np.float32(-0.5), "high": np.float32(0.5)}),
    "clip above": (node("Clip", "x", "", "high"), {"high": np.float32(0.5)}),
    "clip nothing": (node("Clip"), {}),
    "sigmoid": (node("Sigmoid"), {}),
    "tanh": (node("Tanh"), {}),
    "hard sigmoid": (node("HardSigmoid", alpha=0.3, beta=0.4), {}),
    "add": (node("Add", "x", "x"), {}),
    "add constant": (node("Add", "c", "x"), {"c": random_floats(4, 1, 1)}),
    "multiply": (node("Mul", "x", "x"), {}),
    "multiply by a constant": (node("Mul", "c", "x"), {"c": random_floats(4, 1, 1)}),
    "concat": (node("Concat", "x", "x", axis=1), {}),
    "max pool": (node("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]), {}),
    "average pool": (node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), {}),
    "average pool with padding": (node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), {}),
    "average pool of one": (node("AveragePool", kernel_shape=[1, 1], strides=[2, 2]), {}),
    "global average pool": (node("GlobalAveragePool"), {}),
    "reduce mean": (node("ReduceMean", "x", "axes", keepdims=0), {"axes": integers(2, -1)}),
    "reduce mean kept": (node("ReduceMean", "x", "axes"), {"axes": integers(-1)}),
    "flatten": (node("Flatten"), {}),
    "flatten negative": (node("Flatten", axis=-1), {}),
    "reshape": (node("Reshape", "x", "s"), {"s": integers(0, -1, 6)}),
    "reshape, zeros allowed but none there": (node("Reshape", "x", "s", allowzero=1), {"s": integers(-1, 168)}),
    "identity": (node("Identity"), {}),
    "dropout": (node("Dropout", "x", "ratio"), {"ratio": np.float32(0.5)}),
    "dropout told to infer": (node("Dropout", "x", "", "train"), {"train": np.array(False)}),
    "matmul": (node("MatMul", "x", "w"), {"w": random_floats(6, 3)}),
    "batch normalization": (
        node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.1),
        {"s": FOUR, "b": random_floats(4, seed=2), "m": random_floats(4, seed=3), "v": FOUR**2},
    ),
    "pad": (node("Pad", "x", "p"), {"p": integers(0, 0, 1, 2, 0, 1, 0, 3)}),
    "pad with a value": (node("Pad", "x", "p", "c"), {"p": integers(0, 0, 1, 0, 0, 0, 1, 0), "c": SCALAR}),
    "pad channels only": (node("Pad", "x", "p", "", "a"), {"p": integers(2, 1), "a": integers(-3)}),
    "pad that crops": (node("Pad", "x", "p"), {"p": integers(0, 0, -1, 1, 0, 0, -2, 0)}),
    "slice": (
        node("Slice", "x", "s", "e", "a", "t"),
        {"s": integers(0, 1), "e": integers(2**62, -1), "a": integers(2, 3), "t": integers(2, 3)},
    ),
    "slice backwards": (
        node("Slice", "x", "s", "e", "a", "t"),
        {"s": integers(-1), "e": integers(-(2**62)), "a": integers(-1), "t": integers(-2)},
    ),
    "slice without axes": (node("Slice", "x", "s", "e"), {"s": integers(0, 1), "e": integers(3, 3)}),
}


@pytest.mark.parametrize("name", CASES)
def test_operator_agrees_with_the_runtime(name: str) -> None:
    proto, constants = CASES[name]
    model = make_model([proto], constants)
    images = random_floats(3, 4, 7, 6, seed=9)
    graph = parse_graph(model, name=name)
    assert unsupported_operators(graph) == ()
    expected, actual = run_runtime(model, images), evaluate(graph, images)["y"]
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_mean_over_no_axes_changes_nothing() -> None:
    # ONNX Runtime before 1.24 refuses this node, so the specification's words stand in for it.
    images = random_floats(3, 4, 7, 6, seed=9)
    graph = parse_graph(make_model([node("ReduceMean", noop_with_empty_axes=1)], {}), name="mean")
    np.testing.assert_array_equal(evaluate(graph, images)["y"], images)


FLAT_CASES: dict[str, tuple[onnx.NodeProto, dict[str, Array]]] = {
    "gemm": (
        node("Gemm", "x", "w", "b", transB=1, alpha=0.5, beta=-2.0),
        {"w": random_floats(3, 8), "b": random_floats(3)},
    ),
    "gemm without bias": (node("Gemm", "x", "w"), {"w": random_floats(8, 3)}),
    "squeeze": (node("Squeeze", "x3", "axes"), {"axes": integers(-1)}),
    "squeeze everything": (node("Squeeze", "x3"), {}),
}


@pytest.mark.parametrize("name", FLAT_CASES)
def test_operator_on_vectors_agrees_with_the_runtime(name: str) -> None:
    proto, constants = FLAT_CASES[name]
    nodes = [proto]
    if "x3" in proto.input:
        nodes.insert(0, helper.make_node("Reshape", ["x", "s"], ["x3"], name="before"))
        constants = {**constants, "s": integers(0, 8, 1)}
    model = make_model(nodes, constants, (3, 8))
    images = random_floats(3, 8, seed=9)
    actual = evaluate(parse_graph(model, name=name), images)["y"]
    expected = run_runtime(model, images)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


OLD_CASES = {
    "reduce mean": node("ReduceMean", axes=[2, 3], keepdims=0),
    "clip": node("Clip", min=-0.5, max=0.5),
    "pad": node("Pad", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.5),
}


@pytest.mark.parametrize("name", OLD_CASES)
def test_parameters_that_were_attributes_in_old_operator_sets(name: str) -> None:
    model = make_model([OLD_CASES[name]], {}, opset=10)
    images = random_floats(2, 4, 7, 6)
    actual = evaluate(parse_graph(model, name=name), images)["y"]
    np.testing.assert_allclose(actual, run_runtime(model, images), rtol=TOLERANCE, atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    seed=st.integers(0, 99),
)
def test_convolutions_of_every_geometry(
    groups: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    seed: int,
) -> None:
    proto = node("Conv", "x", "w", "b", group=groups, strides=list(strides), dilations=list(dilations), pads=list(pads))
    constants = {"w": random_floats(8, 4 // groups, *kernel, seed=seed), "b": random_floats(8)}
    model = make_model([proto], constants)
    images = random_floats(2, 4, 7, 6, seed=seed)
    actual = evaluate(parse_graph(model, name="conv"), images)["y"]
    np.testing.assert_allclose(actual, run_runtime(model, images), rtol=TOLERANCE, atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    seed=st.integers(0, 99),
)
def test_transposed_convolutions_of_every_geometry(
    groups: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    extra: tuple[int, int],
    seed: int,
) -> None:
    padding = [min(more, stride - 1) for more, stride in zip(extra, strides, strict=True)]
    proto = node(
        "ConvTranspose",
        *("x", "w", "b"),
        group=groups,
        strides=list(strides),
        dilations=list(dilations),
        pads=list(pads),
        output_padding=padding,
    )
    lengths = [
        s * (n - 1) + p + d * (k - 1) + 1 - pads[axis] - pads[axis + 2]
        for axis, (n, s, p, d, k) in enumerate(zip((7, 6), strides, padding, dilations, kernel, strict=True))
    ]
    assume(min(lengths) > 0)
    constants = {"w": random_floats(4, 2, *kernel, seed=seed), "b": random_floats(2 * groups)}
    model = make_model([proto], constants)
    images = random_floats(2, 4, 7, 6, seed=seed)
    actual = evaluate(parse_graph(model, name="conv"), images)["y"]
    np.testing.assert_allclose(actual, run_runtime(model, images), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_transposed_convolution_is_the_transpose_of_a_convolution() -> None:
    # <conv(x), y> = <x, transposed(y)>, in float64 with sums of 500 products of size one: 500 * 2^-53 is below 1e-12
    x, weight = random_floats(2, 4, 7, 6).astype(np.float64), random_floats(5, 4, 3, 3).astype(np.float64)
    geometry: dict[str, Any] = {"strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 2)}
    out = convolution(x, weight, **geometry)
    y = random_floats(*out.shape, seed=2).astype(np.float64)
    back = transposed_convolution(y, weight, **geometry)
    assert back.shape == x.shape
    np.testing.assert_allclose((out * y).sum(), (x * back).sum(), rtol=0, atol=1e-10)


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


@pytest.mark.parametrize(("start", "end", "step"), [(-99, -(2**31), -1), (-99, 2, 1), (99, -99, -2), (-2, -99, -1)])
def test_slices_that_reach_beyond_the_ends(start: int, end: int, step: int) -> None:
    constants = {"s": integers(start), "e": integers(end), "a": integers(2), "p": integers(step)}
    model = make_model([helper.make_node("Slice", ["x", "s", "e", "a", "p"], ["y"], name="cut")], constants)
    images = random_floats(2, 4, 7, 6)
    np.testing.assert_array_equal(evaluate(parse_graph(model, name="cut"), images)["y"], run_runtime(model, images))


def test_slices_of_old_operator_sets_are_named() -> None:
    nodes = [helper.make_node("Slice", ["x"], ["y"], starts=[0], ends=[2], axes=[2], name="old")]
    graph = parse_graph(make_model(nodes, {}, opset=9), name="old")
    assert unsupported_operators(graph) == ("Slice of an operator set before 10",)


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
