"""The check of the rows form finds whatever is planted into it, and nothing where nothing is wrong."""

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.rewrite.rows.grouping import GroupCosts
from tests.rewrite.rows.models import ONLY_PRODUCTS, Network, findings, in_rows, residual_network

LAYERS = ("a.conv1", "a.conv2", "b.conv1", "b.conv2")
SPARSE = residual_network()


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def nodes(model: onnx.ModelProto, op: str, text: str = "") -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if node.op_type == op and text in node.name)


def change(model: onnx.ModelProto, name: str, by: Callable[[npt.NDArray[np.generic]], None]) -> None:
    tensor = constants(model)[name]
    array = np.array(numpy_helper.to_array(tensor))
    by(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def another_row(model: onnx.ModelProto) -> None:
    def swap(indices: npt.NDArray[np.generic]) -> None:
        different = np.flatnonzero(indices != indices[0])[0]
        indices[0] = indices[different]

    node = next(nodes(model, "Gather", "a.conv2"))
    change(model, node.input[1], swap)


def rows_that_are_no_integers(model: onnx.ModelProto) -> None:
    next(nodes(model, "Gather", "a.conv2")).input[1] = "stem.bias"


def another_order(model: onnx.ModelProto) -> None:
    def swap(indices: npt.NDArray[np.generic]) -> None:
        indices[[0, -1]] = indices[[-1, 0]]

    change(model, next(nodes(model, "Gather", "in_memory_order")).input[1], swap)


def one_bit_of_a_weight(model: onnx.ModelProto) -> None:
    def flip(weight: npt.NDArray[np.generic]) -> None:
        weight.reshape(-1).view(np.uint32)[3] ^= 1

    change(model, next(node for op in ("Gemm", "MatMul") for node in nodes(model, op, "b.conv1")).input[1], flip)


def a_bias(model: onnx.ModelProto) -> None:
    def grow(bias: npt.NDArray[np.generic]) -> None:
        bias[np.abs(bias).argmax()] *= 1 + 2.0**-20

    change(model, next(nodes(model, "Gemm", "a.conv1")).input[2], grow)


def constants_left_out_of_a_bias(model: onnx.ModelProto) -> None:
    """As if taps of masked positions were simply skipped: the bias of the layer, or none in further segments."""
    plain = numpy_helper.to_array(constants(SPARSE)["a.conv2.bias"])
    for node in nodes(model, "Gemm", "a.conv2"):
        bias = numpy_helper.to_array(constants(model)[node.input[2]])
        if bias.any() and not np.array_equal(bias, plain):
            change(model, node.input[2], lambda array: array.fill(0))
            return
    raise AssertionError("no group leaves constants out")


def the_constant_row(model: onnx.ModelProto) -> None:
    def shift(rows: npt.NDArray[np.generic]) -> None:
        rows[0, -2, 0] += np.float32(0.01)

    change(model, next(nodes(model, "Expand", "a.conv1")).input[0], shift)


def the_row_of_zeros(model: onnx.ModelProto) -> None:
    def shift(rows: npt.NDArray[np.generic]) -> None:
        rows[0, -1, 0] = np.float32(0.01)

    change(model, next(nodes(model, "Expand", "a.conv1")).input[0], shift)


def parts_in_another_order(model: onnx.ModelProto) -> None:
    node = next(node for node in nodes(model, "Concat", "a.conv2") if len(node.input) > 2)
    node.input[0], node.input[1] = node.input[1], node.input[0]


def no_activation(model: onnx.ModelProto) -> None:
    node = next(nodes(model, "Relu", "a.conv1"))
    node.op_type = "Identity"


def a_product_added_twice(model: onnx.ModelProto) -> None:
    first, second = itertools.islice(nodes(model, "ScatterND", "a.conv2"), 2)
    second.input[2], second.input[1] = first.input[2], first.input[1]


def a_product_left_out(model: onnx.ModelProto) -> None:
    first, second = itertools.islice(nodes(model, "ScatterND", "a.conv2"), 2)
    second.input[0] = first.input[0]


def a_product_in_place_of_what_was_there(model: onnx.ModelProto) -> None:
    del next(nodes(model, "ScatterND", "a.conv2")).attribute[:]


def a_product_added_to_another_row(model: onnx.ModelProto) -> None:
    def swap(places: npt.NDArray[np.generic]) -> None:
        places[:, [0, 1]] = places[:, [1, 0]]

    change(model, next(nodes(model, "Add", "a.conv2")).input[0], swap)


def two_products_added_to_one_row(model: onnx.ModelProto) -> None:
    def repeat(places: npt.NDArray[np.generic]) -> None:
        places[:, 0] = places[:, 1]

    change(model, next(nodes(model, "Add", "a.conv2")).input[0], repeat)


def a_product_added_to_rows_of_another_sample(model: onnx.ModelProto) -> None:
    def shift(step: npt.NDArray[np.generic]) -> None:
        step.fill(step.item() + 1)

    change(model, next(nodes(model, "Range")).input[2], shift)


def samples_that_start_at_another_row(model: onnx.ModelProto) -> None:
    def shift(start: npt.NDArray[np.generic]) -> None:
        start.fill(start.item() + 1)

    change(model, next(nodes(model, "Range")).input[0], shift)


def what_is_left_out_of_sums(model: onnx.ModelProto) -> None:
    def grow(rows: npt.NDArray[np.generic]) -> None:
        rows[0, 0, np.abs(rows[0, 0]).argmax()] *= 1 + 2.0**-20

    change(model, next(nodes(model, "Expand", "a.conv2.start")).input[0], grow)


def a_scaled_product(model: onnx.ModelProto) -> None:
    next(nodes(model, "Gemm", "a.conv1")).attribute.add(name="alpha", f=2.0, type=onnx.AttributeProto.FLOAT)


def rows_of_one_sample_for_all(model: onnx.ModelProto) -> None:
    """The constant rows are not repeated for every sample, so that a batch of two could not be computed."""
    node = next(nodes(model, "Expand"))
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[index] = node.input[0]


# Groups as in small networks, with the taps that are left out of all windows, and with every tap by itself.
PLAIN = GroupCosts()
WHOLE = GroupCosts(rows_of_weights=0, operators=0, gathered=0, added=1e9)
FAULTS = (
    (another_row, PLAIN),
    (rows_that_are_no_integers, PLAIN),
    (another_order, PLAIN),
    (one_bit_of_a_weight, PLAIN),
    (one_bit_of_a_weight, ONLY_PRODUCTS),
    (a_bias, PLAIN),
    (constants_left_out_of_a_bias, WHOLE),
    (the_constant_row, PLAIN),
    (the_row_of_zeros, PLAIN),
    (parts_in_another_order, WHOLE),
    (no_activation, ONLY_PRODUCTS),
    (no_activation, WHOLE),
    (a_product_added_twice, ONLY_PRODUCTS),
    (a_product_left_out, ONLY_PRODUCTS),
    (a_product_in_place_of_what_was_there, ONLY_PRODUCTS),
    (a_product_added_to_another_row, ONLY_PRODUCTS),
    (two_products_added_to_one_row, ONLY_PRODUCTS),
    (a_product_added_to_rows_of_another_sample, ONLY_PRODUCTS),
    (samples_that_start_at_another_row, ONLY_PRODUCTS),
    (what_is_left_out_of_sums, ONLY_PRODUCTS),
    (a_scaled_product, WHOLE),
    (rows_of_one_sample_for_all, PLAIN),
)


@functools.cache
def rewritten(costs: GroupCosts) -> bytes:
    return bytes(in_rows(SPARSE, LAYERS, costs).SerializeToString())


@pytest.mark.parametrize("costs", [PLAIN, WHOLE, ONLY_PRODUCTS])
def test_nothing_is_found_where_nothing_is_wrong(costs: GroupCosts) -> None:
    assert findings(SPARSE, onnx.load_model_from_string(rewritten(costs))) == ()


@pytest.mark.parametrize(("plant", "costs"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_a_planted_fault_is_found(plant: Callable[[onnx.ModelProto], None], costs: GroupCosts) -> None:
    forged = onnx.load_model_from_string(rewritten(costs))
    plant(forged)
    assert findings(SPARSE, forged)


def test_the_mask_of_another_network_is_found() -> None:
    """Same weights, another mask of the last layer."""
    other = onnx.ModelProto()
    other.CopyFrom(SPARSE)

    def drop_another(keep: npt.NDArray[np.generic]) -> None:
        keep[0, 0, 0, 0] = False
        keep[0, 0, -1, -1] = True

    change(other, "b.conv2.keep", drop_another)
    (told,) = findings(other, onnx.load_model_from_string(rewritten(PLAIN)))
    assert told == ("b.relu2.out is not what the sparse file computes in 2 of 16 positions, the first at row 0 and column 0")


def test_another_value_of_dropped_positions_is_found() -> None:
    other = onnx.ModelProto()
    other.CopyFrom(SPARSE)
    change(other, "b.conv2.dropped", lambda values: values.fill(0))
    (told,) = findings(other, onnx.load_model_from_string(rewritten(PLAIN)))
    assert told.startswith("b.relu2.out is not what the sparse file computes in ")


@pytest.mark.parametrize("op", ["Add", "Mul", "PRelu", "Sub"])
@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_a_constant_along_height_or_width_is_not_taken_for_one_of_channels(op: str, shape: tuple[int, ...]) -> None:
    def network(shape: tuple[int, ...]) -> onnx.ModelProto:
        net = Network(channels=8)
        keep = net.mask(8)
        values = np.linspace(-1, 1, 8, dtype=np.float32).reshape(shape)
        x = net.convolve("x", "first", (8, 8), keep)
        return net.model(net.convolve(net.add(op, [x, net.constant("k", values)], "op"), "second", (8, 8), keep))

    layers = ("first", "second")
    assert findings(network(shape), in_rows(network(shape), layers)) == ()
    found = findings(network(shape), in_rows(network((8, 1, 1)), layers))
    assert any("second.positions.out is not what the sparse file computes" in line for line in found)


def test_an_output_in_rows_is_no_constant() -> None:
    net = Network()
    keep = net.mask(8)
    x = net.add("Relu", [net.convolve("x", "first", (3, 8), keep)], "relu")
    sparse = net.model(net.convolve(x, "second", (8, 8), keep))
    sparse.graph.output.append(next(value for value in sparse.graph.value_info if value.name == x))
    model = in_rows(sparse, ("first", "second"))
    assert findings(sparse, model) == ()
    model.graph.node.remove(next(node for node in model.graph.node if x in node.output))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 8, 8, 8), np.float32), x))
    assert f"{x}, an output or what a body reads, is not the sparse file's constant" in findings(sparse, model)


def test_faults_in_sums_of_a_fixed_batch_are_found() -> None:
    """Numbers of rows are stored for every sample there, and what the sums begin with is, too."""
    sparse = residual_network(batch=2)
    model = in_rows(sparse, LAYERS, ONLY_PRODUCTS)
    assert findings(sparse, model) == ()
    node = next(nodes(model, "ScatterND", "a.conv2"))

    def of_another_sample(array: npt.NDArray[np.generic]) -> None:
        array[1, 0] += 1

    def of_one_sample(array: npt.NDArray[np.generic]) -> None:
        array[-3, 0] += np.float32(0.01)

    for name, fault in ((node.input[1], of_another_sample), (node.input[0], of_one_sample)):
        forged = onnx.load_model_from_string(model.SerializeToString())
        change(forged, name, fault)
        assert findings(sparse, forged)
