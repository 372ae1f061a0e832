"""Files made to break a reader: an error in words, within a second or two."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from onnx import helper

from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.core.errors import MasksparseError
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.bake.lint_models import model_of, one_layer, weights
from tests.models.make_onnx import residual_pair

BAKED = residual_pair()[1].SerializeToString()


def lint_bytes(data: bytes) -> None:
    lint_graph(parse_graph(data, name="hostile.onnx"), name="hostile.onnx")


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.lists(st.tuples(st.integers(0, len(BAKED) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(BAKED)
    for place, value in changes:
        data[place] = value
    try:
        lint_bytes(bytes(data))
    except MasksparseError as error:
        assert "hostile.onnx" in str(error)


def ring() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    return model_of([*nodes, helper.make_node("Relu", ["b"], ["y"])], {}, x=[4])


def twice_the_same_output() -> onnx.ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])], {}, x=[4])


def twice_the_same_initializer() -> onnx.ModelProto:
    model = one_layer("MatMul", weights(4, 4), x=["n", 4])
    model.graph.initializer.append(model.graph.initializer[0])
    return model


def no_second_input() -> onnx.ModelProto:
    model = one_layer("Conv", weights(4, 4, 1, 1), x=["n", 4, 2, 2])
    del model.graph.node[0].input[1:]
    return model


@pytest.mark.parametrize(
    "make",
    [ring, twice_the_same_output, twice_the_same_initializer, no_second_input],
    ids=lambda make: make.__name__,
)
def test_graphs_that_are_none(make: Any) -> None:
    with pytest.raises(MasksparseError, match=r"hostile\.onnx is damaged or not a valid ONNX file"):
        lint_bytes(make().SerializeToString())


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("Conv", ()),
        ("Conv", (4,)),
        ("Conv", (0, 4, 1, 1)),
        ("MatMul", ()),
        ("Gemm", (4,)),
        ("Gemm", (0, 0)),
        ("ConvTranspose", (4,)),
    ],
)
def test_weights_with_axes_that_their_operator_does_not_take(op: str, shape: tuple[int, ...]) -> None:
    data = one_layer(op, np.ones(shape, np.float32), x=["n", 4, 4, 4][: 2 if op in ("Gemm", "MatMul") else 4])
    try:
        report = lint_graph(parse_graph(data.SerializeToString(), name="hostile.onnx"), name="hostile.onnx")
    except MasksparseError:
        return  # shape inference refuses some of them
    assert [layer.state for layer in report.layers] == ["not eligible"]


def test_a_long_chain_is_not_followed() -> None:
    count = 2000
    nodes = [helper.make_node("Identity", [f"v{index}"], [f"v{index + 1}"]) for index in range(count)]
    nodes += [helper.make_node("MatMul", ["x", f"v{index}"], [f"y{index}"]) for index in range(count)]
    model = model_of([*nodes, helper.make_node("Relu", ["y0"], ["y"])], {"v0": weights(4, 4)}, x=["n", 4])
    layers = weighted_layers(parse_graph(model.SerializeToString(), name="chain.onnx"))
    assert len(layers) == 17
    assert len(layers[-1].route) == 16
