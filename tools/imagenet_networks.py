"""ResNet-18, ResNet-50 and MobileNetV1 for 224 x 224 pixels as ONNX files, random weights, batch norm folded; needs no torch.

Speed does not depend on the weights' values. These have the variance of He et al. 2015, so that activations neither vanish nor
overflow, which would cost time of its own. `with_blocks` zeroes 1xN blocks drawn at random.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph import annotations as keys

__all__ = ["INPUT_SHAPE", "NETWORKS", "mobilenet_v1", "resnet18", "resnet50", "with_blocks"]

INPUT_SHAPE = (1, 3, 224, 224)
CLASS_COUNT = 1000


class _Network:
    """An ONNX graph that grows by one layer at a time; every method returns the name of the layer's output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def convolve(self, x: str, name: str, channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1) -> str:
        """A convolution from channels[0] to channels[1] channels, padded by half the kernel, with a bias."""
        read = channels[0] // groups
        weight = self._normal((channels[1], read, kernel, kernel), fan_in=read * kernel**2)
        names = self._constants(name, weight, self._normal((channels[1],), fan_in=200))
        geometry = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        return self.add("Conv", [x, *names], name, **geometry)

    def relu(self, x: str, name: str) -> str:
        return self.add("Relu", [x], f"{name}.relu")

    def finish(self, x: str, channels: int, name: str) -> onnx.ModelProto:
        """Pooling, the classifier, and the model."""
        pooled = self.add("Flatten", [self.add("GlobalAveragePool", [x], "pool")], "flat", axis=1)
        names = self._constants("fc", self._normal((CLASS_COUNT, channels), fan_in=channels), np.zeros(CLASS_COUNT, np.float32))
        self.add("Gemm", [pooled, *names], "fc", transB=1)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, INPUT_SHAPE)
        logits = helper.make_tensor_value_info("fc.out", TensorProto.FLOAT, [1, CLASS_COUNT])
        graph = helper.make_graph(self._nodes, name, [image], [logits], self._initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)

    def _constants(self, name: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> tuple[str, str]:
        names = (f"{name}.weight", f"{name}.bias")
        arrays = zip(names, (weight, bias), strict=True)
        self._initializers += [numpy_helper.from_array(array, constant) for constant, array in arrays]
        return names

    def _normal(self, shape: tuple[int, ...], fan_in: int) -> npt.NDArray[np.float32]:
        return self._random.standard_normal(shape, dtype=np.float32) * np.float32((2 / fan_in) ** 0.5)


def resnet18(seed: int = 0) -> onnx.ModelProto:
    """He et al. 2016, with 1x1 convolutions where the shape changes (option B); 1.8 billion multiply-accumulates."""
    return _resnet("resnet18", (2, 2, 2, 2), bottleneck=False, seed=seed)


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """He et al. 2016 with the stride in the 3x3 convolution, as torchvision has it; 4.1 billion multiply-accumulates."""
    return _resnet("resnet50", (3, 4, 6, 3), bottleneck=True, seed=seed)


def mobilenet_v1(seed: int = 0) -> onnx.ModelProto:
    """Howard et al. 2017, width 1, with ReLU; 0.57 billion multiply-accumulates."""
    network = _Network(seed)
    x = network.relu(network.convolve("image", "stem", (3, 32), 3, stride=2), "stem")
    channels = 32
    widths = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    for index, (width, stride) in enumerate(zip(widths, (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), strict=True)):
        depthwise, pointwise = f"layers.{index}.depthwise", f"layers.{index}.pointwise"
        x = network.convolve(x, depthwise, (channels, channels), 3, stride=stride, groups=channels)
        x = network.convolve(network.relu(x, depthwise), pointwise, (channels, width), 1)
        x, channels = network.relu(x, pointwise), width
    return network.finish(x, channels, "mobilenet_v1")


NETWORKS: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v1": mobilenet_v1,
}


def with_blocks(model: onnx.ModelProto, pattern: BlockPattern, seed: int = 0) -> onnx.ModelProto:
    """A copy in which every eligible convolution keeps as many blocks as `pattern` allows, drawn at random, and says so.

    Left dense, as by Xiang et al. 2023: the stem, the classifier, depthwise convolutions, and in ResNet-18 the 1x1 convolutions
    of the shortcuts; also what N does not divide.
    """
    random = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _say(copy, {keys.SCHEMA_VERSION: keys.SCHEMA, keys.ROLE: keys.ROLE_SPARSE})
    weights = {initializer.name: initializer for initializer in copy.graph.initializer}
    left_dense = ("stem", "shortcut") if model.graph.name == "resnet18" else ("stem",)
    for node in copy.graph.node:
        if node.op_type != "Conv" or node.name.endswith(left_dense):
            continue
        weight = weights[node.input[1]]
        values = numpy_helper.to_array(weight)
        if values.shape[1] == 1 or values.shape[0] % pattern.n:
            continue
        keep = pattern.expand(_drawn(pattern, values.shape, random), values.shape)
        weight.CopyFrom(numpy_helper.from_array(np.where(keep, values, np.float32(0)), weight.name))
        for message in (node, weight):
            _say(message, {keys.PATTERN: str(pattern), keys.GROUP_AXIS: "1", keys.DENSITY: repr(float(keep.mean()))})
    return copy


def _drawn(pattern: BlockPattern, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which blocks are kept: bool (out_channels / N, in_channels), every choice equally likely."""
    groups, in_channels = shape[0] // pattern.n, shape[1]
    scores = random.random((groups, in_channels) if pattern.uniform else (1, groups * in_channels))
    count = pattern.kept_channels(in_channels) if pattern.uniform else pattern.kept_blocks(shape[0], in_channels)
    ranks = np.argsort(np.argsort(scores, axis=1), axis=1)
    return np.asarray(ranks < count).reshape(groups, in_channels)


def _say(message: onnx.ModelProto | onnx.NodeProto | onnx.TensorProto, properties: Mapping[str, str]) -> None:
    for key, value in properties.items():
        message.metadata_props.add(key=key, value=value)


def _resnet(name: str, block_counts: tuple[int, ...], *, bottleneck: bool, seed: int) -> onnx.ModelProto:
    network = _Network(seed)
    x = network.relu(network.convolve("image", "stem", (3, 64), 7, stride=2), "stem")
    x = network.add("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, block_count in enumerate(block_counts):
        for index in range(block_count):
            block, width = f"layers.{stage}.{index}", 64 << stage
            stride = 2 if stage and not index else 1
            # (output channels, kernel, stride) of each convolution
            layers = [(width, 3, stride), (width, 3, 1)]
            if bottleneck:
                layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            y, read, wide = x, channels, layers[-1][0]
            for number, (out, kernel, step) in enumerate(layers, start=1):
                y = network.convolve(y, f"{block}.conv{number}", (read, out), kernel, stride=step)
                y = network.relu(y, f"{block}.conv{number}") if number < len(layers) else y
                read = out
            if stride != 1 or channels != wide:
                x = network.convolve(x, f"{block}.shortcut", (channels, wide), 1, stride=stride)
            x, channels = network.relu(network.add("Add", [y, x], f"{block}.add"), f"{block}.add"), wide
    return network.finish(x, channels, name)
