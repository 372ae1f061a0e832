"""Following weights through what rearranges them: the axis and the places must be right whatever the route."""

from math import prod

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from masksparse_deploy.bake.rearrange import to_stored
from masksparse_deploy.bake.trace import TracedWeight, trace, trace_weights
from tests.bake.file_models import branching_model, constant_node, matmul_model, values

Shape = tuple[int, ...]


def only_weight(model: onnx.ModelProto) -> TracedWeight:
    (weight,) = trace_weights(ir.from_proto(model))
    return weight


@st.composite
def routes(draw: st.DrawFn) -> tuple[Shape, list[onnx.NodeProto], Shape]:
    """The shape of a constant, up to four operators from "fc.weight" to "w", and the shape that arrives."""
    first = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)))
    nodes: list[onnx.NodeProto] = []
    shape, name = first, "fc.weight"
    for index in range(draw(st.integers(1, 4))):
        op = draw(st.sampled_from(["Identity", "Reshape", "Unsqueeze", "Squeeze", *(["Transpose"] if shape else [])]))
        inputs, attributes = [name], {}
        if op == "Transpose":
            order = draw(st.permutations(range(len(shape))))
            attributes = {"perm": order}
            shape = tuple(shape[axis] for axis in order)
        elif op == "Reshape":
            cut = draw(st.integers(0, len(shape)))
            shape = (prod(shape[:cut]), prod(shape[cut:])) if draw(st.booleans()) else (prod(shape),)
            given_shape = [-1, *shape[1:]] if draw(st.booleans()) else list(shape)
            nodes.append(constant_node(f"shape{index}", np.array(given_shape, dtype=np.int64)))
            inputs.append(f"shape{index}")
        elif op == "Unsqueeze":
            axis = draw(st.integers(-len(shape) - 1, len(shape)))
            nodes.append(constant_node(f"axes{index}", np.array([axis], dtype=np.int64)))
            inputs.append(f"axes{index}")
            place = axis % (len(shape) + 1)
            shape = (*shape[:place], 1, *shape[place:])
        elif op == "Squeeze":
            shape = tuple(length for length in shape if length != 1)
        name = f"value{index}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"step{index}", **attributes))
    nodes.append(helper.make_node("Identity", [name], ["w"], name="last"))
    return first, nodes, shape


@settings(deadline=None)
@given(routes())
def test_places_and_axes_on_any_route(route: tuple[Shape, list[onnx.NodeProto], Shape]) -> None:
    first, nodes, arrived = route
    index = np.arange(prod(first), dtype=np.float32).reshape(first)
    steps = helper.make_graph(
        nodes,
        "route",
        [helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, first)],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )
    (operand,) = ReferenceEvaluator(helper.make_model(steps)).run(None, {"fc.weight": index})
    weight = only_weight(matmul_model(index, *nodes))
    assert weight.operand_shape == operand.shape == arrived
    np.testing.assert_array_equal(to_stored(operand, weight.route), index)
    if not arrived:  # Squeeze may leave a number, which has no axes
        return
    # Where an element lies along the axis of the operand, and along each axis of the constant
    along = np.indices(arrived)[weight.operand_axis]
    stored = np.unravel_index(operand.astype(np.int64), first)
    same = [
        axis for axis, places in enumerate(stored) if first[axis] == arrived[weight.operand_axis] and (places == along).all()
    ]
    # Two reshapes may undo each other, which is not followed: no axis is a refusal, a wrong one would be a fault
    assert weight.group_axis is None or weight.group_axis in same
    if arrived[weight.operand_axis] > 1 and same and sum(node.op_type == "Reshape" for node in nodes) <= 1:
        assert weight.group_axis is not None


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["fc.weight"], ["w"], name="step"),
        helper.make_node("Transpose", ["fc.weight"], ["w"], name="step", domain="com.example"),
        helper.make_node("Reshape", ["fc.weight", "x"], ["w"], name="step"),
        helper.make_node("Squeeze", ["fc.weight", "x"], ["w"], name="step"),
        helper.make_node("Expand", ["fc.weight", "x"], ["w"], name="step"),
    ],
    ids=lambda node: f"{node.domain}{node.op_type}",
)
def test_what_computes_or_depends_on_the_input_is_not_followed(node: onnx.NodeProto) -> None:
    model = ir.from_proto(_unchecked(node))
    assert trace_weights(model) == ()


def _unchecked(node: onnx.NodeProto) -> onnx.ModelProto:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    model = matmul_model(values(8, 12))
    model.graph.ClearField("node")
    model.graph.node.extend([node, product])
    return model


def test_a_route_that_never_ends() -> None:
    names = ["fc.weight", *(f"v{index}" for index in range(39)), "w"]
    nodes = [helper.make_node("Identity", names[i : i + 1], names[i + 1 : i + 2], name=f"n{i}") for i in range(40)]
    assert trace_weights(ir.from_proto(matmul_model(values(8, 12), *nodes))) == ()


def test_bodies_come_after_the_main_graph() -> None:
    traced = trace(ir.from_proto(branching_model(captured=True)))
    assert sorted(weight.node.name or "" for weight in traced.weights) == ["else.fc", "then.fc"]
    assert [len(weights) for weights in traced.named("fc.weight").values()] == [2]
    assert list(traced.other_readers.values()) == [()]
