"""What a file with padded channels says of itself, and who checks it."""

from typing import Literal

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from masksparse_deploy.bake.annotate import Annotate
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import check_conformity
from masksparse_deploy.bake.convert import convert
from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.bake.pad import pad_channels, padded_weights
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph
from tests.bake.pad_models import IMAGES, chain, masks_for


def test_masks_of_the_padded_file_conform_and_are_noted() -> None:
    model = chain()
    masks = masks_for(model, ["a", "b"])
    ir_model = ir.from_proto(model.proto())
    result = pad_channels(ir_model, masks)
    Annotate(result.masks)(ApplyMasks(result.masks)(ir_model))
    graph = parse_graph(ir.to_proto(ir_model).SerializeToString(), name="padded")
    conformity = check_conformity(graph, result.masks)
    assert conformity.findings == ()
    assert {layer.weight_name: layer.shape for layer in conformity.layers} == {
        "a.weight": (12, 8, 3, 3),
        "b.weight": (7, 12, 3, 3),
    }
    assert graph.metadata[keys.MASK_SET_SHA256] == masks.digest
    notes = {node.name: node.metadata for node in graph.nodes}
    assert notes["a"][keys.MASK_SHA256] == result.masks.layers["a.weight"].digest
    assert notes["a"][keys.UNPADDED_SHAPE] == graph.constant_metadata["a.weight"][keys.UNPADDED_SHAPE] == "10x6x3x3"
    assert notes["stem"][keys.UNPADDED_SHAPE] == "6x3x3x3"
    # What the masks keep is what they kept, and the trained weights fit the padded constants.
    trained = padded_weights({name: model.constants[name] for name in masks.layers}, result.masks)
    for name, mask in result.masks.layers.items():
        assert mask.keep.sum() == masks.layers[name].keep.sum()
        np.testing.assert_array_equal(graph.constants[name], np.where(mask.keep, trained[name], np.float32(0)))


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 17), ("bf16", 22), ("int8", 20)])
def test_padded_layers_conform_in_every_precision(precision: Literal["fp16", "bf16", "int8"], opset: int) -> None:
    model = chain(opset)
    ir_model = ir.from_proto(model.proto())
    result = pad_channels(ir_model, masks_for(model, ["a", "b"]))
    Annotate(result.masks)(ApplyMasks(result.masks)(ir_model))
    options = BakeOptions(precision=precision)
    converted = convert(ir.to_proto(ir_model), options, IMAGES, masks=result.masks).model
    conformity = check_conformity(parse_graph(converted.SerializeToString(), name=precision), result.masks)
    assert conformity.findings == ()
    assert [layer.shape for layer in conformity.layers] == [(12, 8, 3, 3), (7, 12, 3, 3)]


def test_a_weight_in_an_added_channel_is_found() -> None:
    model = chain()
    ir_model = ir.from_proto(model.proto())
    result = pad_channels(ir_model, masks_for(model, ["a", "b"]))
    Annotate(result.masks)(ApplyMasks(result.masks)(ir_model))
    proto = ir.to_proto(ir_model)
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == "b.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 11, 1, 1] = 1
    weight.raw_data = values.tobytes()
    findings = check_conformity(parse_graph(proto.SerializeToString(), name="broken"), result.masks).findings
    assert any("1 weights that the mask drops are not zero" in finding for finding in findings)


def padded_sparse() -> onnx.ModelProto:
    model = chain()
    ir_model = ir.from_proto(model.proto())
    result = pad_channels(ir_model, masks_for(model, ["a", "b"]))
    Annotate(result.masks)(ApplyMasks(result.masks)(ir_model))
    return ir.to_proto(ir_model)


def test_the_linter_finds_the_mask_of_a_padded_layer() -> None:
    report = lint_graph(parse_graph(padded_sparse().SerializeToString(), name="padded"), name="padded")
    assert report.ok
    assert {layer.weight: layer.state for layer in report.layers if layer.weight in ("a.weight", "b.weight")} == {
        "a.weight": "conforming",
        "b.weight": "conforming",
    }


def test_the_linter_sees_a_padded_layer_with_the_mask_of_another() -> None:
    proto = padded_sparse()
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == "a.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, :4] = values[:, [1, 2, 3, 0]]  # as many of every group, but not those
    weight.raw_data = values.tobytes()
    report = lint_graph(parse_graph(proto.SerializeToString(), name="moved"), name="moved")
    assert not report.ok
    (broken,) = [layer for layer in report.layers if layer.state == "broken claim"]
    assert broken.weight == "a.weight"
    assert "its nonzeros are not those of the mask it names" in broken.why
