"""Activations, normalizations, resizing, pooling with ceil_mode and the like, held against ONNX Runtime."""

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.evaluate import evaluate, unsupported_operators
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.graph.simplify import simplified
from tests.graph.cases import TOLERANCE, Array, integers, make_model, node, random_floats, run_runtime

RESIZED = {
    f"resize {mode} {coordinates} {rounding} {factor}": (
        node(
            "Resize",
            *("x", "", "s"),
            mode=mode,
            coordinate_transformation_mode=coordinates,
            nearest_mode=rounding,
        ),
        {"s": np.float32([1, 1, factor, 2])},
    )
    for mode, coordinates, rounding, factor in [
        *product(
            ["nearest"], ["asymmetric", "half_pixel"], ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"], [2, 3]
        ),
        *product(["linear"], ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"], ["floor"], [2, 3]),
    ]
}
CASES: dict[str, tuple[onnx.NodeProto, dict[str, Array]]] = {
    "abs": (node("Abs"), {}),
    "celu": (node("Celu", alpha=0.7), {}),
    "divide": (node("Div", "x", "c"), {"c": random_floats(4, 1, 1) + np.float32(4)}),
    "elu": (node("Elu", alpha=1.3), {}),
    "erf": (node("Erf"), {}),
    "gelu": (node("Gelu"), {}),
    "gelu by tanh": (node("Gelu", approximate="tanh"), {}),
    "global max pool": (node("GlobalMaxPool"), {}),
    "hard swish": (node("HardSwish"), {}),
    "instance normalization": (
        node("InstanceNormalization", "x", "s", "b", epsilon=1e-3),
        {"s": random_floats(4), "b": random_floats(4, seed=2)},
    ),
    "layer normalization": (
        node("LayerNormalization", "x", "s", "b", epsilon=1e-3),
        {"s": random_floats(6), "b": random_floats(6, seed=2)},
    ),
    "layer normalization of images": (node("LayerNormalization", "x", "s", axis=1), {"s": random_floats(4, 7, 6)}),
    "log softmax": (node("LogSoftmax", axis=1), {}),
    "mish": (node("Mish"), {}),
    "negative": (node("Neg"), {}),
    "power": (node("Pow", "x", "e"), {"e": np.float32(3)}),
    "prelu": (node("PRelu", "x", "s"), {"s": random_floats(4, 1, 1)}),
    "reduce max": (node("ReduceMax", "x", "axes"), {"axes": integers(-2, -1)}),
    "reduce sum": (node("ReduceSum", "x", "axes", keepdims=0), {"axes": integers(1)}),
    "selu": (node("Selu"), {}),
    "softmax": (node("Softmax", axis=1), {}),
    "softplus": (node("Softplus"), {}),
    "softsign": (node("Softsign"), {}),
    "sum": (node("Sum", "x", "c", "x"), {"c": random_floats(4, 1, 1)}),
    "subtract": (node("Sub", "c", "x"), {"c": random_floats(4, 1, 1)}),
    "transpose": (node("Transpose", perm=[0, 2, 3, 1]), {}),
    "unsqueeze": (node("Unsqueeze", "x", "axes"), {"axes": integers(1, -1)}),
    "resize to a size": (
        node("Resize", *("x", "", "", "s"), nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        {"s": integers(3, 4, 9, 5)},
    ),
    "resize to smaller": (node("Resize", "x", "", "s", mode="linear"), {"s": np.float32([1, 1, 0.5, 0.7])}),
    **RESIZED,
}


@pytest.mark.parametrize("name", CASES)
def test_operator_agrees_with_the_runtime(name: str) -> None:
    proto, constants = CASES[name]
    model = make_model([proto], constants)
    images = random_floats(3, 4, 7, 6, seed=9)
    graph = parse_graph(model, name=name)
    assert unsupported_operators(graph) == ()
    expected, actual = run_runtime(model, images), evaluate(graph, images)["y"]
    assert (actual.dtype, actual.shape) == (np.float64, expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_activations_of_large_values_do_not_overflow() -> None:
    images = np.float32([[-1e4, -90, 0, 90, 1e4]])
    for op in ("Sigmoid", "Softplus", "Mish", "Elu", "Softmax", "LogSoftmax", "Gelu"):
        model = make_model([node(op)], {}, ("batch", 5))
        np.testing.assert_allclose(
            evaluate(parse_graph(model, name=op), images)["y"], run_runtime(model, images), rtol=TOLERANCE, atol=TOLERANCE
        )


@settings(max_examples=80, deadline=None)
@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    include=st.booleans(),
)
def test_pooling_with_ceil_mode(
    op: str, kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int, int, int], include: bool
) -> None:
    # padding of half a kernel at most, as PyTorch demands; with more, windows may hold no element at all
    pads = tuple(min(pad, kernel[axis % 2] // 2) for axis, pad in enumerate(pads))  # type: ignore[assignment]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": 1}
    if op == "AveragePool":
        attributes["count_include_pad"] = int(include)
    model = make_model([node(op, **attributes)], {}, opset=22)
    images = random_floats(2, 4, 7, 6)
    expected, actual = run_runtime(model, images), evaluate(parse_graph(model, name=op), images)["y"]
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("parts", [{"num_outputs": 2}, {"split": integers(1, 0, 3)}], ids=["equal", "given"])
def test_splits_are_cut(parts: dict[str, Any]) -> None:
    sizes = {key: value for key, value in parts.items() if key == "split"}
    attributes = {key: value for key, value in parts.items() if key != "split"}
    nodes = [
        helper.make_node(
            "Split", ["x", *sizes], ["a", "b", "c"][: attributes.get("num_outputs")], name="split", axis=-3, **attributes
        ),
        helper.make_node("Concat", ["b", "a"], ["y"], name="join", axis=1),
    ]
    model, images = make_model(nodes, sizes), random_floats(2, 4, 7, 6)
    graph = parse_graph(model, name="split")
    assert unsupported_operators(graph) == ()
    np.testing.assert_array_equal(evaluate(graph, images)["y"], run_runtime(model, images))


def test_a_split_of_unknown_parts_is_named() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=0, num_outputs=2),
        helper.make_node("Concat", ["a", "b"], ["y"], name="join", axis=0),
    ]
    assert unsupported_operators(parse_graph(make_model(nodes, {}), name="split")) == ("Split",)


def test_shapes_that_are_computed_from_the_images() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape", start=0, end=1),
        helper.make_node("Concat", ["s", "rest"], ["t"], name="join", axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"], name="flat"),
    ]
    model, images = make_model(nodes, {"rest": integers(-1)}), random_floats(2, 4, 7, 6)
    graph = parse_graph(model, name="shape")
    assert unsupported_operators(graph) == ()
    np.testing.assert_array_equal(evaluate(graph, images)["y"], run_runtime(model, images))


REFUSED = {
    "Resize with mode cubic": node("Resize", "x", "", "s", mode="cubic"),
    "Resize with tf_crop_and_resize": node("Resize", "x", "r", "s", coordinate_transformation_mode="tf_crop_and_resize"),
    "Resize with antialias, axes or a fixed aspect ratio": node("Resize", "x", "", "s", mode="linear", antialias=1),
    "Resize with a computed parameter": node("Resize", "x", "", "t"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_covered_is_named(reason: str) -> None:
    constants = {"s": np.float32([1, 1, 2, 2]), "r": np.zeros(8, np.float32)}
    picked = [
        helper.make_node("ReduceMax", ["x", "axes"], ["u"], name="max", keepdims=0),
        helper.make_node("Cast", ["u"], ["t"], name="same", to=TensorProto.FLOAT),
    ]
    model = make_model([*picked, REFUSED[reason]], {**constants, "axes": integers(0, 2, 3)})
    assert unsupported_operators(parse_graph(model, name="case")) == (reason,)


def test_numbers_that_a_file_computes_are_constants() -> None:
    nodes = [
        helper.make_node("CastLike", ["two", "x"], ["t"], name="cast"),
        helper.make_node("Sqrt", ["t"], ["r"], name="root"),
        helper.make_node("Mul", ["w", "r"], ["v"], name="kept"),
        helper.make_node("Div", ["x", "r"], ["a"], name="divide"),
        helper.make_node("Sum", ["a", "v"], ["y"], name="last"),
    ]
    model, images = make_model(nodes, {"two": np.float32(2), "w": random_floats(4, 1, 1)}), random_floats(2, 4, 7, 6)
    graph = simplified(parse_graph(model, name="numbers"))
    assert [node.name for node in graph.nodes] == ["kept", "divide", "last"]
    assert graph.constants["r"] == np.sqrt(2.0)
    np.testing.assert_allclose(evaluate(graph, images)["y"], run_runtime(model, images), rtol=TOLERANCE, atol=TOLERANCE)


BROKEN = {
    "scales of another rank": node("Resize", "x", "", "short"),
    "a scale that makes it empty": node("Resize", "x", "", "zero"),
    "a scale beyond all images": node("Resize", "x", "", "huge"),
    "a scale that is infinite": node("Resize", "x", "", "infinite"),
    "an index that is not there": node("Gather", "x", "far", axis=2),
    "windows that do not move": node("MaxPool", kernel_shape=[2, 2], strides=[0, 1], ceil_mode=1),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_parameters_that_do_not_fit_are_refused_in_words(fault: str) -> None:
    constants: dict[str, Array] = {
        "short": np.float32([2, 2]),
        "zero": np.float32([1, 1, 0.01, 1]),
        "huge": np.float32([1, 1, 1e9, 1]),
        "infinite": np.float32([1, 1, np.inf, 1]),
        "far": integers(99),
    }
    proto = BROKEN[fault]
    graph = Graph(
        nodes=(read_node(proto),),
        constants={name: array for name, array in constants.items() if name in proto.input},
        constant_metadata={},
        inputs={"x": (None, 4, 7, 6)},
        outputs=("y",),
        shapes={},
        opsets={"": 20},
        metadata={},
        sha256="",
    )
    with pytest.raises(UsageError, match=f"{proto.op_type} 'case' cannot be computed for inputs of the shapes"):
        evaluate(graph, random_floats(1, 4, 7, 6))


def read_node(proto: onnx.NodeProto) -> Node:
    """A node as the reader gives it, without the checks of ONNX, which refuses some of these."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in proto.attribute}
    return Node(
        name=proto.name,
        op=proto.op_type,
        domain="",
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()},
        metadata={},
    )
