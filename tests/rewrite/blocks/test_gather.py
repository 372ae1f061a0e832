"""The rewrite of 1xN convolutions computes the same, keeps names, and shares what can be shared."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from tests.rewrite.models import (
    assert_same_function,
    blocked_weight,
    conv,
    layer_constants,
    model_of,
    residual_blocks,
)

HALF = BlockPattern(n=4, rate=0.5)
ALL = ("conv1", "conv2", "conv3")


def rewritten(model: onnx.ModelProto, layers: Collection[str] = ALL, **options: Any) -> onnx.ModelProto:
    """The rewritten model; its shapes must be those that ONNX infers."""
    graph = ir.from_proto(model)
    gather_blocks(graph, layers, **options)
    after = ir.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    return after


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def one_layer(weight: np.ndarray[Any, Any], pattern: BlockPattern | None = None, **attributes: Any) -> onnx.ModelProto:
    """A single convolution of four channels."""
    patterns = {} if pattern is None else {"conv1": pattern}
    return model_of([conv("conv1", "x", "y", **attributes)], layer_constants("conv1", weight), patterns)


@pytest.mark.parametrize("text", ["1x4@0.5", "1x8@0.75", "1x16@0.5", "1x4~0.6"])
@pytest.mark.parametrize("options", [{}, {"multiple": 8}, {"smallest_group": 8}, {"multiple": 3, "smallest_group": 16}])
def test_the_function_stays(text: str, options: dict[str, int]) -> None:
    before = residual_blocks(BlockPattern.parse(text))
    after = rewritten(before, **options)
    assert_same_function(before, after)
    assert [node.name for node in after.graph.node if node.op_type == "Conv"] == ["stem", *ALL]
    assert {node.output[0] for node in before.graph.node} <= {node.output[0] for node in after.graph.node}


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 1]},
        {"dilations": [2, 2], "pads": [2, 1, 2, 3]},
        {"auto_pad": "SAME_UPPER", "pads": None},
        {"kernel_shape": None},
    ],
)
def test_geometry_stays(attributes: dict[str, Any]) -> None:
    before = one_layer(blocked_weight((8, 4, 3, 3), HALF), HALF, **attributes)
    assert_same_function(before, rewritten(before))


def test_groups_read_as_many_channels_as_they_keep() -> None:
    after = shapes(rewritten(residual_blocks(HALF)))
    assert after["conv1.weight/groups"] == (16, 8, 3, 3)
    assert "conv1.weight" not in after
    assert after["stem.weight"] == (16, 4, 3, 3)
    assert after["conv1/channels/indices"] == (4 * 8,)


def test_layers_that_are_not_named_stay() -> None:
    before = residual_blocks(HALF)
    after = rewritten(before, ["conv2"])
    assert operators(after) == operators(before) + Counter(Gather=1)
    assert shapes(after)["conv1.weight"] == (16, 16, 3, 3)


def test_annotations_of_the_dense_weight_do_not_stay_on_the_groups() -> None:
    for node in rewritten(residual_blocks(HALF)).graph.node:
        assert not node.metadata_props


def test_layers_that_read_the_same_channels_share_the_gather() -> None:
    weight = blocked_weight((8, 4, 3, 3), HALF)
    nodes = [conv("conv1", "x", "a"), conv("conv2", "x", "b"), helper.make_node("Add", ["a", "b"], ["y"], name="add")]
    constants = layer_constants("conv1", weight) | layer_constants("conv2", 2 * weight)
    before = model_of(nodes, constants, dict.fromkeys(("conv1", "conv2"), HALF))
    after = rewritten(before)
    assert operators(after)["Gather"] == 1
    assert_same_function(before, after)


def test_channels_in_their_order_need_no_gather() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3), dtype=np.float32)
    weight[:2, 2:] = weight[2:, :2] = 0
    before = one_layer(weight)
    after = rewritten(before)
    assert operators(after) == Counter(Conv=1)
    assert_same_function(before, after)


def test_consecutive_channels_are_a_slice() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3), dtype=np.float32)
    weight[:, 3] = 0
    before = one_layer(weight)
    after = rewritten(before)
    assert operators(after) == Counter(Conv=1, Slice=1)
    assert_same_function(before, after)


def test_a_slice_is_a_gather_where_its_bounds_cannot_be_inputs() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3), dtype=np.float32)
    weight[:, 3] = 0
    before = one_layer(weight)
    before.opset_import[0].version = 9
    after = rewritten(before)
    onnx.checker.check_model(after, full_check=True)
    assert operators(after) == Counter(Conv=1, Gather=1)
    assert_same_function(before, after)


def test_a_weight_of_a_constant_node_is_taken_too() -> None:
    weight = blocked_weight((8, 4, 3, 3), HALF, seed=3)
    constant = helper.make_node("Constant", [], ["conv1.weight"], name="make", value=numpy_helper.from_array(weight))
    bias = {"conv1.bias": np.zeros(8, np.float32)}
    before = model_of([constant, conv("conv1", "x", "y")], bias, {})
    after = rewritten(before)
    assert operators(after) == Counter(Conv=1, Gather=1)
    assert_same_function(before, after)


def test_a_bias_may_be_missing() -> None:
    node = helper.make_node("Conv", ["x", "conv1.weight"], ["y"], name="conv1")
    before = model_of([node], {"conv1.weight": blocked_weight((8, 4, 1, 1), HALF)}, {"conv1": HALF})
    assert_same_function(before, rewritten(before))


def test_names_that_are_taken_get_another() -> None:
    nodes = [
        conv("conv1", "x", "x/conv1/channels"),
        helper.make_node("Relu", ["x/conv1/channels"], ["y"], name="conv1/channels"),
    ]
    before = model_of(nodes, layer_constants("conv1", blocked_weight((8, 4, 3, 3), HALF)), {"conv1": HALF})
    assert_same_function(before, rewritten(before))
