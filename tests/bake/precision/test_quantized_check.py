"""The checker of INT8 files finds every planted fault."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.bake.precision.quantized_check import check_quantized
from masksparse_deploy.graph import annotations as keys
from tests.bake.precision.quantized_models import parsed, quantized_pair, stored
from tests.models.make_onnx import residual_masks, set_properties

LAYER = "layer1.conv1"
WEIGHT = f"{LAYER}.weight"


def copied(opset: int = 20) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(quantized_pair(opset)[1])
    # Types and shapes noted in the file would contradict some of the faults
    del model.graph.value_info[:]
    return model


def store(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    properties = {entry.key: entry.value for entry in tensor.metadata_props}
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    set_properties(tensor, properties)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def remove_pair(model: onnx.ModelProto, tensor: str) -> None:
    """Take the Q/DQ behind a tensor away."""
    for name in (f"{tensor}_QuantizeLinear", f"{tensor}_DequantizeLinear"):
        model.graph.node.remove(node(model, name))
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == f"{tensor}_dequantized":
                reader.input[index] = tensor


def a_zero_point_of_3(model: onnx.ModelProto) -> None:
    store(model, "layer1.relu1.out_zero_point", np.array(3, np.int8))


def a_zero_point_in_a_weight(model: onnx.ModelProto) -> None:
    points = np.zeros(16, np.int8)
    points[5] = 1
    store(model, f"{WEIGHT}_zero_point", points)


def no_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "layer1.relu1.out_DequantizeLinear").input[2]


def a_scale_of_zero(model: onnx.ModelProto) -> None:
    store(model, "layer1.relu1.out_scale", np.array(0, np.float32))


def an_infinite_scale(model: onnx.ModelProto) -> None:
    scales = stored(model, f"{WEIGHT}_scale").copy()
    scales[3] = np.inf
    store(model, f"{WEIGHT}_scale", scales)


def a_negative_scale(model: onnx.ModelProto) -> None:
    store(model, f"{WEIGHT}_scale", -stored(model, f"{WEIGHT}_scale"))


def one_scale_for_all_channels(model: onnx.ModelProto) -> None:
    store(model, f"{WEIGHT}_scale", np.array(0.01, np.float32))
    store(model, f"{WEIGHT}_zero_point", np.array(0, np.int8))


def scales_of_input_channels(model: onnx.ModelProto) -> None:
    dequantizer = node(model, f"{WEIGHT}_DequantizeLinear")
    del dequantizer.attribute[:]
    dequantizer.attribute.append(helper.make_attribute("axis", 1))


def a_masked_weight_of_1(model: onnx.ModelProto) -> None:
    levels = stored(model, WEIGHT).copy()
    dropped = np.argwhere(~residual_masks().layers[WEIGHT].keep)[0]
    levels[tuple(dropped)] = 1
    store(model, WEIGHT, levels)


def a_level_of_minus_128(model: onnx.ModelProto) -> None:
    levels = stored(model, WEIGHT).copy()
    levels[tuple(np.argwhere(levels)[0])] = -128
    store(model, WEIGHT, levels)


def a_weight_in_float(model: onnx.ModelProto) -> None:
    store(model, WEIGHT, stored(model, WEIGHT) * stored(model, f"{WEIGHT}_scale").reshape(-1, 1, 1, 1))
    model.graph.node.remove(node(model, f"{WEIGHT}_DequantizeLinear"))
    node(model, LAYER).input[1] = WEIGHT


def a_reason_that_is_not_true(model: onnx.ModelProto) -> None:
    node(model, LAYER).metadata_props.add(key=keys.FLOAT_REASON, value="excluded from quantization")


def another_layer_without_a_reason(model: onnx.ModelProto) -> None:
    set_properties(node(model, "fc"), {})


def a_pattern_that_does_not_fit(model: onnx.ModelProto) -> None:
    next(entry for entry in node(model, LAYER).metadata_props if entry.key == keys.GROUP_AXIS).value = "7"


FAULTS: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (a_zero_point_of_3, "layer1.relu1.out_QuantizeLinear: 1 zero points are not 0, as 3"),
    (a_zero_point_in_a_weight, f"{WEIGHT}_DequantizeLinear: 1 zero points are not 0, as 1"),
    (no_zero_point, "layer1.relu1.out_DequantizeLinear: the zero point is not a constant of INT8"),
    (a_scale_of_zero, "layer1.relu1.out_QuantizeLinear: a scale is not finite and above 0"),
    (an_infinite_scale, f"{WEIGHT}_DequantizeLinear: a scale is not finite and above 0"),
    (a_negative_scale, f"{WEIGHT}_DequantizeLinear: a scale is not finite and above 0"),
    (one_scale_for_all_channels, f"{LAYER}: its weight has scales () along axis 0, not one for each of 16 output channels"),
    (scales_of_input_channels, f"{LAYER}: its weight has scales (16,) along axis 1, not one for each of 16 output channels"),
    (a_masked_weight_of_1, f"{LAYER}: 1 weights that the mask drops are not the integer 0"),
    (a_masked_weight_of_1, f"{LAYER}: 1 of 576 groups keep more than 2 of 4 integers"),
    (a_level_of_minus_128, f"{LAYER}: its weight is not symmetric, INT8 between -127 and 127"),
    (a_weight_in_float, f"{LAYER}: its weight is in float, and {keys.FLOAT_REASON} does not say why"),
    (a_reason_that_is_not_true, f"{LAYER}: says that it stays in float, but its weight is quantized"),
    (another_layer_without_a_reason, "fc: no QuantizeLinear on its output logits; sparse INT8 kernels give INT8"),
    (a_pattern_that_does_not_fit, f"{LAYER}: {keys.PATTERN} and {keys.GROUP_AXIS} do not fit the weight (16, 16, 3, 3)"),
    (
        lambda model: remove_pair(model, "layer1.relu1.out"),
        f"{LAYER}: no QuantizeLinear on its output layer1.relu1.out; sparse INT8 kernels give INT8",
    ),
    (
        lambda model: remove_pair(model, "layer1.relu1.out"),
        "layer1.conv2: no QuantizeLinear and DequantizeLinear on its input",
    ),
]


@pytest.mark.parametrize(("plant", "expected"), FAULTS, ids=[str(index) for index in range(len(FAULTS))])
def test_planted_faults(plant: Callable[[onnx.ModelProto], None], expected: str) -> None:
    model = copied()
    plant(model)
    assert expected in check_quantized(parsed(model), residual_masks())


def test_a_zero_point_of_another_type() -> None:
    model = copied()
    store(model, "layer1.relu1.out_zero_point", np.array(0, np.uint8))
    # ONNX allows UINT8 between the two operators, TensorRT does not
    found = check_quantized(parsed(model))
    assert "layer1.relu1.out_QuantizeLinear: the zero point is not a constant of INT8" in found


def test_an_activation_with_several_scales() -> None:
    model = copied()
    for name in ("QuantizeLinear", "DequantizeLinear"):
        node(model, f"layer1.relu1.out_{name}").attribute.append(helper.make_attribute("axis", 1))
    store(model, "layer1.relu1.out_scale", np.full(16, 0.1, np.float32))
    store(model, "layer1.relu1.out_zero_point", np.zeros(16, np.int8))
    (finding,) = check_quantized(parsed(model), residual_masks())
    assert finding == "layer1.conv2: its input has 16 scales; TensorRT takes one for an activation"


def test_masks_without_a_weight() -> None:
    model = copied()
    for part in (*model.graph.initializer, *model.graph.node):
        if part.name == WEIGHT:
            part.name = "renamed"
        if isinstance(part, onnx.NodeProto):
            part.input[:] = ["renamed" if name == WEIGHT else name for name in part.input]
    (finding,) = check_quantized(parsed(model), residual_masks())
    assert finding == f"{WEIGHT}: the file has no convolution or matrix product with this weight"


def test_faults_of_weights_in_front_of_a_pair() -> None:
    model = copied(17)
    assert check_quantized(parsed(model), residual_masks()) == ()
    quantizer = node(model, f"{WEIGHT}_QuantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(stored(model, f"{WEIGHT}_scale") * 2, "other"))
    quantizer.input[1] = "other"
    assert f"{LAYER}: QuantizeLinear and DequantizeLinear of its weight differ" in check_quantized(parsed(model))

    model = copied(17)
    array = stored(model, WEIGHT).copy()
    scale = stored(model, f"{WEIGHT}_scale")
    first, second = np.argwhere(~residual_masks().layers[WEIGHT].keep)[:2]
    array[tuple(first)] = 0.4 * scale[first[0]]  # rounds to 0, and is sparse all the same
    store(model, WEIGHT, array)
    assert check_quantized(parsed(model), residual_masks()) == ()
    array[tuple(second)] = 0.6 * scale[second[0]]
    store(model, WEIGHT, array)
    assert f"{LAYER}: 1 weights that the mask drops are not the integer 0" in check_quantized(parsed(model), residual_masks())
