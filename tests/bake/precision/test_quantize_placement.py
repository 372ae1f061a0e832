"""Where Q/DQ stand: around what TensorRT fuses, never within it; and what stays in float says why."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.precision.placement import place_quantizers
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.bake.precision.quantized_check import check_quantized, float_layers
from tests.bake.precision.quantized_models import images, network, parsed, quantized_pair, quantized_tensors, stored

OUTPUT = "gives float: it is an output of the network"


def quantized(body: str, weights: Mapping[str, Sequence[int]], *, shape: Sequence[int] = (4, 6, 6)) -> onnx.ModelProto:
    text = ",".join(["b", *map(str, shape)])
    model = quantize(network(body, weights, shape=text), images(8, shape))
    assert check_quantized(parsed(model)) == ()
    onnxruntime.InferenceSession(model.SerializeToString())
    return model


def test_the_residual_network() -> None:
    model = quantized_pair(20)[1]
    assert quantized_tensors(model) == {
        "images",
        "stem.relu.out",
        "pool.out",
        "layer1.relu1.out",
        "layer1.relu2.out",
        "layer2.relu1.out",
        "layer2.shortcut.out",  # the smaller of the two convolutions that the addition joins
        "layer2.relu2.out",
        "flatten.out",
    }
    # Pooling selects values, which its own scale would round once more
    assert stored(model, "pool.out_scale") == stored(model, "stem.relu.out_scale")
    assert stored(model, "flatten.out_scale") != stored(model, "layer2.relu2.out_scale")


@pytest.mark.parametrize("activation", ["Relu (c)", "Clip (c)", "LeakyRelu (c)", "HardSwish (c)", "Gelu (c)"])
def test_an_activation_stays_with_its_convolution(activation: str) -> None:
    model = quantized(f"c = Conv (x, w)\n d = {activation}\n y = Conv (d, v)", {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)})
    assert quantized_tensors(model) == {"x", "d"}


def test_what_is_not_fused_reads_and_gives_its_own() -> None:
    model = quantized("c = Conv (x, w)\n d = Softmax (c)\n y = Conv (d, v)", {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)})
    assert quantized_tensors(model) == {"x", "c", "d"}


def test_a_product_with_its_own_sigmoid_stays_with_its_convolution() -> None:
    body = "c = Conv (x, w)\n s = Sigmoid (c)\n d = Mul (s, c)\n y = Conv (d, v)"
    model = quantized(body, {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)})
    assert quantized_tensors(model) == {"x", "d"}
    body = "c = Conv (x, w)\n s = Sigmoid (c)\n d = Mul (s, c)\n e = Conv (d, v)\n y = Add (e, s)"
    assert "c" in quantized_tensors(quantized(body, {"w": (8, 4, 3, 3), "v": (8, 8, 1, 1)}))


def test_a_residual_addition_reads_one_input_in_int8() -> None:
    body = "c = Conv <pads=[1,1,1,1]> (x, w)\n a = Add (x, c)\n d = Relu (a)\n y = Conv (d, v)"
    assert quantized_tensors(quantized(body, {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)})) == {"x", "d"}


def test_of_two_convolutions_the_larger_is_fused_and_the_first_of_equals() -> None:
    for first, second, expected in ((3, 1, "t"), (1, 3, "s"), (1, 1, "t")):
        body = f"""s = Conv <pads=[{first // 2},{first // 2},{first // 2},{first // 2}]> (x, w)
            t = Conv <pads=[{second // 2},{second // 2},{second // 2},{second // 2}]> (x, v)
            a = Add (s, t)  y = MaxPool <kernel_shape=[2,2]> (a)"""
        model = quantized(body, {"w": (4, 4, first, first), "v": (4, 4, second, second)})
        assert quantized_tensors(model) == {"x", expected, "a"}


def test_an_addition_of_the_same_tensor_and_one_of_many_readers() -> None:
    body = "c = Conv (x, w)\n a = Add (c, c)\n y = Conv (a, v)"
    assert quantized_tensors(quantized(body, {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)})) == {"x", "c", "a"}
    body = "c = Conv (x, w)\n r = Relu (c)\n d = Conv (r, v)\n e = Conv (r, u)\n a = Add (d, r)\n y = Concat <axis=1> (a, e)"
    model = quantized(body, {"w": (8, 4, 3, 3), "v": (8, 8, 1, 1), "u": (8, 8, 1, 1)})
    assert quantized_tensors(model) == {"x", "r", "a", "e"}


def test_a_matrix_product_with_a_bias_of_its_own() -> None:
    body = "m = MatMul (x, w)\n a = Add (b, m)\n d = Relu (a)\n y = MatMul (d, v)"
    model = quantized(body, {"w": (6, 8), "b": (8,), "v": (8, 3)}, shape=(5, 6))
    assert quantized_tensors(model) == {"x", "d"}
    assert stored(model, "w_scale").shape == (8,)
    body = "m = MatMul (x, w)\n a = Add (m, b)\n s = Add (a, x)\n y = Relu (s)\n"
    assert "a" not in quantized_tensors(quantized(body, {"w": (6, 6), "b": (6,)}, shape=(5, 6)))


def test_the_axis_of_output_channels_follows_the_operator() -> None:
    for body, weight, length in (
        ("y = Conv (x, w)", (8, 4, 3, 3), 8),
        ("y = Conv <group=2> (x, w)", (8, 2, 3, 3), 8),
        ("y = ConvTranspose (x, w)", (4, 8, 3, 3), 8),
        ("f = Flatten (x)\n y = Gemm <transB=1> (f, w)", (5, 144), 5),
        ("f = Flatten (x)\n y = Gemm (f, w)", (144, 5), 5),
        ("f = Flatten (x)\n y = MatMul (f, w)", (144, 5), 5),
        ("y = MatMul (x, w)", (4, 6, 5), 5),
    ):
        model = quantized(body, {"w": weight})
        assert stored(model, "w_scale").shape == (length,), body
        assert list(float_layers(parsed(model)).values()) == [OUTPUT]


@pytest.mark.parametrize("opset", [17, 20])
def test_values_that_only_move_keep_their_scale(opset: int) -> None:
    # The shortcut of a CIFAR ResNet: every other pixel, zeros for new channels
    body = """c = Conv <pads=[1,1,1,1]> (x, w)  r = Relu (c)
        s = Slice (r, start, end, axes, step)  p = Pad (s, padding)
        d = Conv <pads=[1,1,1,1], strides=[2,2]> (r, v)
        a = Add (d, p)  y = GlobalAveragePool (a)"""
    model = network(body, {"w": (4, 4, 3, 3), "v": (8, 4, 3, 3)}, opset=opset)
    for name, values in (
        ("start", [0, 0]),
        ("end", [100, 100]),
        ("axes", [2, 3]),
        ("step", [2, 2]),
        ("padding", [0, 2, 0, 0, 0, 2, 0, 0]),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    result = quantize(model, images(8, (4, 6, 6)))
    assert check_quantized(parsed(result)) == ()
    assert quantized_tensors(result) == {"x", "r", "p", "a"}
    assert stored(result, "p_scale") == stored(result, "r_scale")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(30), "thirty"))
    next(node for node in model.graph.node if node.op_type == "Pad").input.append("thirty")
    result = quantize(model, images(8, (4, 6, 6)))
    assert stored(result, "p_scale") == np.float32(30) / np.float32(127) != stored(result, "r_scale")


def test_an_output_of_the_network_stays_as_it_is() -> None:
    model = network("c = Conv (x, w)\n y = Conv (c, v)", {"w": (8, 4, 3, 3), "v": (4, 8, 1, 1)})
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["b", 8, 4, 4]))
    result = quantize(model, images(8, (4, 6, 6)))
    assert quantized_tensors(result) == {"x", "c"}
    assert [value.name for value in result.graph.output] == ["y", "c"]
    assert check_quantized(parsed(result)) == ()


def reasons(model: onnx.ModelProto, shape: Sequence[int] = (4, 6, 6), **options: Sequence[str]) -> dict[str, str]:
    graph = parsed(quantize(model, images(8, shape), **options))
    assert check_quantized(graph) == ()
    return {name: reason for name, reason in float_layers(graph).items() if reason.startswith("in float")}


def test_layers_that_stay_in_float_say_why() -> None:
    weights = {"w": (4, 4, 3, 3)}
    assert reasons(network("y = Conv (x, w)", weights), exclude=["conv0"]) == {"conv0": "in float: excluded from quantization"}
    turned = network("t = Transpose <perm=[1,0,2,3]> (w)\n y = Conv (x, t)", weights)
    assert reasons(turned) == {"conv1": "in float: its weight is computed in the graph (Transpose)"}
    used = network("c = Conv (x, w)\n m = ReduceMax (w)\n y = Add (c, m)", weights)
    assert reasons(used) == {"conv0": "in float: its weight is also read by reducemax1, in another way"}
    both = network("c = Conv (x, w)\n y = ConvTranspose (c, w)", weights)
    assert set(reasons(both)) == {"conv0", "convtranspose1"}
    given = network("y = Conv (x, w)", weights)
    given.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weights["w"]))
    assert reasons(given) == {"conv0": "in float: its weight is an input or output of the network"}
    constant = network("c = Conv (k, w)\n y = Add (x, c)", {"w": (4, 4, 3, 3), "k": (1, 4, 8, 8)})
    assert reasons(constant) == {"conv0": "in float: its input is a constant"}
    vector = network("y = MatMul (x, w)", {"w": (6,)})
    assert reasons(vector) == {"matmul0": "in float: its weight is a vector, without output channels"}
    half = network("h = Cast <to=10> (x)\n c = Conv (h, w)\n y = Cast <to=1> (c)", {})
    half.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float16), "w"))
    half = onnx.shape_inference.infer_shapes(half)
    assert reasons(half) == {"conv1": "in float: its weight is stored as FLOAT16, not FLOAT"}


def test_a_product_of_two_activations_is_no_layer() -> None:
    model = network("t = Transpose <perm=[0,1,3,2]> (x)\n y = MatMul (x, t)", {})
    result = quantize(model, images(8, (4, 6, 6)))
    assert [node.op_type for node in result.graph.node] == ["Transpose", "MatMul"]
    assert float_layers(parsed(result)) == {}


def test_a_layer_in_the_body_of_another_operator() -> None:
    model = network("c = Conv <pads=[1,1,1,1]> (x, w)\n y = Relu (c)", {"w": (4, 4, 3, 3)})
    body = helper.make_graph(
        [helper.make_node("Conv", ["c", "w"], ["inner"], name="inside", pads=[1, 1, 1, 1])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["b", 4, 6, 6])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node[1].CopyFrom(helper.make_node("If", ["yes"], ["y"], name="if", then_branch=body, else_branch=body))
    result = quantize(model, images(8, (4, 6, 6)))
    (inside,) = result.graph.node[-1].attribute[0].g.node
    assert [entry.value for entry in inside.metadata_props] == ["inside the body of another operator"]
    # The weight has a reader that would not understand integers
    assert float_layers(parsed(result)) == {"conv0": "in float: its weight is also read by inside, in another way"}


def test_a_network_deeper_than_python_recurses() -> None:
    chain = "\n".join(f"v{index + 1} = Sin (v{index})" for index in range(1500))
    body = f"c = Conv <pads=[1,1,1,1]> (x, w)\n v0 = Relu (c)\n {chain}\n a = Add (v1500, x)\n y = Conv (a, u)"
    model = network(body, {"w": (4, 4, 3, 3), "u": (4, 4, 1, 1)})
    placement = place_quantizers(ir.from_proto(model))
    assert [value.name for value in placement.tensors] == ["x", "v0", "a"]
