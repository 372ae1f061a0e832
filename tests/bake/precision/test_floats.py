"""Conversion of single operators to FP16 and BF16, and which graphs are refused."""

from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.precision.floats import ConvertFloats
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.reader import parse_graph
from tests.bake.precision.float_models import Array, converted, residual, run


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
