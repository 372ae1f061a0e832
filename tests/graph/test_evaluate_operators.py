"""The float64 reference evaluation, held against ONNX Runtime operator by operator."""

from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from masksparse_deploy.graph.evaluate import evaluate, unsupported_operators
from masksparse_deploy.graph.operators import convolution, transposed_convolution
from masksparse_deploy.graph.reader import parse_graph
from tests.graph.cases import SCALAR, TOLERANCE, Array, integers, make_model, node, random_floats, run_runtime

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
