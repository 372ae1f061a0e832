"""Small ONNX models with everything that baking must not lose, and the masks for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern

PATTERN = NMPattern(n=2, m=4)
Array = npt.NDArray[np.float32]


def values(*shape: int, seed: int = 0) -> Array:
    """Normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def mask_of(name: str, array: npt.NDArray[np.floating], group_axis: int) -> LayerMask:
    """The 2:4 mask of the largest magnitudes."""
    keep = PATTERN.keep_largest(np.abs(array.astype(np.float32)), group_axis=group_axis)
    return LayerMask(weight_name=name, keep=keep, group_axis=group_axis, pattern=PATTERN)


def mask_set(*masks: LayerMask) -> MaskSet:
    return MaskSet(layers={mask.weight_name: mask for mask in masks}, source_sha256="0" * 64, method="magnitude")


def constant_node(name: str, array: npt.NDArray[np.generic]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=f"make_{name}", value=numpy_helper.from_array(array))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, npt.NDArray[np.generic]],
    *,
    x: Sequence[int | str],
    y: Sequence[int | str],
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 20,
) -> onnx.ModelProto:
    """A checked model from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(function.domain, 1) for function in functions)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    onnx.checker.check_model(model)
    return model


def matmul_model(
    weight: Array, *route: onnx.NodeProto, op: str = "MatMul", **weights: npt.NDArray[np.generic]
) -> onnx.ModelProto:
    """x times what `route` makes of the initializer "fc.weight" and calls "w"; the initializer itself without a route."""
    name = "w" if route else "fc.weight"
    node = helper.make_node(op, ["x", name], ["y"], name="fc")
    return model_of([*route, node], {"fc.weight": weight, **weights}, x=["batch", "k"], y=["batch", "m"])


def branching_model(*, captured: bool) -> onnx.ModelProto:
    """A product in both branches of an If, by a weight of the main graph or of the branch."""

    def branch(name: str) -> onnx.GraphProto:
        weight = "fc.weight" if captured else f"{name}.weight"
        own = [] if captured else [numpy_helper.from_array(values(8, 12), weight)]
        node = helper.make_node("MatMul", ["x", weight], [f"{name}.y"], name=f"{name}.fc")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)], own)

    nodes = [
        constant_node("yes", np.array(True)),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=branch("then"), else_branch=branch("else")),
    ]
    weights = {"fc.weight": values(8, 12)} if captured else {}
    return model_of(nodes, weights, x=["batch", 8], y=["batch", 12])


def rich_model() -> onnx.ModelProto:
    """A convolution and a linear layer with all that a user may have put around them."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], name="conv", doc_string="the user's conv", kernel_shape=[3, 3]),
        helper.make_node("Swish7", ["a"], ["b"], name="own", domain="com.example", alpha=1.5, table=[1.0, float("nan")]),
        helper.make_node("Flatten", ["b"], ["c"], name="flatten"),
        helper.make_node("Gemm", ["c", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "the user's graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 3, 3], doc_string="pixels")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(values(8, 8, 3, 3), "conv.weight"), numpy_helper.from_array(values(4, 8), "fc.weight")],
        doc_string="what the graph does",
        value_info=[helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 8, 1, 1])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("com.example", 7), helper.make_opsetid("", 18)],
        ir_version=9,
        producer_name="exporter",
        producer_version="1.2+local",
        doc_string="what the model does",
    )
    model.domain, model.model_version = "org.example", 12
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.initializer[0].doc_string = "trained in May"
    annotation = model.graph.quantization_annotation.add(tensor_name="b")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b_scale")
    for part in (model, model.graph.node[0], model.graph.initializer[0], model.graph.initializer[1], model.graph.value_info[0]):
        part.metadata_props.add(key="zebra", value="the user's")
        part.metadata_props.add(key="author", value="the user")
    onnx.checker.check_model(model)
    return model


def rich_masks() -> MaskSet:
    """Masks for both layers of `rich_model`."""
    return mask_set(mask_of("conv.weight", values(8, 8, 3, 3), 1), mask_of("fc.weight", values(4, 8), 1))


def save_external(model: onnx.ModelProto, path: Path, files: Mapping[str, str]) -> None:
    """Write a model with initializers in data files: name -> file."""
    offsets: dict[str, int] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in stored.graph.initializer:
        location = files.get(tensor.name)
        if location is None:
            continue
        data = tensor.raw_data
        offset = offsets.get(location, 0)
        (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / location).open("ab") as stream:
            stream.write(data)
        offsets[location] = offset + len(data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(len(data)))):
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(stored.SerializeToString())
