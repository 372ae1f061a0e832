"""The read-only view against graphs written with onnx.helper."""

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.graph.layers import Scope
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph, read_graph, weighted_layers
from tests.models.make_onnx import residual_pair, residual_weights


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], *, x: list[Any], y: list[Any], **more: Any) -> bytes:
    """A model with the input "x" and the output "y"."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    more.setdefault("opset_imports", [helper.make_opsetid("", 20)])
    return helper.make_model(graph, ir_version=10, **more).SerializeToString()


def parse(data: bytes) -> Graph:
    return parse_graph(data, name="test.onnx")


def test_reads_the_residual_network() -> None:
    data = residual_pair()[1].SerializeToString()
    graph = parse(data)
    assert graph.sha256 == sha256_bytes(data)
    assert graph.inputs == {"images": (None, 3, 8, 8)}
    assert graph.outputs == ("logits",)
    assert graph.opsets == {"": 20}
    assert graph.metadata["masksparse.role"] == "sparse"
    assert graph.shapes["layer2.conv1.out"] == (None, 32, 2, 2)
    assert graph.constant_metadata["layer1.conv1.weight"]["masksparse.pattern"] == "2:4"
    assert graph.constant_metadata["layer1.conv1.bias"] == {}
    by_name = {node.name: node for node in graph.nodes}
    assert by_name["layer2.conv1"].attributes["strides"] == (2, 2)
    assert by_name["layer2.conv1"].metadata["masksparse.group_axis"] == "1"
    weights = residual_weights()
    np.testing.assert_array_equal(graph.constants["stem.weight"], weights["stem.weight"])

    layers = weighted_layers(graph)
    assert [layer.node.name for layer in layers] == [
        "stem",
        "layer1.conv1",
        "layer1.conv2",
        "layer2.conv1",
        "layer2.shortcut",
        "layer2.conv2",
        "fc",
    ]
    assert {layer.group_axis for layer in layers} == {1}
    assert {layer.consumer_count for layer in layers} == {1}
    assert [layer.kernel_positions for layer in layers] == [9, 9, 9, 9, 1, 9, 1]
    bias = layers[-1].bias
    assert bias is not None
    np.testing.assert_array_equal(bias, weights["fc.bias"])


def test_constants_are_read_only() -> None:
    graph = parse(residual_pair()[0].SerializeToString())
    with pytest.raises(ValueError, match="read-only"):
        graph.constants["stem.weight"][0] = 0


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(np.float32([[2, 3]]))}, np.float32([[2, 3]])),
        ({"value_float": 2.5}, np.float32(2.5)),
        ({"value_floats": [1.0, 2.0]}, np.float32([1, 2])),
        ({"value_int": 7}, np.int64(7)),
        ({"value_ints": [7, 8]}, np.int64([7, 8])),
        ({"value_string": "a"}, np.array("a", dtype=np.object_)),
    ],
)
def test_constant_nodes_become_constants(attributes: dict[str, Any], expected: Any) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **attributes), helper.make_node("Relu", ["x"], ["y"])]
    graph = parse(model_of(nodes, {}, x=[1], y=[1]))
    assert [node.op for node in graph.nodes] == ["Relu"]
    assert graph.constants["c"].dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(graph.constants["c"], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_reduced_precision_keeps_its_values(dtype: Any) -> None:
    weight = np.array([[1.5, 0.0, -2.0, 0.25]], dtype=dtype).reshape(4, 1)
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        helper.make_node("MatMul", ["z", "w"], ["u"]),
        helper.make_node("Cast", ["u"], ["y"], to=TensorProto.FLOAT),
    ]
    (layer,) = weighted_layers(parse(model_of(nodes, {"w": weight}, x=["n", 4], y=["n", 1])))
    np.testing.assert_array_equal(layer.weight.astype(np.float32), weight.astype(np.float32))


@pytest.mark.parametrize(
    ("node", "shape", "axis"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), (8, 4, 3, 3), 1),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (8, 4), 1),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (4, 8), 0),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (4, 8), 0),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 4, 8), 1),
    ],
)
def test_group_axis_is_the_axis_summed_over(node: onnx.NodeProto, shape: tuple[int, ...], axis: int) -> None:
    rank = {"Conv": 4, "Gemm": 2, "MatMul": len(shape)}[node.op_type]
    x = ["n", 4, 8, 8] if rank == 4 else ["n"] * (rank - 1) + [4]
    data = model_of([node], {"w": np.ones(shape, np.float32)}, x=x, y=[None] * rank)
    (layer,) = weighted_layers(parse(data))
    assert layer.group_axis == axis
    assert layer.weight.shape[axis] == 4


def test_both_names_of_the_standard_domain() -> None:
    data = model_of(
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        {"w": np.ones((4, 8), np.float32)},
        x=["n", 4],
        y=["n", 8],
        opset_imports=[helper.make_opsetid("ai.onnx", 20)],
    )
    graph = parse(data)
    assert graph.opsets == {"": 20}
    assert len(weighted_layers(graph)) == 1


def test_grouped_convolution_and_shared_weight() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], group=2),
        helper.make_node("Conv", ["a", "w"], ["y"], group=2),
    ]
    data = model_of(nodes, {"w": np.ones((8, 4, 1, 1), np.float32)}, x=["n", 8, 4, 4], y=["n", 8, 4, 4])
    first, second = weighted_layers(parse(data))
    assert (first.groups, first.consumer_count, second.consumer_count) == (2, 2, 2)
    assert (first.node.name, second.node.name) == ("Conv_0", "Conv_1")


def test_a_body_that_reads_the_weight_is_counted() -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["flag"], ["b"], then_branch=body, else_branch=other),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    constants = {"w": np.eye(4, dtype=np.float32), "flag": np.array(True)}
    (layer,) = weighted_layers(parse(model_of(nodes, constants, x=["n", 4], y=["n", 4])))
    assert layer.consumer_count == 2


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "local", "Block", ["a", "b"], ["c"], [helper.make_node("Conv", ["a", "b"], ["c"])], [helper.make_opsetid("", 20)]
    )
    data = model_of(
        [helper.make_node("Block", ["x", "w"], ["y"], domain="local")],
        {"w": np.ones((4, 4, 1, 1), np.float32)},
        x=["n", 4, 2, 2],
        y=["n", 4, 2, 2],
        functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
    )
    (layer,) = weighted_layers(parse(data))
    assert layer.weight_name == "w"


def test_unnamed_nodes_get_names_that_are_free() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"], name="Relu_0")]
    graph = parse(model_of(nodes, {}, x=[1], y=[1]))
    assert [node.name for node in graph.nodes] == ["Relu_0_", "Relu_0"]


def test_foreign_operators_are_read_but_carry_no_weights() -> None:
    data = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], domain="vendor")],
        {"w": np.ones((4, 4, 1, 1), np.float32)},
        x=["n", 4, 2, 2],
        y=["n", 4, 2, 2],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("vendor", 1)],
    )
    graph = parse(data)
    assert graph.nodes[0].domain == "vendor"
    assert weighted_layers(graph) == ()


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match="does not exist"):
        read_graph(path)
    whole = residual_pair()[0].SerializeToString()
    for data in (b"", b"not a model", whole[:1000], whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"model\.onnx is damaged or not a valid ONNX file \(.+\); export it again"):
            read_graph(path)


def test_an_initializer_with_too_few_bytes_is_damage() -> None:
    model = residual_pair()[0]
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ArtifactError, match="damaged"):
        parse(model.SerializeToString())


def test_sizes_that_lie_are_refused_before_anything_is_allocated() -> None:
    model = residual_pair()[0]
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([10**6, 10**6])
    with pytest.raises(ArtifactError, match=r"has 1,728 bytes; its shape and type take 4,000,000,000,000"):
        parse(model.SerializeToString())


@pytest.mark.parametrize(
    ("start", "what"),
    [(b"PK\x03\x04", "a zip archive"), (b"\x1f\x8b", "a gzip archive"), (b"version https://git-lfs", "a Git")],
)
def test_other_formats_are_named_and_not_unpacked(tmp_path: Path, start: bytes, what: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(start + b"\0" * 100)
    with pytest.raises(ArtifactError, match=f"model.onnx is {what}"):
        read_graph(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"model\.onnx is not a regular file"):
        read_graph(tmp_path / "model.onnx")


def test_a_file_beyond_the_limit_of_protobuf_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(ArtifactError, match=r"no ONNX file can have more than 2,147,483,647: larger models"):
        read_graph(path)


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def test_bodies_read_the_weights_of_the_graphs_around_them() -> None:
    own = numpy_helper.from_array(np.full((4, 4), 2, np.float32), "own")
    deep = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["d"], name="deepest")], "deep", [], [value("d")])
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "own"], ["a"], name="own"),
            helper.make_node("MatMul", ["a", "t"], ["b"], name="turned"),
            helper.make_node("If", ["flag"], ["e"], name="deeper", then_branch=deep, else_branch=deep),
        ],
        "then",
        [],
        [value("b")],
        [own],
    )
    hides = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["own"]),
            helper.make_node("MatMul", ["x", "own"], ["f"], name="activation"),
        ],
        "else",
        [],
        [value("f")],
    )
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("If", ["flag"], ["y"], name="branch", then_branch=then, else_branch=hides),
    ]
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    graph = parse(model_of(nodes, {"w": weight, "flag": np.array(True)}, x=["n", 4], y=["n", 4]))
    assert weighted_layers(graph) == ()
    first, second = sorted((scope for _, scope in Scope(graph).bodies), key=lambda scope: scope.where, reverse=True)
    assert (first.where, second.where) == ("then_branch of If branch", "else_branch of If branch")
    own_layer, turned = (first.layer(node) for node in first.graph.nodes[:2])
    assert own_layer is not None and turned is not None
    np.testing.assert_array_equal(own_layer.weight, np.full((4, 4), 2))
    np.testing.assert_array_equal(turned.weight, weight.T)
    assert (own_layer.consumer_count, turned.consumer_count) == (1, 3)
    (_, deepest), _ = first.bodies
    layer = deepest.layer(deepest.graph.nodes[0])
    assert layer is not None
    assert layer.stored_name == "w"
    assert [second.layer(node) for node in second.graph.nodes] == [None, None]


def test_functions_that_call_themselves_or_explode_are_refused() -> None:
    def doubling(level: int, callee: int) -> onnx.FunctionProto:
        calls = [
            helper.make_node(f"F{callee}", ["a" if i == 0 else "m"], ["m" if i == 0 else "b"], domain="local") for i in (0, 1)
        ]
        return helper.make_function("local", f"F{level}", ["a"], ["b"], calls, [helper.make_opsetid("local", 1)])

    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    leaf = helper.make_function("local", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)
    node = helper.make_node("F30", ["x"], ["y"], domain="local")
    exploding = [leaf, *(doubling(level, level - 1) for level in range(1, 31))]
    data = model_of([node], {}, x=["n"], y=["n"], functions=exploding, opset_imports=opsets)
    with pytest.raises(ArtifactError, match=r"functions stand for 1,073,741,824 operators"):
        parse(data)
    data = model_of([node], {}, x=["n"], y=["n"], functions=[doubling(30, 30)], opset_imports=opsets)
    with pytest.raises(ArtifactError, match=r"function local\.F30 calls itself"):
        parse(data)


@pytest.mark.parametrize(
    ("name", "domain", "opset", "words"),
    [
        ("Tanh", "", 20, r"its function \.Tanh stands for an operator that runtimes have themselves"),
        ("FastGelu", "com.microsoft", 20, r"its function com\.microsoft\.FastGelu stands for an operator"),
        (
            "Own",
            "local",
            17,
            r"local\.Own cannot be inlined: it is written for version 17 of the operators of ai\.onnx, the file for version 20",
        ),
    ],
)
def test_functions_that_runtimes_may_not_take_are_refused(name: str, domain: str, opset: int, words: str) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function(domain, name, ["a"], ["b"], body, [helper.make_opsetid("", opset)])
    node = helper.make_node(name, ["x"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    with pytest.raises((ArtifactError, UsageError), match=words):
        parse(model_of([node], {}, x=["n"], y=["n"], functions=[function], opset_imports=opsets))


def test_versions_of_operators_that_contradict_each_other_are_refused() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 11), helper.make_opsetid("ai.onnx", 20)]
    with pytest.raises(ArtifactError, match="it imports the versions 11 and 20 of the operators"):
        parse(model_of([node], {}, x=["n"], y=["n"], opset_imports=opsets))


def test_sparse_initializers_are_refused() -> None:
    model = residual_pair()[0]
    values = numpy_helper.from_array(np.float32([1]), "lonely")
    indices = numpy_helper.from_array(np.int64([0]), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(UsageError, match="stores lonely as a sparse tensor"):
        parse(model.SerializeToString())
