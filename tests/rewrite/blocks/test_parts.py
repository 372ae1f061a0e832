"""Layers in parts and subsampled layers compute the same, are read back as such, and planted faults in them are found."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from tests.rewrite.blocks.test_gather import operators, rewritten
from tests.rewrite.models import (
    Array,
    assert_same_function,
    blocked_weight,
    conv,
    layer_constants,
    model_of,
    residual_blocks,
    run,
)
from tests.rewrite.test_verify import differences, edit, node

HALF = BlockPattern(n=4, rate=0.5)
LAYERS = ("conv1", "conv2")


def two_strided(**changes: Any) -> onnx.ModelProto:
    """Two 1x1 convolutions of 24 and 16 channels that read every second row and every third column of one tensor."""
    geometry = {"kernel_shape": [1, 1], "pads": None, "strides": [2, 3], **changes}
    nodes = [
        conv("stem", "x", "a"),
        conv("conv1", "a", "b", **geometry),
        conv("conv2", "a", "c", **geometry),
        helper.make_node("Concat", ["b", "c"], ["y"], name="both", axis=1),
    ]
    constants = layer_constants("stem", np.random.default_rng(1).standard_normal((16, 4, 3, 3), dtype=np.float32))
    constants |= layer_constants("conv1", blocked_weight((24, 16, 1, 1), HALF, 2))
    constants |= layer_constants("conv2", blocked_weight((16, 16, 1, 1), HALF, 3))
    return model_of(nodes, constants, dict.fromkeys(LAYERS, HALF))


@pytest.mark.parametrize("part_count", [2, 3, 4, 9])
@pytest.mark.parametrize("options", [{}, {"multiple": 6}, {"smallest_group": 8}])
def test_parts_are_the_same_function(part_count: int, options: dict[str, int]) -> None:
    before = residual_blocks(HALF)
    after = rewritten(before, part_count=part_count, **options)
    assert_same_function(before, after)
    assert differences(before, after) == ()
    assert {entry.output[0] for entry in before.graph.node} <= {entry.output[0] for entry in after.graph.node}
    assert node(after, "conv1").op_type == "Concat"
    # no weight or bias of the dense layer stays behind
    assert {tensor.name for tensor in after.graph.initializer if "conv1" in tensor.name and "part" not in tensor.name} == set()


def test_parts_hold_as_many_groups_as_they_can_equally() -> None:
    after = rewritten(residual_blocks(HALF), ["conv3"], part_count=3)
    assert [part_groups(after, f"conv3/part{index}") for index in range(3)] == [2, 3, 3]


def part_groups(model: onnx.ModelProto, name: str) -> int:
    return int(helper.get_node_attr_value(node(model, name), "group"))


def test_a_bias_may_be_missing() -> None:
    entry = helper.make_node("Conv", ["x", "conv1.weight"], ["y"], name="conv1")
    before = model_of([entry], {"conv1.weight": blocked_weight((8, 4, 1, 1), HALF)}, {"conv1": HALF})
    after = rewritten(before, part_count=2)
    assert operators(after)["Conv"] == 2
    assert_same_function(before, after)
    assert differences(before, after) == ()


def test_a_bias_that_is_computed_keeps_the_layer_in_one_part() -> None:
    weight = blocked_weight((8, 4, 1, 1), HALF)
    nodes = [
        helper.make_node("Add", ["half", "half"], ["conv1.bias"], name="add"),
        conv("conv1", "x", "y", kernel_shape=[1, 1], pads=None),
    ]
    before = model_of(nodes, {"conv1.weight": weight, "half": np.ones(8, np.float32)}, {"conv1": HALF})
    after = rewritten(before, part_count=2)
    assert operators(after) == {"Add": 1, "Gather": 1, "Conv": 1}
    assert_same_function(before, after)


@pytest.mark.parametrize("part_count", [1, 2])
def test_strided_layers_gather_only_the_positions_that_they_read(part_count: int) -> None:
    before = two_strided()
    after = rewritten(before, LAYERS, part_count=part_count)
    assert operators(after)["AveragePool"] == 1  # both layers read it
    shapes = {value.name: [n.dim_value for n in value.type.tensor_type.shape.dim] for value in after.graph.value_info}
    assert [shapes[entry.output[0]][2:] for entry in after.graph.node if entry.op_type == "Gather"] == [[3, 2]] * 2 * part_count
    assert_same_function(before, after)
    assert differences(before, after) == ()


@pytest.mark.parametrize(
    "changes",
    [{"kernel_shape": [3, 3], "pads": [1] * 4}, {"pads": [0, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {"strides": None}],
)
def test_other_layers_read_all_positions(changes: dict[str, Any]) -> None:
    kernel = tuple(changes.get("kernel_shape", (1, 1)))
    geometry = {"kernel_shape": list(kernel), "pads": None, "strides": [2, 2], **changes}
    weight = blocked_weight((8, 4, *kernel), HALF)
    before = model_of([conv("conv1", "x", "y", **geometry)], layer_constants("conv1", weight), {"conv1": HALF})
    after = rewritten(before)
    assert operators(after) == {"Gather": 1, "Conv": 1}
    assert_same_function(before, after)
    assert differences(before, after) == ()


def test_what_positions_hold_stays_to_the_bit() -> None:
    """An average of one position is that position, whatever it holds."""
    pool = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[1, 1], strides=[2, 2])
    images = np.zeros((1, 1, 3, 4), np.float32)
    images[0, 0] = [[np.inf, 0, -np.inf, 0], [0] * 4, [np.float32(1e-45), 0, np.float32(3.4e38), 0]]
    graph = helper.make_graph(
        [pool],
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    np.testing.assert_array_equal(run(model, images), images[:, :, ::2, ::2])


def swap_parts(model: onnx.ModelProto) -> None:
    inputs = node(model, "conv1").input
    inputs[0], inputs[1] = inputs[1], inputs[0]


def lose_a_part(model: onnx.ModelProto) -> None:
    del node(model, "conv2").input[1]


def change_a_bias(model: onnx.ModelProto) -> None:
    edit(model, "conv1.bias/part1", lambda bias: bias.__setitem__(0, bias[0] + 1))


def change_a_weight(model: onnx.ModelProto) -> None:
    edit(model, "conv1.weight/groups/part1", lambda weight: weight.ravel().__setitem__(3, 7))


def another_channel(model: onnx.ModelProto) -> None:
    def change(indices: Array) -> None:
        indices[:2] = indices[1::-1].copy()

    edit(model, "conv2/part0/channels/indices", change)


def another_stride(model: onnx.ModelProto) -> None:
    strides = next(a for a in node(model, "conv1/positions").attribute if a.name == "strides")
    strides.ints[:] = [3, 2]


def wider_windows(model: onnx.ModelProto) -> None:
    kernel = next(a for a in node(model, "conv1/positions").attribute if a.name == "kernel_shape")
    kernel.ints[:] = [2, 1]


def round_up(model: onnx.ModelProto) -> None:
    node(model, "conv1/positions").attribute.append(helper.make_attribute("ceil_mode", 1))


def another_axis(model: onnx.ModelProto) -> None:
    node(model, "conv1").attribute[0].i = -3


def a_part_of_the_whole_tensor(model: onnx.ModelProto) -> None:
    node(model, "conv1/part0/channels").input[0] = "a"


def unread_part(model: onnx.ModelProto) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(node(model, "conv1/part0"))
    copy.name, copy.output[0] = "more", "more"
    model.graph.node.append(copy)


FAULTS = [
    (swap_parts, "Concat conv1: it has another bias"),
    (lose_a_part, "Concat conv2: it has another bias"),
    (change_a_bias, "Concat conv1: it has another bias"),
    (change_a_weight, "Concat conv1: its weights are not the sparse file's, in 1 of 24 output channels"),
    (another_channel, "Concat conv2: its weights are not the sparse file's, in 4 of 16 output channels"),
    (another_stride, "Concat conv1: its part conv1/part0: it has the attributes"),
    (wider_windows, "AveragePool conv1/positions is not in the sparse file"),
    (round_up, "AveragePool conv1/positions is not in the sparse file"),
    (another_axis, "Concat conv1 is not Conv conv1 of the sparse file"),
    (a_part_of_the_whole_tensor, "Concat conv1: its part conv1/part0: it has the attributes"),
    (unread_part, "more is computed, but nothing reads it"),
]


@pytest.mark.parametrize(("plant", "expected"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_planted_faults_are_found(plant: Callable[[onnx.ModelProto], None], expected: str) -> None:
    sparse = two_strided()
    model = ir.from_proto(sparse)
    gather_blocks(model, LAYERS, part_count=2)
    after = ir.to_proto(model)
    assert differences(sparse, after) == ()
    plant(after)
    found = differences(sparse, after)
    assert any(expected in line for line in found), found


def test_a_window_that_needs_the_positions_left_out_is_found() -> None:
    """A 3x3 convolution over every second position, told to be the strided one of the sparse file."""
    weight = blocked_weight((8, 4, 3, 3), HALF)
    constants = layer_constants("conv1", weight)
    sparse = model_of([conv("conv1", "x", "y", strides=[2, 2])], constants, {"conv1": HALF})
    pool = helper.make_node("AveragePool", ["x"], ["p"], name="p", kernel_shape=[1, 1], strides=[2, 2])
    after = model_of([pool, conv("conv1", "p", "y", strides=[1, 1])], constants, {})
    assert differences(sparse, after) == ("Conv conv1: its windows need positions that it does not read",)
