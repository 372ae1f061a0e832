"""A small residual network written with onnx.helper alone: a dense file and its sparse twin, as the bake stage makes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.masks import LayerMask, MaskSet, fingerprint
from masksparse_deploy.core.patterns import NMPattern
from tests.models.blocks import magnitude_keep

PATTERN = NMPattern(n=2, m=4)
MASKED_LAYERS = ("layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2")
DENSE_REASONS = {
    "stem": "3 input channels: not a multiple of 4",
    "layer2.shortcut": "excluded by the configuration",
    "fc": "excluded by the configuration",
}

Weights = dict[str, npt.NDArray[np.float32]]


def residual_weights(seed: int = 0, channels: int = 16, classes: int = 10) -> Weights:
    """Normal weights of variance 2 / fan-in, which keeps the variance through ReLUs, and small biases."""
    shapes = {
        "stem": (channels, 3, 3, 3),
        "layer1.conv1": (channels, channels, 3, 3),
        "layer1.conv2": (channels, channels, 3, 3),
        "layer2.conv1": (2 * channels, channels, 3, 3),
        "layer2.conv2": (2 * channels, 2 * channels, 3, 3),
        "layer2.shortcut": (2 * channels, channels, 1, 1),
        "fc": (classes, 2 * channels),
    }
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for layer, shape in shapes.items():
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        weights[f"{layer}.weight"] = generator.standard_normal(shape, dtype=np.float32) * scale
        weights[f"{layer}.bias"] = generator.standard_normal(shape[0], dtype=np.float32) * np.float32(0.1)
    return weights


def residual_masks(seed: int = 0, channels: int = 16, classes: int = 10, pattern: Pattern = PATTERN) -> MaskSet:
    """Masks by magnitude, 2:4 along the input channels or of another pattern, for the four 3x3 convolutions."""
    weights = residual_weights(seed, channels, classes)
    layers = {}
    for layer in MASKED_LAYERS:
        name = f"{layer}.weight"
        keep = magnitude_keep(weights[name], pattern)
        layers[name] = LayerMask(weight_name=name, keep=keep, group_axis=1, pattern=pattern)
    return MaskSet(layers=layers, source_sha256=fingerprint(weights), method="magnitude")


def residual_pair(
    seed: int = 0, channels: int = 16, classes: int = 10, size: int = 8, pattern: Pattern = PATTERN
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The dense and the sparse model: input "images" (batch, 3, size, size), output "logits" (batch, classes), opset 20."""
    weights = residual_weights(seed, channels, classes)
    masks = residual_masks(seed, channels, classes, pattern)
    masked = {
        name: np.where(masks.layers[name].keep, array, np.float32(0)) if name in masks.layers else array
        for name, array in weights.items()
    }
    dense = _residual_model(weights, classes, size)
    sparse = _residual_model(masked, classes, size)
    set_properties(dense, {"masksparse.schema_version": "1", "masksparse.role": "dense"})
    set_properties(
        sparse,
        {
            "masksparse.schema_version": "1",
            "masksparse.role": "sparse",
            "masksparse.method": masks.method,
            "masksparse.mask_set_sha256": masks.digest,
            "masksparse.source_sha256": masks.source_sha256,
        },
    )
    initializers = {tensor.name: tensor for tensor in sparse.graph.initializer}
    for node in sparse.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        name = node.input[1]
        if name in masks.layers:
            properties = {
                "masksparse.pattern": str(pattern),
                "masksparse.group_axis": "1",
                "masksparse.mask_sha256": masks.layers[name].digest,
                "masksparse.density": repr(float(np.count_nonzero(masked[name]) / masked[name].size)),
            }
        else:
            properties = {"masksparse.dense_reason": DENSE_REASONS[node.name]}
        set_properties(node, properties)
        set_properties(initializers[name], properties)
    return dense, sparse


def at_opset_17(path: Path) -> Path:
    """Have a file of these models declare the last operator set that TensorRT 8.6 reads: their operators are the same there."""
    model = onnx.load(path)
    model.opset_import[0].version, model.ir_version = 17, 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def set_properties(proto: Any, properties: Mapping[str, str]) -> None:
    """Replace the metadata_props of a model, node or tensor."""
    del proto.metadata_props[:]
    for key, value in sorted(properties.items()):
        proto.metadata_props.add(key=key, value=value)


def _residual_model(weights: Weights, classes: int, size: int) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []

    def conv(layer: str, x: str, *, kernel: int, stride: int = 1) -> str:
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{layer}.weight", f"{layer}.bias"],
                [f"{layer}.out"],
                name=layer,
                kernel_shape=[kernel, kernel],
                strides=[stride, stride],
                pads=[kernel // 2] * 4,
            )
        )
        return f"{layer}.out"

    def simple(op: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    x = simple("Relu", "stem.relu", conv("stem", "images", kernel=3))
    x = simple("MaxPool", "pool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = simple("Relu", "layer1.relu1", conv("layer1.conv1", x, kernel=3))
    x = simple("Relu", "layer1.relu2", simple("Add", "layer1.add", conv("layer1.conv2", y, kernel=3), x))
    y = simple("Relu", "layer2.relu1", conv("layer2.conv1", x, kernel=3, stride=2))
    shortcut = conv("layer2.shortcut", x, kernel=1, stride=2)
    x = simple("Relu", "layer2.relu2", simple("Add", "layer2.add", conv("layer2.conv2", y, kernel=3), shortcut))
    x = simple("Flatten", "flatten", simple("GlobalAveragePool", "average", x))
    nodes.append(helper.make_node("Gemm", [x, "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1))

    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
