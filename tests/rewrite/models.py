"""Small convolution networks with 1xN blocks of zeros, written with onnx.helper alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph import annotations as keys

Array = npt.NDArray[Any]

SIZE = 6
IMAGES = np.random.default_rng(0).standard_normal((3, 4, SIZE, SIZE), dtype=np.float32)


def blocked_weight(
    shape: tuple[int, ...], pattern: BlockPattern, seed: int = 0, dtype: Any = np.float32
) -> npt.NDArray[np.floating]:
    """Normal weights that keep blocks drawn at random, as many as the pattern says."""
    random = np.random.default_rng(seed)
    groups, in_channels = shape[0] // pattern.n, shape[1]
    scores = random.random((groups, in_channels))
    blocks = np.zeros(scores.shape, dtype=np.bool_)
    if pattern.uniform:
        np.put_along_axis(blocks, np.argsort(scores, axis=1)[:, : pattern.kept_channels(in_channels)], True, axis=1)
    else:
        blocks.ravel()[np.argsort(scores, axis=None)[: pattern.kept_blocks(shape[0], in_channels)]] = True
    weight = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.where(pattern.expand(blocks, shape), weight, 0).astype(dtype)


def conv(name: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """A Conv with a bias, 3x3 and padded unless the attributes say otherwise; None leaves one out."""
    geometry = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], **attributes}
    given = {key: value for key, value in geometry.items() if value is not None}
    return helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [y], name=name, **given)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    patterns: Mapping[str, BlockPattern | str],
    *,
    channels: int = 4,
    size: int | str = SIZE,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A checked model from "x" (batch, channels, size, size) to "y", annotated as baking does; patterns by node name."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", element, ["batch", channels, size, size])],
        [helper.make_tensor_value_info("y", element, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.name in patterns:
            for message in (node, weights[node.input[1]]):
                message.metadata_props.add(key=keys.PATTERN, value=str(patterns[node.name]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def layer_constants(name: str, weight: Array, seed: int = 9) -> dict[str, Array]:
    """A weight and a bias for `conv`."""
    bias = np.random.default_rng(seed).standard_normal(len(weight)).astype(weight.dtype)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def residual_blocks(pattern: BlockPattern, **changes: Any) -> onnx.ModelProto:
    """A dense stem to 16 channels, two 1xN convolutions with a residual sum, a strided one and a pooling."""
    nodes = [
        conv("stem", "x", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="stem.relu"),
        conv("conv1", "b", "c"),
        helper.make_node("Relu", ["c"], ["d"], name="conv1.relu"),
        conv("conv2", "d", "e"),
        helper.make_node("Add", ["e", "b"], ["f"], name="add"),
        helper.make_node("Relu", ["f"], ["g"], name="add.relu"),
        conv("conv3", "g", "h", strides=[2, 2], **changes),
        helper.make_node("GlobalAveragePool", ["h"], ["y"], name="pool"),
    ]
    constants = layer_constants("stem", np.random.default_rng(1).standard_normal((16, 4, 3, 3), dtype=np.float32))
    for seed, name in enumerate(("conv1", "conv2", "conv3"), start=2):
        shape = (32 if name == "conv3" else 16, 16, 3, 3)
        constants |= layer_constants(name, blocked_weight(shape, pattern, seed))
    return model_of(nodes, constants, dict.fromkeys(("conv1", "conv2", "conv3"), pattern))


def with_positions(model: onnx.ModelProto, layers: Sequence[str], seed: int = 0) -> onnx.ModelProto:
    """The model with positions of some convolutions masked, drawn at random, as baking does it."""
    random = np.random.default_rng(seed)
    biases = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name not in layers:
            continue
        output, keep, constant = node.output[0], f"{node.name}.keep", f"{node.name}.constant"
        node.output[0] = f"{output}.all"
        shape = next(value for value in model.graph.value_info if value.name == output).type.tensor_type.shape
        size = [dim.dim_value for dim in shape.dim[2:]]
        arrays = {keep: random.random((1, 1, *size)) > 0.4, constant: biases[node.input[2]].reshape(1, -1, 1, 1)}
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
        where = helper.make_node("Where", [keep, node.output[0], constant], [output], name=f"{node.name}.where")
        where.metadata_props.add(key=keys.POSITIONS, value="0" * 64)
        nodes.append(where)
    rest = helper.make_graph(nodes, "graph", model.graph.input, model.graph.output, model.graph.initializer)
    whole = helper.make_model(rest, opset_imports=model.opset_import, ir_version=model.ir_version)
    return onnx.shape_inference.infer_shapes(whole, strict_mode=True)


def run(model: onnx.ModelProto, images: Array = IMAGES) -> Array:
    """The output "y" of ONNX Runtime, every operator as written: none is fused into another or left out."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(["y"], {"x": images})
    return np.asarray(output)


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, images: Array = IMAGES) -> None:
    """Only products with zeros are left out, but what remains may be added up in another order.

    Two orders of at most 16 * 9 float32 terms differ by 2 * 144 * 2^-24 of the sum of magnitudes at most. The networks here
    keep the sums of magnitudes of three layers together below 30 times the largest output, which both are divided by.
    """
    expected, found = run(before, images), run(after, images)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * 144 * 2.0**-24 * 30 * np.abs(expected).max())
