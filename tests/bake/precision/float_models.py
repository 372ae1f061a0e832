"""Networks in FP16 and BF16, and what ONNX Runtime makes of them."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx_ir as ir
import onnxruntime

from masksparse_deploy.bake.precision.floats import ConvertFloats
from tests.models.make_onnx import residual_pair

Array = npt.NDArray[Any]
Precision = Literal["fp16", "bf16"]


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
