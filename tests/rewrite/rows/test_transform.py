"""Convolutions in the form of rows compute what they computed, at every batch, whatever surrounds them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from masksparse_deploy.rewrite.rows.grouping import WHOLE_WINDOWS, GroupCosts
from tests.rewrite.rows.models import ONLY_PRODUCTS, Network, findings, in_rows, residual_network

Array = npt.NDArray[Any]


def outputs(model: onnx.ModelProto, images: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": images})
    return np.asarray(result)


def assert_same(model: onnx.ModelProto, layers: Sequence[str], count: int = 3) -> onnx.ModelProto:
    """The same outputs but for the order of sums, whichever groups are chosen; returns the file with those of large networks.

    Sums of at most 145 float32 terms differ by 2 * 145 * 2^-24 of their magnitudes, layer by layer; the networks here have at
    most five layers and gains such that 20 times the largest output is above all magnitudes together.
    """
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(5).standard_normal((count, *shape[1:]), dtype=np.float32)
    expected = outputs(model, images)
    for costs in (GroupCosts(), ONLY_PRODUCTS):
        rewritten = in_rows(model, layers, costs)
        found = outputs(rewritten, images)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=5 * 2 * 145 * 2.0**-24 * 20 * np.abs(expected).max())
        assert findings(model, rewritten) == ()
    return rewritten


def convolutions(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("density", [0.3, 0.9])
def test_a_residual_network_is_the_same_function_at_any_batch(count: int, density: float) -> None:
    model = residual_network(density=density)
    rewritten = assert_same(model, [name for name in convolutions(model) if name[0] in "ab" and "conv" in name], count)
    # the stem alone; the convolution of the shortcut lies between rows and is computed there
    assert convolutions(rewritten) == ["stem"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_the_file_fixes_is_kept(batch: int) -> None:
    model = residual_network(batch=batch)
    rewritten = assert_same(model, ["a.conv1", "a.conv2"], batch)
    assert "Expand" not in {node.op_type for node in rewritten.graph.node}


@pytest.mark.parametrize("batch", ["batch", 2])
def test_images_that_a_network_takes_apart_are_more_than_it_reads(batch: int | str) -> None:
    net = Network(batch=batch)
    keep = net.mask(4)
    parts = net.add("Reshape", ["x", net.constant("shape", np.array([-1, 3, 4, 4]))], "parts")
    x = net.add("Relu", [net.convolve(parts, "first", (3, 8), keep)], "relu")
    assert_same(net.model(net.convolve(x, "second", (8, 8), keep)), ["first", "second"], 2)


CHAINS: dict[str, Sequence[tuple[str, dict[str, Any], Sequence[Any]]]] = {
    "scale, shift and activation": [("Mul", {}, ["each"]), ("Add", {}, ["each"]), ("Relu", {}, [])],
    "two slopes": [("PRelu", {}, ["each"]), ("LeakyRelu", {"alpha": 0.3}, [])],
    "scales": [("Mul", {}, ["each"]), ("Mul", {}, ["each"]), ("Neg", {}, []), ("PRelu", {}, ["each"])],
    "bounds": [("Sub", {}, ["each"]), ("Clip", {}, [np.float32(-0.1), np.float32(6)]), ("Abs", {}, [])],
    "a curve": [("Add", {}, ["each"]), ("Sigmoid", {}, []), ("Mul", {}, ["each"])],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_several_operators_between_masked_layers(chain: Sequence[tuple[str, dict[str, Any], Sequence[Any]]]) -> None:
    """What masked positions hold is rounded at each of them, here and in the runtime."""
    net = Network()
    keep = net.mask(8)
    x = net.convolve("x", "first", (3, 8), keep)
    for index, (op, attributes, operands) in enumerate(chain):
        each = net.random.standard_normal((8, 1, 1)).astype(np.float32)
        constants = [each if isinstance(operand, str) else operand for operand in operands]
        names = [net.constant(f"k{index}.{place}", value) for place, value in enumerate(constants)]
        x = net.add(op, [x, *names], f"op{index}", **attributes)
    assert_same(net.model(net.convolve(x, "second", (8, 8), keep)), ["first", "second"])


@pytest.mark.parametrize("opset", [13, 15, 17])
def test_operators_of_older_files_are_enough(opset: int) -> None:
    """Before 16 nothing can be added to rows, so that windows are multiplied as a whole."""
    model = residual_network()
    model.opset_import[0].version = opset
    rewritten = assert_same(model, ["a.conv1", "a.conv2"], 2)
    assert ("ScatterND" in {node.op_type for node in rewritten.graph.node}) == (opset >= 16)


def test_a_file_may_be_rewritten_for_samples_that_are_many() -> None:
    """Rows of later samples are reached where products are added, whether the file fixes the batch or not."""
    for batch in (5, "batch"):
        model = residual_network(batch=batch)
        rewritten = assert_same(model, ["a.conv1", "a.conv2", "b.conv1", "b.conv2"], 5)
        assert "ScatterND" in {node.op_type for node in rewritten.graph.node}


def test_a_layer_that_nobody_reads_is_left_out() -> None:
    net = Network()
    keep = net.mask(8)
    x = net.convolve("x", "first", (3, 8), keep)
    net.convolve(x, "unread", (8, 8), keep)
    rewritten = assert_same(net.model(net.convolve(x, "second", (8, 8), keep)), ["first", "second", "unread"])
    assert not any(node.name.startswith("unread") and node.op_type == "Conv" for node in rewritten.graph.node)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_taps_that_read_constants_alone_need_no_product(batch: int | str) -> None:
    """In a file of a fixed batch what they add up to is stored."""
    net = Network(batch=batch)
    keep = np.zeros((8, 8))
    keep[3, 3] = 1
    x = net.add("Relu", [net.convolve("x", "first", (3, 8), keep)], "relu")
    count = batch if isinstance(batch, int) else 3
    assert_same(net.model(net.convolve(x, "second", (8, 8), keep)), ["first", "second"], count)


def test_a_network_may_have_several_inputs() -> None:
    net = Network()
    keep = net.mask(8)
    x = net.convolve(net.add("Mul", ["x", "scale"], "scaled"), "first", (3, 8), keep)
    output = net.convolve(net.add("Relu", [x], "relu"), "second", (8, 8), keep)
    net.constant("scale", np.ones((1, 1, 1, 1), np.float32))
    model = net.model(output)
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("scale")]
    model.graph.input.insert(0, onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [1, 1, 1, 1]))
    rewritten = in_rows(model, ["first", "second"])
    assert findings(model, rewritten) == ()
    inputs = {"x": np.ones((2, 3, 8, 8), np.float32), "scale": np.ones((1, 1, 1, 1), np.float32)}
    sessions = (
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]) for one in (model, rewritten)
    )
    expected, found = (session.run(None, inputs)[0] for session in sessions)
    # two layers of at most 73 terms, as in `assert_same`
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * 2 * 73 * 2.0**-24 * 20 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        pytest.param({"strides": [2, 2]}, (4, 4), id="stride"),
        pytest.param({"strides": [2, 1], "pads": [0, 1, 1, 2]}, (4, 9), id="unequal strides and padding"),
        pytest.param({"dilations": [2, 2], "pads": [2, 2, 2, 2]}, (8, 8), id="dilation"),
        pytest.param({"auto_pad": "SAME_UPPER", "pads": None, "strides": [2, 2]}, (4, 4), id="automatic padding"),
        pytest.param({"pads": None}, (6, 6), id="no padding"),
        pytest.param({"kernel_shape": [1, 1], "pads": None}, (8, 8), id="1x1"),
        pytest.param({"kernel_shape": [5, 2], "pads": [2, 0, 2, 1]}, (8, 8), id="5x2"),
        pytest.param({"bias": False}, (8, 8), id="no bias"),
        pytest.param({"pads": [4, 4, 4, 4]}, (14, 14), id="windows outside the image"),
    ],
)
def test_every_geometry_is_the_same_function(attributes: dict[str, Any], size: tuple[int, int]) -> None:
    """Behind a masked layer, so that windows reach masked positions too."""
    net = Network()
    x = net.add("Relu", [net.convolve("x", "first", (3, 8), net.mask(8))], "relu")
    model = net.model(net.convolve(x, "second", (8, 6), net.mask(*size), **attributes))
    assert_same(model, ["first", "second"])


@pytest.mark.parametrize(
    ("op", "attributes", "operands"),
    [
        ("Relu", {}, ()),
        ("LeakyRelu", {"alpha": 0.1}, ()),
        ("Clip", {}, (np.float32(0), np.float32(0.5))),
        ("Clip", {}, (np.float32(0.1), np.float32(0.5))),
        ("PRelu", {}, (np.linspace(-0.5, 0.5, 8, dtype=np.float32).reshape(8, 1, 1),)),
        ("Sigmoid", {}, ()),
        ("HardSwish", {}, ()),
        ("Neg", {}, ()),
        ("Add", {}, (np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8, 1, 1),)),
        ("Mul", {}, (np.float32(3),)),
        ("Sub", {}, (np.full((1, 1, 1, 1), 0.25, dtype=np.float32),)),
    ],
)
def test_elementwise_operators_stay_in_rows(op: str, attributes: dict[str, Any], operands: tuple[Any, ...]) -> None:
    net = Network()
    x = net.convolve("x", "first", (3, 8), net.mask(8))
    x = net.add(op, [x, *(net.constant(f"operand{index}", one) for index, one in enumerate(operands))], "act", **attributes)
    model = net.model(net.convolve(x, "second", (8, 6), net.mask(8)))
    rewritten = assert_same(model, ["first", "second"])
    # images to rows before the first, rows to images behind the second
    assert [node.op_type for node in rewritten.graph.node].count("Transpose") == 2


def test_a_relu_follows_right_behind_products() -> None:
    """Where nothing else reads what it reads; runtimes make one operator of both."""
    model = residual_network()
    rewritten = in_rows(model, ["a.conv1", "a.conv2", "b.conv1", "b.conv2"], WHOLE_WINDOWS)
    producers = {name: node.op_type for node in rewritten.graph.node for name in node.output}
    read = {node.name: producers[node.input[0]] for node in rewritten.graph.node if node.op_type == "Relu"}
    assert read == {
        "stem.relu": "Conv",
        "a.conv1.0.relu": "Gemm",
        "a.relu2.rows": "Add",
        "b.conv1.0.relu": "Gemm",
        "b.relu2.rows": "Add",
    }


def test_what_is_read_before_its_relu_too_is_computed_once() -> None:
    net = Network()
    x = net.convolve("x", "first", (3, 8), net.mask(8))
    relu = net.add("Relu", [x], "relu")
    model = net.model(net.convolve(net.add("Add", [x, relu], "add"), "second", (8, 8), net.mask(8)))
    assert_same(model, ["first", "second"])


def test_a_relu_that_is_an_output_is_one() -> None:
    net = Network()
    keep = net.mask(8)
    x = net.add("Relu", [net.convolve("x", "first", (3, 8), keep)], "relu")
    model = net.model(net.add("Relu", [net.convolve(x, "second", (8, 8), keep)], "last"))
    assert_same(model, ["first", "second"])


def test_sums_of_masked_layers_and_of_a_tensor_with_itself() -> None:
    net = Network()
    x = net.add("Relu", [net.convolve("x", "stem", (3, 8))], "relu")
    branches = [net.convolve(x, name, (8, 8), net.mask(8)) for name in ("left", "right")]
    gate = net.add("Sigmoid", [net.add("Add", branches, "add")], "gate")
    model = net.model(net.convolve(net.add("Mul", [gate, gate], "square"), "last", (8, 4), net.mask(8)))
    assert_same(model, ["left", "right", "last"])


def test_what_is_read_as_images_too_is_handed_over_under_its_name() -> None:
    net = Network()
    x = net.add("Relu", [net.convolve("x", "first", (3, 8), net.mask(8))], "relu")
    pooled = net.add("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = net.convolve(x, "second", (8, 8), net.mask(4), strides=[2, 2])
    model = net.model(net.add("Concat", [pooled, y], "joined", axis=1))
    rewritten = assert_same(model, ["first", "second"])
    assert {"relu.out", "second.positions.out"} <= {name for node in rewritten.graph.node for name in node.output}


def test_layers_that_are_not_named_stay_as_they_are() -> None:
    model = residual_network()
    rewritten = assert_same(model, ["b.conv1"])
    assert [name for name in convolutions(rewritten) if name in convolutions(model)] == [
        "stem",
        "a.conv1",
        "a.conv2",
        "b.conv2",
        "b.shortcut",
    ]


def test_a_mask_that_drops_nothing_and_one_that_keeps_a_single_position() -> None:
    net = Network()
    one = np.zeros((8, 8), dtype=np.bool_)
    one[3, 4] = True
    x = net.add("Relu", [net.convolve("x", "first", (3, 8), one)], "relu")
    model = net.model(net.convolve(x, "second", (8, 6), np.ones((8, 8), dtype=np.bool_)))
    assert_same(model, ["first", "second"])


def test_no_constants_of_the_dense_form_are_left_over() -> None:
    model = residual_network()
    rewritten = in_rows(model, ["a.conv1", "a.conv2"])
    read = {name for node in rewritten.graph.node for name in node.input}
    assert {tensor.name for tensor in rewritten.graph.initializer} <= read
