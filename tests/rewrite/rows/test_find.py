"""What cannot compute rows says why."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.rewrite.rows.find import is_masked, obstacle, read_convolution
from masksparse_deploy.rewrite.rows.grouping import GroupCosts
from masksparse_deploy.rewrite.rows.transform import transform
from tests.rewrite.rows.models import Network


def first_node(model: onnx.ModelProto) -> tuple[ir.Node, ir.Graph]:
    graph = ir.from_proto(model).graph
    return graph[0], graph


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"group": 2}, "it is a grouped convolution, whose products are too small to gain by it"),
        ({"kernel_shape": [3], "pads": [1, 1]}, "its kernel has 1 axes, not height and width"),
    ],
)
def test_convolutions_with_an_obstacle(attributes: dict[str, Any], told: str) -> None:
    net = Network(channels=8)
    net.shape = net.shape[: 2 + len(attributes.get("kernel_shape", (3, 3)))]
    model = net.model(net.convolve("x", "conv", (8 // attributes.get("group", 1), 8), **attributes))
    assert obstacle(*first_node(model)) == told


def test_weights_in_half_precision_and_computed_ones() -> None:
    net = Network()
    net.convolve("x", "conv", (3, 8))
    half = net.constant("conv.weight", net.constants["conv.weight"].astype(np.float16))
    net.nodes.insert(0, onnx.helper.make_node("Cast", [half], ["cast"], name="cast", to=onnx.TensorProto.FLOAT))
    net.nodes[1].input[1] = "cast"
    graph = ir.from_proto(net.model("conv.out")).graph
    cast, conv = graph
    assert obstacle(conv, graph) == "its weight is computed"
    assert obstacle(cast, graph) == "it is a Cast, not a convolution of the main graph"


def test_images_of_no_fixed_size_are_refused_with_what_to_do() -> None:
    net = Network(batch=1)
    net.shape = [1, 3, "height", "width"]
    model = ir.from_proto(net.model(net.convolve("x", "conv", (3, 8))))
    message = (
        "node conv cannot compute rows: the file does not tell the height and width of its images; leave it as it is, with "
        "rewrite.mode never"
    )
    with pytest.raises(ArtifactError) as caught:
        transform(model, {"conv": GroupCosts()})
    assert str(caught.value) == message


def test_a_convolution_is_read_with_its_mask() -> None:
    net = Network()
    keep = net.mask(8)
    node, _ = first_node(net.model(net.convolve("x", "conv", (3, 8), keep, auto_pad="SAME_LOWER", pads=None)))
    found = read_convolution(node)
    assert is_masked(node)
    assert found.pads == (1, 1, 1, 1)
    assert found.output.name == "conv.positions.out"
    np.testing.assert_array_equal(found.keep, keep)
    np.testing.assert_array_equal(found.constant, net.constants["conv.bias"])


def test_a_where_of_the_network_itself_is_no_mask() -> None:
    net = Network()
    model = net.model(net.convolve("x", "conv", (3, 8), net.mask(8)))
    del model.graph.node[1].metadata_props[:]
    node, _ = first_node(model)
    assert not is_masked(node)
    assert read_convolution(node).keep.all()
