"""Networks of one operator, from "x" to "y", and what ONNX Runtime makes of them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

# ONNX Runtime computes in float32: sums of at most n = 288 terms of size 1 are off by n 2^-24 = 2e-5 at worst.
TOLERANCE = 2e-5


def make_model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    shape: tuple[Any, ...] = ("batch", 4, 7, 6),
    *,
    opset: int = 20,
) -> bytes:
    """A model from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    # the checker wants the output's rank, which shape inference knows
    data: bytes = onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString()
    return data


def run_runtime(model: bytes, images: Array) -> Array:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": images})
    return np.asarray(output)


def random_floats(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def integers(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def node(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs or ("x",)), ["y"], name="case", **attributes)


SCALAR = np.float32(0.25)
