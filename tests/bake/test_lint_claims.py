"""Annotations that the weights do not keep."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.graph import annotations as keys
from tests.bake.lint_models import layer_of, report_of
from tests.models.make_onnx import residual_masks, residual_pair, residual_weights

WEIGHT = "layer1.conv1.weight"


def tensor_of(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == WEIGHT)


def set_note(model: onnx.ModelProto, key: str, value: str) -> None:
    node = next(node for node in model.graph.node if node.name == "layer1.conv1")
    for part in (node, tensor_of(model)):
        next(entry for entry in part.metadata_props if entry.key == key).value = value


def nonzero_put_back(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(tensor_of(model)).copy()
    values[0, np.flatnonzero(values[0, :, 0, 0] == 0)[0], 0, 0] = 1
    tensor_of(model).raw_data = values.tobytes()


def mask_of_another_layer(model: onnx.ModelProto) -> None:
    keep = residual_masks().layers["layer1.conv2.weight"].keep
    tensor_of(model).raw_data = np.where(keep, residual_weights()[WEIGHT], np.float32(0)).tobytes()


def more_than_the_noted_density(model: onnx.ModelProto) -> None:
    set_note(model, keys.DENSITY, "0.25")


def another_digest(model: onnx.ModelProto) -> None:
    set_note(model, keys.MASK_SHA256, "0" * 64)


def unreadable_pattern(model: onnx.ModelProto) -> None:
    set_note(model, keys.PATTERN, "half")


def another_axis(model: onnx.ModelProto) -> None:
    set_note(model, keys.GROUP_AXIS, "0")


def stricter_pattern(model: onnx.ModelProto) -> None:
    set_note(model, keys.PATTERN, "1:4")


def pattern_that_does_not_divide(model: onnx.ModelProto) -> None:
    set_note(model, keys.PATTERN, "2:3")


def node_and_weight_disagree(model: onnx.ModelProto) -> None:
    next(entry for entry in tensor_of(model).metadata_props if entry.key == keys.PATTERN).value = "1:4"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (nonzero_put_back, "annotated 2:4, but 1 of 576 groups keep more than 2 weights (changed after baking?)"),
        (mask_of_another_layer, "2:4, but its nonzeros are not those of the mask it names (of another layer?)"),
        (more_than_the_noted_density, "annotated with density 0.25, but 0.5 of the weights are not zero"),
        (another_digest, "2:4, but its nonzeros are not those of the mask it names (of another layer?)"),
        (unreadable_pattern, "the annotation cannot be read (masksparse.pattern 'half', masksparse.group_axis '1'"),
        (another_axis, "annotated along axis 0, but the input channels lie on axis 1"),
        (stricter_pattern, "annotated 1:4, but 576 of 576 groups keep more than 1 weights"),
        (pattern_that_does_not_divide, "annotated 2:3, but 16 input channels: not a multiple of 3"),
        (node_and_weight_disagree, "the annotations of node and weight differ"),
    ],
)
def test_broken_claims(fault: Callable[[onnx.ModelProto], None], why: str) -> None:
    model = residual_pair()[1]
    fault(model)
    report = report_of(model)
    layer = layer_of(report, "layer1.conv1")
    assert layer.state == "broken claim"
    assert layer.why.startswith(why)
    assert not report.ok
    assert layer_of(report, "layer1.conv2").state == "conforming"


def test_weights_that_vanished_in_a_conversion_break_no_claim() -> None:
    model = residual_pair()[1]
    values = numpy_helper.to_array(tensor_of(model)).copy()
    values[tuple(np.argwhere(values != 0)[0])] = 0
    tensor_of(model).raw_data = values.tobytes()
    assert layer_of(report_of(model), "layer1.conv1").state == "conforming"


def test_annotations_that_a_tool_dropped() -> None:
    model = residual_pair()[1]
    for node in model.graph.node:
        del node.metadata_props[:]
    assert layer_of(report_of(model), "layer1.conv1").why.startswith("2:4;")
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    report = report_of(model)
    assert layer_of(report, "layer1.conv1").why.startswith("2:4, not annotated")
    assert report.ok
