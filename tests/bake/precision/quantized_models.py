"""Small models for the tests of INT8 files, from ONNX's text form, and what the tests ask of quantized ones."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.parser
import onnxruntime
from onnx import numpy_helper

from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph
from tests.models.make_onnx import residual_pair

Array = npt.NDArray[np.float32]


def images(count: int = 40, shape: Sequence[int] = (3, 8, 8), seed: int = 0) -> Array:
    """Standard normal images, float32 (count, *shape)."""
    return np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)


def parsed(model: onnx.ModelProto) -> Graph:
    """The checked file as the checkers read it."""
    onnx.checker.check_model(model, full_check=True)
    return parse_graph(model.SerializeToString(deterministic=True), name="int8.onnx")


def outputs(model: onnx.ModelProto, batch: Array) -> Array:
    """What ONNX Runtime computes."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return result


def in_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy that says another opset; the operators of these models mean the same in 13 to 20."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = opset
    return copy


@functools.cache
def quantized_pair(opset: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The residual network and its sparse twin in INT8; not to be changed."""
    dense, sparse = residual_pair()
    return quantize(in_opset(dense, opset), images()), quantize(in_opset(sparse, opset), images())


def network(body: str, weights: Mapping[str, Sequence[int]], *, shape: str = "b,4,6,6", opset: int = 20) -> onnx.ModelProto:
    """A model with the input x, the output y and normal weights of the given shapes, from the text of its operators."""
    text = f"""<ir_version: 9, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float y) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    generator = np.random.default_rng(1)
    for name, lengths in weights.items():
        array = generator.standard_normal(tuple(lengths), dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type.lower()}{index}"
    return onnx.shape_inference.infer_shapes(model)


def quantized_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that a QuantizeLinear reads, weights left out."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"} - stored


def stored(model: onnx.ModelProto, name: str) -> npt.NDArray[Any]:
    """The values of an initializer."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
