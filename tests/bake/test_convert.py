"""From the annotated FP32 model to the precision of the file."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.bake import convert as module
from masksparse_deploy.bake.annotate import Annotate, MarkDense
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import check_conformity
from masksparse_deploy.bake.convert import Conversion, convert, require_calibration
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.bake.file_models import mask_of, mask_set, model_of, values

PRECISIONS = ["fp16", "bf16", "int8"]
# Operator sets in which each precision has convolutions
OPSETS = {"fp32": 20, "fp16": 20, "bf16": 22, "int8": 20}


def kernel() -> np.ndarray:
    """Some of its kept weights become 0 in FP16 and BF16 (those of 1e-45), and more of them in INT8 (those of 1e-4, too)."""
    weight = values(8, 8, 3, 3)
    weight[1, :, 0, 0], weight[2, :, 0, 0] = 1e-45, 1e-4
    return weight


def dense_model(precision: str) -> onnx.ModelProto:
    """A convolution and what may be fused with it."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], name="pool"),
    ]
    weights = {"conv.weight": kernel(), "conv.bias": values(8, seed=1)}
    return model_of(nodes, weights, x=["batch", 8, 6, 6], y=["batch", 8, 1, 1], opset=OPSETS[precision])


def annotated(precision: str) -> tuple[onnx.ModelProto, MaskSet]:
    """The same with a mask, and the mask."""
    masks = mask_set(mask_of("conv.weight", kernel(), 1))
    model = ir.from_proto(dense_model(precision))
    ApplyMasks(masks)(model)
    Annotate(masks)(model)
    return ir.to_proto(model), masks


def conversion(precision: str, **arguments: Any) -> Conversion:
    model, masks = annotated(precision)
    options = BakeOptions.model_validate({"precision": precision})
    return convert(model, options, values(40, 8, 6, 6, seed=2), **{"masks": masks, **arguments})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_densities_are_those_of_the_converted_weights(precision: str) -> None:
    before, masks = annotated(precision)
    found = conversion(precision)
    graph = parse_graph(found.model.SerializeToString(), name="converted")
    (layer,) = weighted_layers(graph)
    density = np.count_nonzero(layer.weight) / layer.weight.size
    (original,) = weighted_layers(parse_graph(before.SerializeToString(), name="before"))
    assert 0 < density < np.count_nonzero(original.weight) / original.weight.size
    (stored,) = (tensor for tensor in found.model.graph.initializer if tensor.name == "conv.weight")
    notes = {entry.key: entry.value for entry in stored.metadata_props}
    assert float(layer.node.metadata[keys.DENSITY]) == float(notes[keys.DENSITY]) == density
    assert not check_conformity(graph, masks).findings
    (row,) = (row for row in found.ranges if row.weight == "conv.weight")
    lost = np.count_nonzero(original.weight) - np.count_nonzero(layer.weight)
    assert row.weight_flushed_count == lost


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_dense_twin_gets_no_annotations(precision: str) -> None:
    model = ir.from_proto(dense_model(precision))
    MarkDense()(model)
    options = BakeOptions.model_validate({"precision": precision})
    found = convert(ir.to_proto(model), options, values(40, 8, 6, 6, seed=2)).model
    assert {entry.key: entry.value for entry in found.metadata_props}[keys.ROLE] == keys.ROLE_DENSE
    marked = [entry for thing in (*found.graph.node, *found.graph.initializer) for entry in thing.metadata_props]
    assert {entry.key for entry in marked} <= {keys.FLOAT_REASON, keys.FLOAT_OUTPUT_REASON}


def test_fp32_stays_as_it_is() -> None:
    model, masks = annotated("fp32")
    assert convert(model, BakeOptions(), None, masks=masks).model is model


def test_int8_needs_images() -> None:
    model, masks = annotated("int8")
    with pytest.raises(UsageError, match="needs images to calibrate scales on"):
        convert(model, BakeOptions(precision="int8"), None, masks=masks)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_of_another_size_are_refused_before_any_work(precision: str) -> None:
    options = BakeOptions.model_validate({"precision": precision})
    with pytest.raises(UsageError, match=r"have the shape \(8, 5, 5\), the network takes \(8, 6, 6\)"):
        require_calibration(options, values(40, 8, 5, 5), (8, 6, 6))
    require_calibration(options, values(40, 8, 6, 6), (8, 6, 6))
    require_calibration(BakeOptions(), values(40, 8, 5, 5), (8, 6, 6))  # FP32 looks at no images


def test_an_int8_model_that_is_not_symmetric_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*arguments: Any, **named: Any) -> onnx.ModelProto:
        model = quantize(*arguments, **named)
        zeros = next(tensor for tensor in model.graph.initializer if tensor.name == "conv.weight_zero_point")
        zeros.CopyFrom(numpy_helper.from_array(np.full(8, 3, np.int8), zeros.name))
        return model

    monkeypatch.setattr(module, "quantize", shifted)
    with pytest.raises(ArtifactError, match="8 zero points are not 0, as 3"):
        conversion("int8")
