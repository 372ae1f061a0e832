"""Applying and annotating: what is written, and what is refused before anything is written."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from masksparse_deploy.bake.annotate import Annotate, MarkDense
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.trace import trace_weights
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from tests.models.make_onnx import MASKED_LAYERS, residual_masks, residual_pair, set_properties


def dense_model() -> ir.Model:
    proto = residual_pair()[0]
    set_properties(proto, {})
    return ir.from_proto(proto)


def masks_with(layers: Mapping[str, LayerMask]) -> MaskSet:
    return MaskSet(layers=layers, source_sha256="0" * 64, method="magnitude")


def mask_of(name: str, shape: tuple[int, ...], group_axis: int = 1) -> LayerMask:
    pattern = NMPattern(n=2, m=4)
    keep = pattern.keep_largest(np.random.default_rng(0).random(shape), group_axis=group_axis)
    return LayerMask(weight_name=name, keep=keep, group_axis=group_axis, pattern=pattern)


def test_zeros_are_written_and_nothing_else() -> None:
    before, model, masks = dense_model(), dense_model(), residual_masks()
    assert ApplyMasks(masks)(model).modified
    for name, value in before.graph.initializers.items():
        dense, sparse = value.const_value.numpy(), model.graph.initializers[name].const_value.numpy()
        if name in masks.layers:
            keep = masks.layers[name].keep
            np.testing.assert_array_equal(sparse[keep], dense[keep])
            assert not np.signbit(sparse[~keep]).any() and not sparse[~keep].any()
        else:
            np.testing.assert_array_equal(sparse, dense)


def test_applying_twice_changes_nothing_more() -> None:
    model, masks = dense_model(), residual_masks()
    ApplyMasks(masks)(model)
    assert not ApplyMasks(masks)(model).modified


def test_the_two_passes_give_the_reference_file() -> None:
    model, masks = dense_model(), residual_masks()
    Annotate(masks)(ApplyMasks(masks)(model))
    expected = residual_pair()[1]
    found = ir.to_proto(model)
    assert found.metadata_props == expected.metadata_props
    for ours, theirs in zip(found.graph.initializer, expected.graph.initializer, strict=True):
        assert (ours.name, ours.raw_data) == (theirs.name, theirs.raw_data)
    ours_by_name = {node.name: node for node in found.graph.node}
    for layer in MASKED_LAYERS:
        (theirs,) = [node for node in expected.graph.node if node.name == layer]
        assert ours_by_name[layer].metadata_props == theirs.metadata_props


def test_layers_left_dense_say_why() -> None:
    model, masks = dense_model(), residual_masks()
    Annotate(masks)(model)
    stem = next(weight for weight in trace_weights(model) if weight.initializer.name == "stem.weight")
    assert stem.node.metadata_props == {keys.DENSE_REASON: "the mask set has no mask of that name"}
    assert stem.initializer.const_value is not None
    assert stem.initializer.const_value.metadata_props == stem.node.metadata_props


def test_the_dense_twin_is_only_marked() -> None:
    model = dense_model()
    MarkDense()(model)
    assert model.metadata_props == {keys.SCHEMA_VERSION: "1", keys.ROLE: "dense"}
    assert not any(node.metadata_props for node in model.graph)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            mask_of("layer9.conv1.weight", (16, 16, 3, 3)),
            r"mask of layer9\.conv1\.weight: the ONNX graph has no initializer of that name; .* 'layer9\.conv1' under",
        ),
        (
            mask_of("layer1.conv1.bias", (16,), group_axis=0),
            r"mask of layer1\.conv1\.bias: no convolution or matrix product of the ONNX graph multiplies by it",
        ),
        (
            mask_of("layer1.conv1.weight", (16, 32, 3, 3)),
            r"has shape \(16, 32, 3, 3\), but the weight in the ONNX graph has \(16, 16, 3, 3\); .*'masksparse learn'",
        ),
        (
            mask_of("layer1.conv1.weight", (16, 16, 3, 3), group_axis=0),
            r"groups run along axis 0, but the input channels of node layer1\.conv1 \(Conv\) lie on axis 1",
        ),
    ],
)
def test_masks_that_do_not_fit(mask: LayerMask, message: str) -> None:
    model = dense_model()
    with pytest.raises(ArtifactError, match=message):
        ApplyMasks(masks_with({mask.weight_name: mask}))(model)
    before = dense_model().graph.initializers["layer1.conv1.weight"].const_value.numpy()
    np.testing.assert_array_equal(model.graph.initializers["layer1.conv1.weight"].const_value.numpy(), before)


def test_the_axis_follows_the_operator() -> None:
    proto = residual_pair()[0]
    gemm = proto.graph.node[-1]
    del gemm.attribute[:]  # without transB the weight is (in, out), so that groups of input channels run along axis 0
    weight = next(weight for weight in trace_weights(ir.from_proto(proto)) if weight.initializer.name == "fc.weight")
    assert weight.group_axis == 0


def test_a_weight_that_something_else_reads() -> None:
    proto = residual_pair()[0]
    (relu,) = [node for node in proto.graph.node if node.name == "stem.relu"]
    proto.graph.node.insert(0, type(relu)(op_type="Relu", name="reader", input=["layer1.conv1.weight"], output=["copy"]))
    model = ir.from_proto(proto)
    with pytest.raises(ArtifactError, match=r"also read by an operator that is no convolution.*reader \(Relu\)"):
        ApplyMasks(residual_masks())(model)


def test_a_convolution_used_twice_is_annotated_twice() -> None:
    proto = residual_pair()[0]
    (second,) = [node for node in proto.graph.node if node.name == "layer1.conv2"]
    second.input[1] = "layer1.conv1.weight"
    model = ir.from_proto(proto)
    masks = masks_with({"layer1.conv1.weight": residual_masks().layers["layer1.conv1.weight"]})
    Annotate(masks)(ApplyMasks(masks)(model))
    annotated = [node.name for node in model.graph if keys.PATTERN in node.metadata_props]
    assert annotated == ["layer1.conv1", "layer1.conv2"]
