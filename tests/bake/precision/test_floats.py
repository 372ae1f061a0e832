"""Conversion to FP16 and BF16: what the files hold, what they compute, and which graphs are refused."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from masksparse_deploy.bake.annotate import Annotate
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import nonzeros_per_group
from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.precision.floats import ConvertFloats
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.evaluate import absolute_layer, apply_layer, evaluate, unsupported_operators
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from samples.own_loop.run import IMAGE_SHAPE, small_network
from tests.models.cifar_resnet import resnet20
from tests.models.make_onnx import residual_masks, residual_pair
from tests.models.tiny_cnn import magnitude_masks, tiny_cnn

Array = npt.NDArray[Any]
Precision = Literal["fp16", "bf16"]

OPSETS = (17, 18, 20, 22)
DTYPES: dict[Precision, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
# BF16 convolutions came with operator set 22
CASES: list[tuple[Precision, int]] = [*(("fp16", opset) for opset in OPSETS), ("bf16", 22)]
# Layers that can carry 2:4 along their input channels, of each network.
MASKED: dict[str, Callable[[str, tuple[int, ...]], bool]] = {
    "tiny": lambda name, shape: "block.conv" in name,
    "digits": lambda name, shape: shape[1] % 4 == 0,
    "resnet20": lambda name, shape: shape[1] % 4 == 0,
    "own_loop": lambda name, shape: shape[1] % 4 == 0,
}


def converted(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    assert ConvertFloats(precision)(graph).modified
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)  # full: every operator takes the types it is given
    return proto


def run(model: onnx.ModelProto, images: Array, outputs: list[str] | None = None) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(outputs, {session.get_inputs()[0].name: images})]


def residual(opset: int) -> onnx.ModelProto:
    model = residual_pair()[1]
    model.opset_import[0].version = opset
    return model


def digits_net() -> nn.Module:
    path = Path(__file__).parents[3] / "samples" / "digits" / "model.py"
    spec = importlib.util.spec_from_file_location("digits_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.digits_net()
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "tiny": (tiny_cnn, (3, 8, 8)),
    "digits": (digits_net, (1, 8, 8)),
    "resnet20": (resnet20, (3, 32, 32)),
    "own_loop": (small_network, IMAGE_SHAPE),
}


@functools.cache
def exported(name: str, opset: int) -> tuple[onnx.ModelProto, Any]:
    """A network with its masks written in, as baking does it, and the masks."""
    factory, shape = NETWORKS[name]
    model = factory().eval()
    layers = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and MASKED[name](layer, tuple(module.weight.shape))
    ]
    masks = magnitude_masks(model, layers)
    graph = ir.from_proto(onnx.load_model_from_string(export_onnx(model, shape, opset=opset)))
    for rewrite in (ApplyMasks(masks), Annotate(masks)):
        rewrite(graph)
    return ir.to_proto(graph), masks


def check_converted(model: onnx.ModelProto, low: onnx.ModelProto, masks: Any, precision: Precision) -> None:
    """2:4 and every value in the written bytes, and nothing else changed but the two casts."""
    before = parse_graph(model.SerializeToString(), name="fp32")
    graph = parse_graph(low.SerializeToString(), name=precision)
    assert unsupported_operators(graph) == ()
    assert (graph.opsets, graph.metadata) == (before.opsets, before.metadata)
    assert (dict(graph.inputs), graph.outputs) == (dict(before.inputs), before.outputs)
    assert list(graph.constants) == list(before.constants)
    assert graph.constant_metadata == before.constant_metadata
    for name, array in before.constants.items():
        expected = array.astype(DTYPES[precision]) if array.dtype == np.float32 else array
        assert graph.constants[name].dtype == expected.dtype, name
        assert graph.constants[name].tobytes() == expected.tobytes(), name
    assert not [name for name, array in graph.constants.items() if array.dtype == np.float32]
    own = [node for node in graph.nodes if node.op != "Cast"]
    assert [(node.name, node.op, node.metadata) for node in own] == [
        (node.name, node.op, node.metadata) for node in before.nodes if node.op != "Cast"
    ]
    assert len(graph.nodes) == len(before.nodes) + 2
    layers = {layer.stored_name: layer for layer in weighted_layers(graph)}
    for name, mask in masks.layers.items():
        assert not layers[name].weight[~mask.keep].any()
        counts = nonzeros_per_group(layers[name].weight, axis=layers[name].group_axis, size=4)
        assert counts.max() == 2, name


def check_outputs(low: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Every layer of an FP16 file, as ONNX Runtime computes it, against float64 on the very inputs the layer got.

    On x86 the runtime has no FP16 convolutions or products: it computes them in FP32, n products with an error of n 2^-24
    |W||x| at most, and rounds the result to FP16: 2^-11 of it, or 2^-25 below the normal numbers. It also joins casts, so
    that a layer may get its input before it was rounded to FP16: 2^-11 |W||x|.
    """
    graph = parse_graph(low.SerializeToString(), name="fp16")
    layers = weighted_layers(graph)
    names = list(dict.fromkeys(name for layer in layers for name in (layer.node.inputs[0], layer.node.outputs[0])))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(low)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in names)
    images = np.random.default_rng(5).standard_normal((4, *shape), dtype=np.float32)
    tensors = dict(zip(names, run(exposed, images, names), strict=True))
    for layer in layers:
        x, y = tensors[layer.node.inputs[0]], tensors[layer.node.outputs[0]].astype(np.float64)
        term_count = int(np.prod(layer.weight.shape[1:]))
        exact = apply_layer(layer, x)
        relative = 2.0**-11 + (term_count + 2) * 2.0**-24
        allowed = 2.0**-11 * np.abs(y) + 2.0**-25 + relative * absolute_layer(layer, x)
        assert bool((np.abs(y - exact) <= allowed).all()), layer.node.name
    (logits,) = run(low, images)
    assert logits.dtype == np.float32
    # Each of at most 20 layers in a row rounds 2^-11 of its largest output; gains of the networks here are near one.
    reference = evaluate(graph, images)[graph.outputs[0]]
    np.testing.assert_allclose(logits, reference, rtol=0, atol=20 * 2.0**-11 * np.abs(reference).max())


@pytest.mark.parametrize(("precision", "opset"), CASES)
def test_a_residual_network(precision: Precision, opset: int) -> None:
    model = residual(opset)
    low = converted(model, precision)
    check_converted(model, low, residual_masks(), precision)
    if precision == "fp16":
        check_outputs(low, (3, 8, 8))


def test_an_exported_network() -> None:
    model, masks = exported("tiny", 20)
    low = converted(model, "fp16")
    check_converted(model, low, masks, "fp16")
    check_outputs(low, NETWORKS["tiny"][1])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), CASES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_sample_network(name: str, precision: Precision, opset: int) -> None:
    model, masks = exported(name, opset)
    low = converted(model, precision)
    check_converted(model, low, masks, precision)
    if precision == "fp16":
        check_outputs(low, NETWORKS[name][1])


@pytest.mark.parametrize("fault", ["a third weight in a group", "a value rounded otherwise", "a constant left in FP32"])
def test_the_checks_of_these_tests_see_a_fault(fault: str) -> None:
    model = residual(20)
    low = converted(model, "fp16")
    (kernel,) = (tensor for tensor in low.graph.initializer if tensor.name == "layer1.conv1.weight")
    weight = numpy_helper.to_array(kernel).copy()
    if fault == "a third weight in a group":
        weight[0, :4, 0, 0] = 1
    elif fault == "a value rounded otherwise":
        largest = np.unravel_index(np.abs(weight).argmax(), weight.shape)
        weight[largest] = np.nextafter(weight[largest], np.float16(9))
    else:
        weight = weight.astype(np.float32)
        low.graph.node.insert(0, helper.make_node("Cast", ["stored"], [kernel.name], to=TensorProto.FLOAT16, name="cast"))
    kernel.CopyFrom(numpy_helper.from_array(weight, "stored" if weight.dtype == np.float32 else kernel.name))
    with pytest.raises(AssertionError):
        check_converted(model, low, residual_masks(), "fp16")


def test_converting_twice_changes_nothing_more() -> None:
    graph = ir.from_proto(residual(20))
    ConvertFloats("fp16")(graph)
    first = ir.to_proto(graph).SerializeToString(deterministic=True)
    again = ir.from_proto(onnx.load_model_from_string(first))
    assert not ConvertFloats("fp16")(again).modified
    assert first == converted(residual(20), "fp16").SerializeToString(deterministic=True)


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_bf16_names_the_operator_set_it_needs(opset: int) -> None:
    with pytest.raises(
        UsageError,
        match=rf"Conv, GlobalAveragePool, MaxPool cannot compute in BF16 in operator set {opset}; use bake.opset 22, or",
    ):
        ConvertFloats("bf16")(ir.from_proto(residual(opset)))


def test_a_perceptron_needs_no_new_operator_set_for_bf16() -> None:
    low = converted(one_input([helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": np.eye(8, dtype=np.float32)}), "bf16")
    assert low.graph.initializer[0].data_type == TensorProto.BFLOAT16


def test_values_are_rounded_and_nothing_is_clamped_or_lifted() -> None:
    weight = np.float32([[1e6, -1e6, 1e-9, -1e-9, 0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11]])
    low = converted(one_input([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight.T}), "fp16")
    stored = numpy_helper.to_array(low.graph.initializer[0]).T
    # the last two lie half way between neighbours: ties go to the even one
    expected = np.float16([[np.inf, -np.inf, 0.0, -0.0, 0.0, -0.0, 1.0, 1 + 2**-9]])
    assert stored.tobytes() == expected.tobytes()


def one_input(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    shape: tuple[Any, ...] = ("n", 8),
    *,
    opset: int = 20,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **more)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize("computed", [False, True])
def test_scales_of_a_resize_stay_exact(computed: bool) -> None:
    # 1.6 is no FP16 number: rounded to 1.5996 the output of 10 rows would have 15 instead of 16
    scales = np.float32([1, 1, 1.6, 1.6])
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize")]
    constants = {"scales": scales}
    if computed:
        constants = {"ones": scales[:2], "factors": scales[2:]}
        nodes.insert(0, helper.make_node("Concat", ["ones", "factors"], ["scales"], axis=0, name="join"))
    model = one_input(nodes, constants, ("n", 4, 10, 10))
    low = converted(model, "fp16")
    assert set(types_of(low).values()) == {TensorProto.FLOAT}
    images = np.random.default_rng(0).random((2, 4, 10, 10), dtype=np.float32)
    (expected,), (found,) = run(model, images), run(low, images)
    assert found.shape == expected.shape == (2, 4, 16, 16)
    np.testing.assert_allclose(found, expected, rtol=2.0**-11)  # the nearest value is copied, rounded or not


def test_a_constant_read_in_both_types_stays_exact_and_is_cast() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "c"], ["a"], name="resize"),
        helper.make_node("Mul", ["a", "c"], ["y"], name="scale"),
    ]
    low = converted(one_input(nodes, {"c": np.float32([1, 1, 1.6, 2])}, ("n", 4, 10, 2)), "fp16")
    assert types_of(low) == {"c": TensorProto.FLOAT}
    assert [node.input[0] for node in low.graph.node if node.op_type == "Cast"] == ["x", "c", "y_fp32"]


@pytest.mark.parametrize(
    "constant",
    [
        {"value": numpy_helper.from_array(np.float32(0.3))},
        {"value_float": 0.3},
        {"value_floats": [0.3]},
    ],
)
def test_constant_operators_are_converted(constant: dict[str, Any]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], name="constant", **constant),
        helper.make_node("Mul", ["x", "c"], ["y"], name="scale"),
    ]
    low = converted(one_input(nodes, {}), "fp16")
    array = parse_graph(low.SerializeToString(), name="low").constants["c"]
    np.testing.assert_array_equal(array, np.full(array.shape, 0.3, np.float16), strict=True)


@pytest.mark.parametrize("value", [None, 1.5])
def test_types_named_by_attributes_are_converted(value: float | None) -> None:
    attributes = {} if value is None else {"value": numpy_helper.from_array(np.float32([value]))}
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("ConstantOfShape", ["s"], ["filled"], name="fill", **attributes),
        helper.make_node("Cast", ["flags"], ["f"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Add", ["filled", "f"], ["sum"], name="one"),
        helper.make_node("Add", ["sum", "x"], ["y"], name="two"),
    ]
    model = one_input(nodes, {"flags": np.array([True, False] * 4)})
    low = converted(model, "fp16")
    assert [node.op_type for node in low.graph.node].count("Cast") == 3  # its own, and one at each edge
    images = np.float32(np.arange(16).reshape(2, 8))
    np.testing.assert_array_equal(run(low, images)[0], run(model, images)[0])


def test_bodies_of_control_flow_are_converted() -> None:
    def branch(factor: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", factor], ["t"], name=factor + ".product")],
            factor,
            [],
            [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.eye(8, dtype=np.float32) * 3, "inner")] if factor == "inner" else [],
        )

    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("outer"), else_branch=branch("inner"), name="choose"),
    ]
    constants = {"outer": np.eye(8, dtype=np.float32), "flag": np.array(False)}
    low = converted(one_input(nodes, constants), "fp16")
    bodies = {attribute.name: attribute.g for node in low.graph.node for attribute in node.attribute if attribute.g.node}
    assert bodies["else_branch"].initializer[0].data_type == TensorProto.FLOAT16
    assert types_of(low)["outer"] == TensorProto.FLOAT16
    images = np.float32(np.arange(16).reshape(2, 8))
    np.testing.assert_array_equal(run(low, images)[0], 3 * images)


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "local", "Block", ["a", "b"], ["c"], [helper.make_node("MatMul", ["a", "b"], ["c"])], [helper.make_opsetid("", 20)]
    )
    nodes = [helper.make_node("Block", ["x", "w"], ["y"], domain="local", name="block")]
    model = one_input(nodes, {"w": np.eye(8, dtype=np.float32)}, functions=[function])
    model.opset_import.append(helper.make_opsetid("local", 1))
    low = converted(model, "fp16")
    assert types_of(low) == {"w": TensorProto.FLOAT16}
    assert [node.op_type for node in low.graph.node] == ["Cast", "MatMul", "Cast"]


def test_operators_of_other_domains_keep_fp32() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="before"),
        helper.make_node("Plugin", ["a", "p"], ["b"], domain="vendor", name="plugin"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="after"),
    ]
    model = one_input(nodes, {"w": np.eye(8, dtype=np.float32), "p": np.float32([1.3])})
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    with pytest.raises(UsageError, match="tensor b has no type in the file, and ONNX cannot infer it; declare"):
        ConvertFloats("fp16")(ir.from_proto(model))
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 8]))
    low = converted(model, "fp16")
    assert types_of(low) == {"w": TensorProto.FLOAT16, "p": TensorProto.FLOAT}
    (plugin,) = (node for node in low.graph.node if node.op_type == "Plugin")
    assert list(plugin.input) == ["a_fp32", "p"]
    assert [opset.domain for opset in low.opset_import] == ["", "vendor"]


def test_an_output_that_is_also_read_and_a_name_that_is_taken() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="one"),
        helper.make_node("Sigmoid", ["y"], ["x_fp16"], name="two"),
    ]
    model = one_input(nodes, {})
    model.graph.output.append(helper.make_tensor_value_info("x_fp16", TensorProto.FLOAT, ["n", 8]))
    low = converted(model, "fp16")
    assert [value.name for value in low.graph.output] == ["y", "x_fp16"]
    assert [value.type.tensor_type.elem_type for value in low.graph.output] == [TensorProto.FLOAT] * 2
    images = np.float32([[-1, 0, 1, 2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(run(low, images)[0], np.maximum(images, 0))


def test_quantized_weights_stay_and_their_scales_are_converted_where_the_operator_set_allows() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=0, name="weights"),
        helper.make_node("MatMul", ["x", "f"], ["y"], name="product"),
    ]
    constants: dict[str, Array] = {"w": np.eye(8, dtype=np.int8), "s": np.full(8, 0.25, np.float32)}
    for opset, kind in ((17, TensorProto.FLOAT), (20, TensorProto.FLOAT16)):
        model = one_input(nodes, constants, opset=opset)
        low = converted(model, "fp16")
        assert types_of(low) == {"w": TensorProto.INT8, "s": kind}
        images = np.float32(np.arange(16).reshape(2, 8))
        np.testing.assert_array_equal(run(low, images)[0], images / 4)


def test_readers_that_take_either_type_get_no_cast() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32, name="cut"),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT, name="back"),
        helper.make_node("Reshape", ["f", "s"], ["y"], name="same"),
    ]
    low = converted(one_input(nodes, {}), "fp16")
    assert [(node.op_type, *node.input) for node in low.graph.node] == [
        ("Shape", "x"),
        ("Cast", "x"),
        ("Cast", "i"),
        ("Reshape", "f", "s"),
        ("Cast", "y_fp32"),
    ]


def test_fp64_is_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.DOUBLE, name="there"),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT, name="back"),
    ]
    with pytest.raises(UsageError, match=r"tensor a is FP64, .*; export the network in FP32 \(model.float\(\)\) first"):
        ConvertFloats("fp16")(ir.from_proto(one_input(nodes, {})))


def test_sequences_of_floats_are_refused() -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], name="pack"),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0, name="unpack"),
    ]
    with pytest.raises(UsageError, match="SequenceConstruct pack computes a sequence or an optional, which cannot be"):
        ConvertFloats("fp16")(ir.from_proto(one_input(nodes, {})))
