"""Channels of zeros: where they come from, what they cost, and that the file computes what it did."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.helper
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime
import pytest

from masksparse_deploy.bake.annotate import Annotate
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import check_conformity
from masksparse_deploy.bake.convert import convert
from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.bake.pad import PadChannels, PadResult, pad_channels, padded_weights
from masksparse_deploy.core.artifacts.baking import PaddedLayer
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import parse_graph

Array = npt.NDArray[np.float32]
PATTERN = NMPattern(n=2, m=4)
SIZE = 8
IMAGES = np.random.default_rng(1).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)


class Model:
    """An ONNX file in the making: `conv` and `op` append a node that reads the last tensor unless told otherwise."""

    def __init__(self, opset: int = 20) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.last = "images"
        self._opset = opset
        self._random = np.random.default_rng(0)

    def op(self, kind: str, name: str, *others: str, source: str = "", domain: str = "", **attributes: Any) -> "Model":
        inputs = [source or self.last, *others]
        self.nodes.append(onnx.helper.make_node(kind, inputs, [f"{name}_out"], name=name, domain=domain, **attributes))
        self.last = f"{name}_out"
        return self

    def weight(self, name: str, *shape: int) -> str:
        self.constants[name] = self._random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        return name

    def conv(self, name: str, inputs: int, outputs: int, *, size: int = 3, bias: bool = True, source: str = "") -> "Model":
        constants = [self.weight(f"{name}.weight", outputs, inputs, size, size)]
        if bias:
            constants.append(self.weight(f"{name}.bias", outputs))
        return self.op("Conv", name, *constants, source=source, kernel_shape=[size, size], pads=[size // 2] * 4)

    def gemm(self, name: str, inputs: int, outputs: int) -> "Model":
        constants = self.weight(f"{name}.weight", outputs, inputs), self.weight(f"{name}.bias", outputs)
        return self.op("Gemm", name, *constants, transB=1)

    def pooled(self) -> "Model":
        return self.op("GlobalAveragePool", "pool").op("Flatten", "flat")

    def proto(self, *outputs: str) -> onnx.ModelProto:
        graph = onnx.helper.make_graph(
            self.nodes,
            "g",
            [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", *IMAGES.shape[1:]])],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs or (self.last,)],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        imports = [onnx.helper.make_opsetid("", self._opset)]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8 if self._opset < 19 else 10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def masks_for(model: Model, layers: Sequence[str], *, group_axis: int = 1) -> MaskSet:
    masks = {}
    for layer in layers:
        weight = model.constants[f"{layer}.weight"]
        keep = PATTERN.keep_largest(np.abs(weight), group_axis=group_axis)
        mask = LayerMask(weight_name=f"{layer}.weight", keep=keep, group_axis=group_axis, pattern=PATTERN)
        masks[mask.weight_name] = mask
    return MaskSet(layers=masks, source_sha256="0" * 64, method="magnitude")


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


def chain(opset: int = 20) -> Model:
    """Images to 6, to 10, to 7 channels; the last two layers have groups that are not full."""
    model = Model(opset).conv("stem", 3, 6).op("Relu", "relu1").conv("a", 6, 10).op("Relu", "relu2")
    return (
        model.op("MaxPool", "max", kernel_shape=[2, 2], strides=[2, 2]).conv("b", 10, 7, bias=False).pooled().gemm("head", 7, 5)
    )


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


def before_pad(model: Model, kind: str, *others: str, **attributes: Any) -> Model:
    return model.conv("stem", 3, 6).op(kind, "between", *others, **attributes).conv("a", 6, 4)


def with_bounds(low: float, high: float) -> Model:
    model = Model()
    model.constants.update(low=np.float32(low), high=np.float32(high))
    return before_pad(model, "Clip", "low", "high")


def residual(second_branch: int = 3) -> Model:
    """A stem of 6 channels, a layer beside it, and their sum, which a layer of 6 input channels reads."""
    model = Model().conv("stem", 3, 6).conv("side", second_branch, 6, source="images" if second_branch == 3 else "")
    return model.op("Add", "sum", "stem_out").op("Relu", "relu").conv("a", 6, 4)


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


def shared_bias() -> Model:
    model = before_pad(Model(), "Relu")
    model.op("Mul", "scaled", "stem.bias", source="stem.bias")
    model.last = "a_out"
    return model


def sum_with_images() -> Model:
    return Model().conv("stem", 3, 6).op("Add", "sum", "shift").conv("a", 6, 4)


def sum_with_constant() -> Model:
    model = sum_with_images()
    model.weight("shift", 1, 6, 1, 1)
    return model


def broadcast_sum() -> Model:
    model = Model().conv("one", 3, 1).conv("stem", 3, 6, source="images")
    return model.op("Add", "sum", "one_out").conv("a", 6, 4)


def concatenated() -> Model:
    model = Model().conv("stem", 3, 3).conv("other", 3, 3, source="images")
    return model.op("Concat", "both", "stem_out", axis=1).conv("a", 6, 4)


def dense_reader() -> Model:
    model = Model().conv("stem", 3, 6).conv("dense", 6, 4)
    return model.conv("a", 6, 4, source="stem_out").op("Add", "sum", "dense_out")


def grouped_stem() -> Model:
    model = Model()
    stem = model.weight("stem.weight", 6, 1, 3, 3)
    return model.op("Conv", "stem", stem, kernel_shape=[3, 3], group=3).conv("a", 6, 4)


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
