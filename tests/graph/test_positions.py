"""Masked positions as they are found in a file, and the file without them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.twins import changed_constants, structural_differences
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.positions import position_masks, without_positions
from masksparse_deploy.graph.reader import parse_graph
from tests.models.make_onnx import residual_pair, residual_weights
from tests.models.positions import random_positions, with_positions

DENSE, SPARSE = residual_pair()


def graph_of(model: onnx.ModelProto) -> Graph:
    return parse_graph(model.SerializeToString(), name="model.onnx")


def test_masks_are_found_with_convolution_and_constant() -> None:
    positions = random_positions()
    found = position_masks(graph_of(with_positions(SPARSE, positions)))

    assert sorted(found) == ["layer1.conv1.out", "layer1.conv2.out", "layer2.conv1.out"]
    bias = residual_weights()["layer1.conv2.bias"]
    masked = found["layer1.conv2.out"]
    assert (masked.conv.name, masked.where.op, masked.layer) == ("layer1.conv2", "Where", "layer1.conv2")
    np.testing.assert_array_equal(masked.keep, positions["layer1.conv2"].keep)
    np.testing.assert_array_equal(masked.constant, bias)


def test_without_positions_is_the_graph_that_they_were_baked_into() -> None:
    before, after = graph_of(SPARSE), without_positions(graph_of(with_positions(SPARSE, random_positions())))

    assert structural_differences(before, after) == ()
    assert changed_constants(before, after) == ()
    assert before.shapes == after.shapes
    assert before.constant_metadata == after.constant_metadata


def test_a_graph_without_masks_stays_itself() -> None:
    graph = graph_of(SPARSE)
    assert position_masks(graph) == {}
    assert without_positions(graph) is graph


def test_a_where_of_the_network_itself_is_none() -> None:
    model = with_positions(SPARSE, random_positions())
    where = next(node for node in model.graph.node if node.op_type == "Where")
    del where.metadata_props[:]

    assert len(position_masks(graph_of(model))) == 2
    assert sum(node.op == "Where" for node in without_positions(graph_of(model)).nodes) == 1


def _another_operator(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    where.op_type = "Add"
    del where.input[2:]


def _computed_mask(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    index = list(model.graph.node).index(where)
    model.graph.node.insert(index, helper.make_node("Not", [where.input[0]], ["turned"], name="turned"))
    model.graph.node[index + 1].input[0] = "turned"


def _mask_of_channels(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _replace(model, where.input[0], np.ones((1, 16, 4, 4), dtype=np.bool_))


def _broadcast_mask(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _replace(model, where.input[0], np.ones((1, 1, 1, 4), dtype=np.bool_))


def _one_constant(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _replace(model, where.input[2], np.zeros((1, 1, 1, 1), dtype=np.float32))


def _behind_relu(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    index = list(model.graph.node).index(where)
    model.graph.node.insert(index, helper.make_node("Relu", [where.input[1]], ["early"], name="early"))
    model.graph.node[index + 1].input[1] = "early"


def _read_elsewhere(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info(where.input[1], TensorProto.FLOAT, ["batch", 16, 4, 4]))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_another_operator, "but it is a Add of 2 inputs"),
        (_computed_mask, "but turned is computed"),
        (_mask_of_channels, r"the mask layer1.conv1.out.kept_positions is bool \(1, 16, 4, 4\)"),
        (_broadcast_mask, r"has \(1, 4\) positions, the convolution \(4, 4\)"),
        (_one_constant, r"has the shape \(1, 1, 1, 1\), for 16 channels"),
        (_behind_relu, "early is not the output of a Conv"),
        (_read_elsewhere, "layer1.conv1.out.computed, before it, is read elsewhere too"),
    ],
)
def test_planted_faults_are_refused(fault: Callable[[onnx.ModelProto, onnx.NodeProto], None], message: str) -> None:
    model = with_positions(SPARSE, random_positions())
    where = next(node for node in model.graph.node if node.op_type == "Where")
    fault(model, where)
    graph = graph_of(model)

    for read in (position_masks, without_positions):
        with pytest.raises(ArtifactError, match=r"node layer1\.conv1\.positions is annotated with") as raised:
            read(graph)
        raised.match(message)
        raised.match("bake the masks again")


def _replace(model: onnx.ModelProto, name: str, array: npt.NDArray[Any]) -> None:
    del model.graph.value_info[:]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
