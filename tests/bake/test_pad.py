"""Channels of zeros: where they come from, what they cost, and that the file computes what it did."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx_ir as ir
import onnxruntime
import pytest

from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.pad import PadChannels, PadResult, pad_channels
from masksparse_deploy.core.artifacts.baking import PaddedLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import parse_graph
from tests.bake.pad_models import (
    IMAGES,
    PATTERN,
    Array,
    Model,
    before_pad,
    broadcast_sum,
    chain,
    concatenated,
    dense_reader,
    grouped_stem,
    masks_for,
    residual,
    shared_bias,
    sum_with_constant,
    with_bounds,
)
from tests.models.blocks import block_keep


def padded(proto: onnx.ModelProto, masks: MaskSet) -> tuple[onnx.ModelProto, PadResult]:
    """The padded file; its shapes must be those that ONNX infers."""
    model = ir.from_proto(proto)
    result = pad_channels(model, masks)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after, result


def run(proto: onnx.ModelProto, images: Array = IMAGES) -> list[Array]:
    options = onnxruntime.SessionOptions()
    # As written: no operator is fused into another or left out.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {session.get_inputs()[0].name: images})]


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for expected, found in zip(run(before), run(after), strict=True):
        # Zeros change no sum, but a longer one may be added up in another order: each layer of at most 16 * 9 terms is then
        # wrong by 144 * 2^-24 of the sum of magnitudes, which is below 8 here, as is what later layers make of it.
        np.testing.assert_allclose(found, expected, rtol=0, atol=144 * 2.0**-24 * 8)


def pads(proto: onnx.ModelProto) -> list[str]:
    return [node.name for node in proto.graph.node if node.op_type == "Pad"]


def by(result: PadResult) -> dict[str, str]:
    return {layer.node: layer.by for layer in result.layers}


def test_layers_before_compute_the_zeros_where_they_can() -> None:
    model = chain()
    after, result = padded(model.proto(), masks_for(model, ["a", "b"]))
    assert result.modified
    assert pads(after) == []
    shapes = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer}
    assert shapes["stem.weight"] == (8, 3, 3, 3)
    assert shapes["stem.bias"] == (8,)
    assert shapes["a.weight"] == (12, 8, 3, 3)
    assert shapes["b.weight"] == (7, 12, 3, 3)
    assert_same_function(model.proto(), after)


def test_the_cost_is_told() -> None:
    model = chain()
    _, result = padded(model.proto(), masks_for(model, ["a", "b"]))
    stem, a, b = 2 * 3 * 9, (12 * 8 - 10 * 6) * 9, 7 * 2 * 9
    rows = [
        ("stem", 3, 3, stem, 64 * stem, "outputs only"),
        ("a", 6, 8, a, 64 * a, "producer"),
        ("b", 10, 12, b, 16 * b, "producer"),
    ]
    assert result.layers == tuple(
        PaddedLayer(
            node=node,
            weight=f"{node}.weight",
            channels=channels,
            padded_channels=padded_channels,
            extra_weight_count=weights,
            extra_mac_count=macs,
            by=how,
        )
        for node, channels, padded_channels, weights, macs, how in rows
    )


def test_the_cost_is_unknown_where_the_file_tells_no_shapes() -> None:
    model = chain()
    proto = model.proto()
    del proto.graph.value_info[:]
    _, result = padded(proto, masks_for(model, ["a", "b"]))
    assert {layer.extra_mac_count for layer in result.layers} == {None}


@pytest.mark.parametrize(
    "make",
    [
        lambda: before_pad(Model(), "Relu"),
        lambda: before_pad(Model(), "LeakyRelu", alpha=0.1),
        lambda: before_pad(Model(), "Tanh"),
        lambda: before_pad(Model(), "HardSwish"),
        lambda: before_pad(Model(), "Identity"),
        lambda: before_pad(Model(), "Dropout"),
        lambda: before_pad(Model(), "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        lambda: before_pad(Model(), "GlobalAveragePool"),
        lambda: with_bounds(-1, 6),
        lambda: with_bounds(0, 6),
        residual,
    ],
    ids=["relu", "leaky", "tanh", "hardswish", "identity", "dropout", "average", "global", "clip", "relu6", "sum"],
)
def test_zeros_pass_through(make: Callable[[], Model]) -> None:
    model = make()
    after, result = padded(model.proto(), masks_for(model, ["a"]))
    assert pads(after) == []
    assert by(result)["a"] == "producer"
    assert_same_function(model.proto(), after)


@pytest.mark.parametrize(
    "make",
    [
        lambda: before_pad(Model(), "Sigmoid"),
        lambda: before_pad(Model(), "Softplus"),
        lambda: with_bounds(1, 6),
        lambda: with_bounds(-6, -1),
        lambda: Model().conv("a", 3, 4),
        shared_bias,
        sum_with_constant,
        broadcast_sum,
        concatenated,
        dense_reader,
        grouped_stem,
    ],
    ids=[
        "sigmoid",
        "softplus",
        "clip above",
        "clip below",
        "images",
        "shared bias",
        "constant",
        "broadcast",
        "concat",
        "dense",
        "grouped",
    ],
)
def test_else_a_pad_node_appends_them_and_outputs_are_the_same(make: Callable[[], Model]) -> None:
    model = make()
    after, result = padded(model.proto(), masks_for(model, ["a"]))
    assert pads(after) == ["a_pad"]
    assert by(result) == {"a": "pad node"}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer}
    assert shapes["a.weight"][1] % 4 == 0
    # The padded layer adds zeros at the end of each sum, and no other layer changed.
    assert_same_function(model.proto(), after)


def test_a_tensor_that_is_an_output_of_the_model_stays_as_it_is() -> None:
    model = before_pad(Model(), "Relu")
    proto = model.proto("a_out", "between_out")
    after, result = padded(proto, masks_for(model, ["a"]))
    assert by(result) == {"a": "pad node"}
    assert run(after)[1].shape == run(proto)[1].shape
    assert_same_function(proto, after)


def test_layers_that_read_the_same_tensor_share_a_pad_node() -> None:
    model = (
        Model()
        .conv("stem", 3, 6)
        .op("Sigmoid", "s")
        .conv("a", 6, 4)
        .conv("b", 6, 4, size=1, source="s_out")
        .op("Add", "sum", "a_out")
    )
    after, result = padded(model.proto(), masks_for(model, ["a", "b"]))
    assert pads(after) == ["a_pad"]
    assert by(result) == {"a": "pad node", "b": "pad node"}
    assert_same_function(model.proto(), after)


def test_blocks_with_shortcuts_are_padded_together() -> None:
    """As in a residual network: every sum of the stage, and all that feeds one or reads one."""
    model = Model().conv("stem", 3, 6).op("Relu", "start")
    for block in ("one", "two"):
        before = model.last
        model.conv(f"{block}.a", 6, 6).op("Relu", f"{block}.relu").conv(f"{block}.b", 6, 6)
        model.op("Add", f"{block}.sum", before).op("Relu", f"{block}.end")
    model.conv("last", 6, 4).pooled().gemm("head", 4, 5)
    layers = ["one.a", "one.b", "two.a", "two.b", "last"]
    after, result = padded(model.proto(), masks_for(model, layers))
    assert by(result) == {"stem": "outputs only", **dict.fromkeys(layers, "producer")}
    assert_same_function(model.proto(), after)
    # With one layer that stays dense, the sums that reach it cannot have more channels.
    after, result = padded(model.proto(), masks_for(model, layers[:-1]))
    assert by(result) == {
        "one.a": "pad node",
        "one.b": "producer",
        "two.a": "pad node",
        "two.b": "producer",
    }
    assert_same_function(model.proto(), after)


def test_a_matrix_stored_with_the_input_channels_first() -> None:
    model = Model().conv("stem", 3, 6).pooled()
    model.op("MatMul", "a", model.weight("a.weight", 6, 4))
    after, result = padded(model.proto(), masks_for(model, ["a"], group_axis=0))
    assert by(result) == {"a": "pad node"}
    assert dict(result.masks.layers)["a.weight"].keep.shape == (8, 4)
    assert_same_function(model.proto(), after)


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 4), (6, 6), (5, 3)])
def test_a_mask_of_a_matrix_that_is_stored_transposed_stays_in_its_own_axes(inputs: int, outputs: int) -> None:
    """PyTorch's (out, in) for a MatMul that reads (in, out); with 5 inputs the last group keeps fewer than 2."""
    model = Model().conv("stem", 3, inputs).pooled()
    model.op("MatMul", "a", model.weight("a.weight", inputs, outputs))
    keep = PATTERN.keep_largest(np.abs(model.constants["a.weight"].T), group_axis=1)
    mask = LayerMask(weight_name="a.weight", keep=keep, group_axis=1, pattern=PATTERN)
    ir_model = ir.from_proto(model.proto())
    result = pad_channels(ir_model, MaskSet(layers={"a.weight": mask}, source_sha256="0" * 64, method="magnitude"))
    assert result.masks.layers["a.weight"].keep.shape == (outputs, 8)
    ApplyMasks(result.masks)(ir_model)
    weight = ir_model.graph.initializers["a.weight"].const_value
    assert weight is not None
    expected = np.where(keep, model.constants["a.weight"].T, np.float32(0)).T
    np.testing.assert_array_equal(weight.numpy(), np.pad(expected, ((0, 8 - inputs), (0, 0))))


def test_a_gemm_computes_zeros_for_the_next() -> None:
    model = Model().conv("stem", 3, 8).pooled().gemm("hidden", 8, 10).op("Relu", "relu").gemm("head", 10, 5)
    after, result = padded(model.proto(), masks_for(model, ["head"]))
    assert by(result) == {"hidden": "outputs only", "head": "producer"}
    assert [layer.extra_mac_count for layer in result.layers] == [16, 10]
    assert_same_function(model.proto(), after)


@pytest.mark.parametrize("planted", ["stem.weight", "stem.bias"])
def test_a_channel_that_is_not_zero_changes_nothing_but_one_that_is_read_does(planted: str) -> None:
    """The check of the function is one: a value in an added output channel alone is harmless, one that is read is not."""
    model = chain()
    after, _ = padded(model.proto(), masks_for(model, ["a", "b"]))
    for name, index in ((planted, -1), ("a.weight", (0, 7))):
        (tensor,) = [tensor for tensor in after.graph.initializer if tensor.name == name]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[index] = 1
        tensor.raw_data = values.tobytes()
        if name == planted:
            assert_same_function(model.proto(), after)
        else:
            with pytest.raises(AssertionError, match="Not equal to tolerance"):
                assert_same_function(model.proto(), after)


def test_full_groups_are_left_alone() -> None:
    model = Model().conv("stem", 3, 8).conv("a", 8, 4)
    masks = masks_for(model, ["a"])
    after, result = padded(model.proto(), masks)
    assert not result.modified
    assert result.masks is masks
    assert after.SerializeToString() == ir.to_proto(ir.from_proto(model.proto())).SerializeToString()


def test_padding_twice_gives_the_same_bytes_and_changes_the_padded_no_more() -> None:
    model = chain()
    masks = masks_for(model, ["a", "b"])
    one, result = padded(model.proto(), masks)
    other, _ = padded(model.proto(), masks)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    again, second = padded(one, result.masks)
    assert not second.modified
    assert second.masks is result.masks
    assert again == ir.to_proto(ir.from_proto(one))


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_every_opset_reads_the_pad_node(opset: int) -> None:
    model = Model(opset).conv("a", 3, 4)
    after, _ = padded(model.proto(), masks_for(model, ["a"]))
    assert_same_function(model.proto(), after)
    graph = parse_graph(after.SerializeToString(), name="padded")
    np.testing.assert_allclose(evaluate(graph, IMAGES)["a_out"], run(after)[0], rtol=0, atol=1e-5)


def test_names_that_are_taken_are_not_used_again() -> None:
    model = Model().op("Identity", "a_pad").op("Sigmoid", "s").conv("a", 3, 4)
    model.constants["a_pads"] = np.zeros(1, np.float32)
    after, _ = padded(model.proto(), masks_for(model, ["a"]))
    assert pads(after) == ["a_pad_"]
    assert_same_function(model.proto(), after)


def grouped() -> tuple[Model, str]:
    model = Model().conv("stem", 3, 12)
    weight = model.weight("a.weight", 4, 6, 3, 3)
    return model.op("Conv", "a", weight, kernel_shape=[3, 3], group=2), "it is a grouped convolution"


def behind_identity() -> tuple[Model, str]:
    model = Model().conv("stem", 3, 6)
    last = model.last
    model.op("Identity", "copy", source=model.weight("a.weight", 4, 6, 1, 1))
    return model.op("Conv", "a", "copy_out", source=last, kernel_shape=[1, 1]), "its weight passes through Identity first"


def old_opset() -> tuple[Model, str]:
    return Model(10).conv("a", 3, 4), "the file has an operator set before 11"


@pytest.mark.parametrize("make", [grouped, behind_identity, old_opset])
def test_what_cannot_be_padded_is_refused_before_anything_changes(make: Callable[[], tuple[Model, str]]) -> None:
    model, reason = make()
    ir_model = ir.from_proto(model.proto())
    before = ir.to_proto(ir_model).SerializeToString(deterministic=True)
    with pytest.raises(
        ArtifactError, match=rf"mask of a\.weight: .* is not full, .* as {reason}; add the layer to mask\.exclude"
    ):
        PadChannels(masks_for(model, ["a"]))(ir_model)
    assert ir.to_proto(ir_model).SerializeToString(deterministic=True) == before


def test_masks_of_another_model_are_refused() -> None:
    masks = masks_for(chain(), ["a", "b"])
    renamed: Mapping[str, LayerMask] = {"x": dataclasses.replace(masks.layers["a.weight"], weight_name="x")}
    with pytest.raises(ArtifactError, match="no initializer of that name"):
        pad_channels(ir.from_proto(chain().proto()), dataclasses.replace(masks, layers=renamed))


def test_layers_with_blocks_get_no_further_outputs() -> None:
    model = Model().conv("a", 3, 6).conv("b", 6, 8).pooled()
    masks = masks_for(model, ["b"])
    assert by(padded(model.proto(), masks)[1]) == {"a": "outputs only", "b": "producer"}
    pattern = BlockPattern(n=2, rate=0.5)
    weight = model.constants["a.weight"]
    blocks = LayerMask(weight_name="a.weight", keep=block_keep(weight, pattern), group_axis=1, pattern=pattern)
    both = dataclasses.replace(masks, layers={**masks.layers, "a.weight": blocks})
    after, result = padded(model.proto(), both)
    assert by(result) == {"b": "pad node"}
    assert result.masks.layers["a.weight"] is blocks
    assert_same_function(model.proto(), after)
