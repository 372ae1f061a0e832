"""Small ONNX files whose layers have groups that are not full, and what can stand between them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference

from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern

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


def chain(opset: int = 20) -> Model:
    """Images to 6, to 10, to 7 channels; the last two layers have groups that are not full."""
    model = Model(opset).conv("stem", 3, 6).op("Relu", "relu1").conv("a", 6, 10).op("Relu", "relu2")
    return (
        model.op("MaxPool", "max", kernel_shape=[2, 2], strides=[2, 2]).conv("b", 10, 7, bias=False).pooled().gemm("head", 7, 5)
    )


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
