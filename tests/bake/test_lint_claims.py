"""Annotations that the weights do not keep."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
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


# The others are annotations that cannot be compared with any weights.
DRIFTS = (
    nonzero_put_back,
    mask_of_another_layer,
    more_than_the_noted_density,
    another_digest,
    stricter_pattern,
    pattern_that_does_not_divide,
)


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
    assert bool(layer.drift) == (fault in DRIFTS)
    assert not report.ok
    assert layer_of(report, "layer1.conv2").state == "conforming"


def test_a_baked_file_has_not_drifted() -> None:
    assert {layer.drift for layer in report_of(residual_pair()[1]).layers} == {()}


def test_drift_says_what_changed() -> None:
    model = residual_pair()[1]
    nonzero_put_back(model)
    digest = residual_masks().layers[WEIGHT].digest
    assert layer_of(report_of(model), "layer1.conv1").drift == (
        "1 of 576 groups keep more than 2 weights",
        "1 nonzeros put back: density 0.5004, noted 0.5",
    )
    model = residual_pair()[1]
    mask_of_another_layer(model)
    (drift,) = layer_of(report_of(model), "layer1.conv1").drift
    assert drift.startswith("the mask is ")
    assert drift.endswith(f", noted {digest[:12]}...")


def test_weights_that_vanished_in_a_conversion_break_no_claim() -> None:
    model = residual_pair()[1]
    values = numpy_helper.to_array(tensor_of(model)).copy()
    values[tuple(np.argwhere(values != 0)[0])] = 0
    tensor_of(model).raw_data = values.tobytes()
    report = report_of(model)
    assert layer_of(report, "layer1.conv1").state == "conforming"
    assert layer_of(report, "layer1.conv1").drift == ("1 nonzeros lost: density 0.4996, noted 0.5",)
    assert report.ok


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
    assert "the file was baked, but its layers have lost their annotations (dropped by a later tool?)" in report.remarks


def clear_notes(model: onnx.ModelProto) -> None:
    for part in (*model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]


def sparse_file_made_dense(model: onnx.ModelProto) -> None:
    clear_notes(model)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.ones(tuple(tensor.dims), np.float32), tensor.name))


def called_dense(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == keys.ROLE).value = keys.ROLE_DENSE


def annotation_without_a_weight(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.name = "relu"
    relu.metadata_props.add(key=keys.PATTERN, value="2:4")


def annotated_weight_that_no_layer_reads(model: onnx.ModelProto) -> None:
    copy = model.graph.initializer.add()
    copy.CopyFrom(tensor_of(model))
    copy.name = "copy"


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (sparse_file_made_dense, "the file says masksparse.role sparse, but no layer is annotated with a pattern, or has one"),
        (called_dense, "the file says masksparse.role dense, but layer1.conv1 is annotated with a pattern"),
        (annotation_without_a_weight, "node relu is annotated with a pattern, but has no weight"),
        (annotated_weight_that_no_layer_reads, "copy is annotated with a pattern, but no layer multiplies by it (moved"),
    ],
)
def test_claims_of_the_file_that_do_not_hold(fault: Callable[[onnx.ModelProto], None], finding: str) -> None:
    model = residual_pair()[1]
    assert report_of(model).findings == ()
    fault(model)
    report = report_of(model)
    (found,) = report.findings
    assert found.startswith(finding)
    assert not report.ok


def test_a_claim_about_a_weight_that_is_not_read() -> None:
    model = residual_pair()[1]
    node = next(node for node in model.graph.node if node.name == "layer1.conv1")
    doubling = onnx.helper.make_node("Add", [WEIGHT, WEIGHT], ["doubled"], name="doubling")
    node.input[1] = "doubled"
    model.graph.node.insert(0, doubling)
    report = report_of(model)
    layer = layer_of(report, "layer1.conv1")
    assert layer.state == "broken claim"
    assert layer.why == "annotated, but the weight is computed while the network runs: not read"
    assert not report.ok


def test_an_annotation_behind_a_transposition_is_along_the_stored_axis() -> None:
    model = residual_pair()[1]
    node = next(node for node in model.graph.node if node.name == "layer1.conv1")
    tensor = tensor_of(model)
    turned = np.ascontiguousarray(numpy_helper.to_array(tensor).transpose(1, 0, 2, 3))
    tensor.raw_data = turned.tobytes()
    model.graph.node.insert(0, onnx.helper.make_node("Transpose", [WEIGHT], ["turned"], name="turn", perm=[1, 0, 2, 3]))
    node = next(node for node in model.graph.node if node.name == "layer1.conv1")
    node.input[1] = "turned"
    assert layer_of(report_of(model), "layer1.conv1").why.startswith(
        "annotated along axis 1, but the input channels lie on axis 0"
    )
    set_note(model, keys.GROUP_AXIS, "0")
    keep = residual_masks().layers[WEIGHT].keep.transpose(1, 0, 2, 3)
    mask = LayerMask(weight_name=WEIGHT, keep=keep, group_axis=0, pattern=NMPattern(n=2, m=4))
    set_note(model, keys.MASK_SHA256, mask.digest)
    layer = layer_of(report_of(model), "layer1.conv1")
    assert (layer.state, layer.drift) == ("conforming", ())
