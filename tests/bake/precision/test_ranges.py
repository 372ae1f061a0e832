"""What FP16 and BF16 lose: every planted loss is found, and named where it begins."""

from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.precision.formats import float_format
from masksparse_deploy.bake.precision.ranges import check_ranges, measure_ranges
from masksparse_deploy.core.artifacts.baking import LayerRange
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.models.make_onnx import residual_pair

Array = npt.NDArray[Any]
Precision = Literal["fp16", "bf16"]

DTYPES: dict[Precision, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")


def images(count: int = 20) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8), dtype=np.float32)


def residual(opset: int = 22, **changes: Any) -> onnx.ModelProto:
    """The sparse network with the first weights of some constants replaced by given values."""
    model = residual_pair()[1]
    model.opset_import[0].version = opset
    for tensor in model.graph.initializer:
        values = changes.get(tensor.name.replace(".", "_"))
        if values is not None:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[: len(values)] = values
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def rows_by_name(rows: tuple[LayerRange, ...]) -> dict[tuple[str, str], LayerRange]:
    return {(row.node, row.weight): row for row in rows}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_limits_are_those_of_the_cast(precision: Precision) -> None:
    target, dtype = float_format(precision), DTYPES[precision]
    assert target.largest == float(ml_dtypes.finfo(dtype).max)
    limits = np.float32([target.infinite_from, target.zero_to])
    assert limits.astype(np.float64).tolist() == [target.infinite_from, target.zero_to]  # FP32 numbers
    around = np.concatenate([np.nextafter(limits, np.float32(0)), limits, np.nextafter(limits, np.float32(np.inf))])
    low = target.cast(around)
    np.testing.assert_array_equal(np.isinf(low.astype(np.float32)), [False, False, True, False, True, False])
    np.testing.assert_array_equal(low == 0, [False, True, False, True, False, False])
    np.testing.assert_array_equal(target.overflows(around), np.isinf(low.astype(np.float32)))
    np.testing.assert_array_equal(target.flushes(around), low == 0)


@given(value=st.floats(width=32, allow_nan=False), precision=st.sampled_from(PRECISIONS))
def test_counting_agrees_with_the_cast_everywhere(value: float, precision: Precision) -> None:
    target, array = float_format(precision), np.float32([value, -value])
    low = target.cast(array).astype(np.float32)
    limitless = np.abs(array) >= np.finfo(np.float32).max
    np.testing.assert_array_equal(target.overflows(array), np.isinf(low) & ~limitless)
    np.testing.assert_array_equal(target.flushes(array), (low == 0) & (array != 0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_harmless_network(precision: Precision) -> None:
    model = residual()
    rows = measure_ranges(model, precision, images())
    graph = parse_graph(model.SerializeToString(), name="fp32")
    layers = weighted_layers(graph)
    assert [(row.node, row.weight) for row in rows] == [(layer.node.name, layer.weight_name) for layer in layers]
    exact = evaluate(graph, images(), [layer.node.outputs[0] for layer in layers])
    for row, layer in zip(rows, layers, strict=True):
        assert row.weight_largest == np.abs(layer.weight).max()
        assert row.weight_nonzero_count == np.count_nonzero(layer.weight)
        assert (row.weight_overflow_count, row.weight_flushed_count) == (0, 0)
        # FP32 sums of at most 288 products: 288 * 2^-24
        assert row.output_largest == pytest.approx(np.abs(exact[layer.node.outputs[0]]).max(), rel=1e-4)
        assert (row.output_overflow_count, row.output_flushed_share) == (0, 0.0)
    assert check_ranges(rows, precision) == ()


def test_the_model_is_not_changed_and_counting_repeats() -> None:
    model = residual()
    before = model.SerializeToString(deterministic=True)
    assert measure_ranges(model, "fp16", images()) == measure_ranges(model, "fp16", images())
    assert model.SerializeToString(deterministic=True) == before


def test_a_weight_that_overflows_is_refused() -> None:
    model = residual(layer1_conv1_weight=[1e6, -7e4, 65519.0, 65520.0], fc_bias=[1e5])
    rows = rows_by_name(measure_ranges(model, "fp16"))
    layer, bias = rows["layer1.conv1", "layer1.conv1.weight"], rows["fc", "fc.bias"]
    assert (layer.weight_largest, layer.weight_overflow_count, layer.output_largest) == (1e6, 3, None)
    assert (bias.weight_largest, bias.weight_overflow_count, bias.output_largest) == (1e5, 1, None)
    message = (
        r"constants are beyond 65504, the largest number of FP16 \(layer1.conv1.weight of layer1.conv1: 3 values, the largest "
        r"1e\+06; fc.bias of fc: 1 values, the largest 100000\); use bf16, .*, or fp32, or scale these weights down"
    )
    with pytest.raises(UsageError, match=message):
        check_ranges(tuple(rows.values()), "fp16")
    assert check_ranges(measure_ranges(model, "bf16"), "bf16") == ()


def test_bf16_overflows_only_at_the_end_of_fp32() -> None:
    rows = measure_ranges(residual(fc_weight=[3.4e38]), "bf16")
    assert rows_by_name(rows)["fc", "fc.weight"].weight_overflow_count == 1
    with pytest.raises(UsageError, match=r"the largest number of BF16 \(fc.weight of fc: 1 values.*; use fp32, or scale"):
        check_ranges(rows, "bf16")


def test_weights_that_become_zero_are_counted_and_remarked_above_one_percent() -> None:
    few, many = residual(fc_weight=[1e-9] * 3), residual(fc_weight=[1e-9] * 4)
    assert rows_by_name(measure_ranges(few, "fp16"))["fc", "fc.weight"].weight_flushed_count == 3
    assert check_ranges(measure_ranges(few, "fp16"), "fp16") == ()  # 3 of 320 are less than 1 %
    assert check_ranges(measure_ranges(many, "fp16"), "fp16") == (
        "fc: 4 of the 320 values of fc.weight that are not zero become zero in FP16",
    )


def test_outputs_that_overflow_are_remarked_where_it_begins() -> None:
    # 36 weights near 65504 in one output channel: its sums are beyond, and those of the layers behind
    model = residual(layer1_conv1_weight=[6e4] * 36)
    rows = measure_ranges(model, "fp16", images())
    row = rows_by_name(rows)["layer1.conv1", "layer1.conv1.weight"]
    graph = parse_graph(model.SerializeToString(), name="fp32")
    outputs = evaluate(graph, images(), ["layer1.conv1.out"])["layer1.conv1.out"]
    # an output so close to the limit that FP32 sums fall on the other side would differ; these don't
    assert np.abs(np.abs(outputs) - 65520).min() > 1
    assert row.output_overflow_count == int((np.abs(outputs) >= 65520).sum()) > 0
    remarks = check_ranges(rows, "fp16")
    assert remarks[0].startswith(f"layer1.conv1: {row.output_overflow_count} outputs on the measured images are beyond 65504")
    # neither the ReLU nor the pooling behind is to blame
    assert all(entry.weight for entry in rows)


def elementwise(op: str, constant: Array, *, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        helper.make_node(op, ["x", "c"], ["a"], name="joint"),
        helper.make_node("Relu", ["a"], ["b"], name="after"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="layer"),
    ]
    constants = {"c": constant, "w": np.eye(4, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("opset", [11, 17, 22])
def test_operators_without_weights_have_a_row_where_they_lose(opset: int) -> None:
    batch = np.float32([[0, 1, 200, -300]] * 3)
    rows = measure_ranges(elementwise("Mul", np.float32([1, 1, 400, 400]), opset=opset), "fp16", batch)
    assert [(row.node, row.weight) for row in rows] == [("joint", ""), ("layer", "w")]
    assert (rows[0].output_largest, rows[0].output_overflow_count, rows[0].output_flushed_share) == (120000.0, 6, 0.0)
    assert rows[1].output_overflow_count == 3  # the ReLU has cut off the others
    small = measure_ranges(elementwise("Mul", np.float32([1, 1e-9, 1, 1]), opset=opset), "fp16", batch)
    assert [row.node for row in small] == ["joint", "joint", "layer"]
    assert (small[0].weight, small[0].weight_flushed_count, small[0].output_largest) == ("c", 1, None)
    assert small[1].output_flushed_share == 1 / 3  # of three outputs that are not zero
    assert "joint: 33.3% of the outputs that are not zero become zero in FP16" in check_ranges(small, "fp16")


def test_images_that_overflow_have_a_row_of_their_own() -> None:
    rows = measure_ranges(elementwise("Mul", np.float32([1e-4] * 4)), "fp16", np.float32([[1e5, 1, 1, 1]]))
    assert [(row.node, row.output_overflow_count) for row in rows] == [("x", 1), ("layer", 0)]


def test_no_limit_written_as_the_largest_number_is_no_overflow() -> None:
    rows = measure_ranges(elementwise("Min", np.full(4, np.finfo(np.float32).max)), "fp16", np.ones((1, 4), np.float32))
    assert check_ranges(rows, "fp16") == ()


def test_a_batch_size_fixed_in_the_file() -> None:
    model = residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    seen: list[tuple[int, int]] = []
    free = measure_ranges(residual(), "fp16", images())
    fixed = measure_ranges(model, "fp16", images(), lambda what, done, total: seen.append((done, total)))
    assert seen == [(0, 20), (8, 20), (16, 20), (20, 20)]
    assert [row.output_largest for row in fixed] == pytest.approx([row.output_largest for row in free], rel=1e-4)
    with pytest.raises(UsageError, match="5 images are fewer than a batch of 8"):
        measure_ranges(model, "fp16", images(5))


def test_images_that_do_not_fit_and_values_that_are_not_finite() -> None:
    with pytest.raises(UsageError, match=r"images have the shape \(2, 4\)"):
        measure_ranges(residual(), "fp16", np.ones((2, 4), np.float32))
    with pytest.raises(UsageError, match=r"tensor stem.out has \d+ values that are not finite"):
        measure_ranges(residual(), "fp16", np.full((2, 3, 8, 8), 3e38, np.float32))


def test_a_model_that_the_runtime_lacks_an_operator_for() -> None:
    model = elementwise("Plugin", np.ones(4, np.float32))
    model.graph.node[0].domain = "vendor"
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]))
    assert [row.node for row in measure_ranges(model, "fp16")] == ["layer"]
    with pytest.raises(UsageError, match=r"cannot be run by ONNX Runtime to measure its ranges \(.*Plugin.*; bake without"):
        measure_ranges(model, "fp16", np.ones((1, 4), np.float32))


def test_a_quantized_weight_is_not_cast_but_its_scales_are() -> None:
    model = elementwise("Mul", np.ones(4, np.float32))
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.eye(4, dtype=np.int8), "stored"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e-9), "scale"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"], name="dequantize"))
    rows = rows_by_name(measure_ranges(model, "fp16"))
    assert rows["dequantize", "scale"].weight_flushed_count == 1
    assert (rows["layer", "stored"].weight_flushed_count, rows["layer", "stored"].weight_nonzero_count) == (0, 4)
