"""Random networks written with onnx.helper, each as a dense file and a sparse twin."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.certify.pairing import Pair, pair_graphs
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.reader import parse_graph

Array = npt.NDArray[Any]

SIZE = 7
CHANNELS = 4
CLASSES = 3


class Builder:
    """Collects nodes and constants; every method returns the name of the new tensor."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def constant(self, array: Array, *, what: str = "constant") -> str:
        name = f"{what}{len(self.constants)}"
        self.constants[name] = array
        return name

    def number(self, value: float) -> str:
        """A scalar, the same in both files."""
        return self.constant(np.array(value, dtype=np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def random(self, *shape: int) -> str:
        return self.constant(self.generator.standard_normal(shape, dtype=np.float32))

    def conv(self, x: str, in_channels: int, out_channels: int, kernel: int = 3, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        attributes.setdefault("pads", [kernel // 2] * 4)
        name = f"conv{len(self.nodes)}.weight"
        shape = (out_channels, in_channels // groups, kernel, kernel)
        self.constants[name] = self.generator.standard_normal(shape, dtype=np.float32) / np.float32(kernel)
        return self.node("Conv", x, name, self.random(out_channels), **attributes)

    def model(self, output: str, shape: tuple[Any, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["y"], name="end")]
            if self.nodes[-1].op_type not in ("Gemm", "MatMul")
            else self._renamed(output),
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", CHANNELS, SIZE, SIZE))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _renamed(self, output: str) -> list[onnx.NodeProto]:
        self.nodes[-1].output[0] = "y"
        return self.nodes


def layer(build: Builder, kind: str, x: str) -> str:
    """One operator that keeps CHANNELS channels."""
    c = CHANNELS
    if kind == "conv":
        return build.conv(x, c, c)
    if kind == "strided conv":
        return build.conv(x, c, c, strides=[2, 2])
    if kind == "dilated conv":
        return build.conv(x, c, c, dilations=[2, 2], pads=[2, 2, 2, 2])
    if kind == "grouped conv":
        return build.conv(x, c, c, group=2)
    if kind == "residual":
        inside = build.conv(build.node("Relu", build.conv(x, c, c)), c, c)
        return build.node("Relu", build.node("Add", inside, x))
    if kind == "concat":
        both = build.node("Concat", build.conv(x, c, c, kernel=1), x, axis=1)
        return build.conv(both, 2 * c, c, kernel=1)
    if kind == "add constant":
        return build.node("Add", x, build.random(c, 1, 1))
    if kind == "gate":  # (channels, 1, 1) is broadcast over the image
        return build.node("Add", build.node("Sigmoid", build.node("GlobalAveragePool", x)), x)
    if kind == "batch normalization":
        variance = build.constant(np.abs(build.generator.standard_normal(c, dtype=np.float32)) + np.float32(0.5))
        return build.node("BatchNormalization", x, build.random(c), build.random(c), build.random(c), variance)
    if kind == "clip":
        limits = [build.constant(np.array(value, dtype=np.float32)) for value in (0, 6)]
        return build.node("Clip", x, *limits)
    if kind == "pad and slice":
        amounts = build.constant(np.array([0, 0, 1, 0, 0, 0, 0, 2], dtype=np.int64))
        padded = build.node("Pad", x, amounts, build.constant(np.array(0.5, dtype=np.float32)))
        indices = [build.constant(np.array(values, dtype=np.int64)) for values in ([1], [2**31], [3], [1])]
        return build.node("Slice", padded, *indices)
    if kind == "max pool":
        return build.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    if kind == "average pool":
        return build.node("AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    if kind in MORE:
        return MORE[kind](build, x)
    return build.node(kind, x, **({"alpha": -1.5} if kind == "LeakyRelu" else {}))


def squeeze_and_excite(build: Builder, x: str) -> str:
    pooled = build.node("ReduceMean", x, build.integers(2, 3))
    inside = build.node("Relu", build.conv(pooled, CHANNELS, 4, kernel=1))
    return build.node("Mul", x, build.node("Sigmoid", build.conv(inside, 4, CHANNELS, kernel=1)))


def silu(build: Builder, x: str) -> str:
    return build.node("Mul", x, build.node("Sigmoid", x))


def swish(build: Builder, x: str) -> str:
    gate = build.node("Sigmoid", build.node("Mul", build.number(-1.7), x))
    return build.node("Div", build.node("Mul", gate, x), build.number(0.4))


def hard_swish(build: Builder, x: str) -> str:
    gate = build.node("Clip", build.node("Add", x, build.number(3)), build.number(0), build.number(6))
    return build.node("Div", build.node("Mul", x, gate), build.number(6))


def hard_swish_by_gate(build: Builder, x: str) -> str:
    return build.node("Mul", build.node("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)


def gelu(build: Builder, x: str) -> str:
    error = build.node("Erf", build.node("Div", x, build.number(math.sqrt(2))))
    return build.node("Mul", build.node("Mul", x, build.number(0.5)), build.node("Add", error, build.number(1)))


def gelu_by_tanh(build: Builder, x: str) -> str:
    cube = build.node("Mul", build.number(0.044715), build.node("Pow", x, build.number(3)))
    inside = build.node("Mul", build.number(math.sqrt(2 / math.pi)), build.node("Add", x, cube))
    gate = build.node("Mul", build.number(0.5), build.node("Add", build.node("Tanh", inside), build.number(1)))
    return build.node("Mul", x, gate)


def mish(build: Builder, x: str) -> str:
    return build.node("Mul", x, build.node("Tanh", build.node("Softplus", x)))


def softplus(build: Builder, x: str) -> str:
    # PyTorch's threshold is 20; at 2 its step is high enough to be seen
    return build.node("Where", build.node("Greater", x, build.number(2)), x, build.node("Softplus", x))


def softsign(build: Builder, x: str) -> str:
    return build.node("Div", x, build.node("Add", build.node("Abs", x), build.number(1)))


def own_product(build: Builder, x: str) -> str:
    return build.node("Mul", build.conv(x, CHANNELS, CHANNELS, kernel=1), x)


def scaled(build: Builder, x: str) -> str:
    moved = build.node("Sub", build.node("Mul", build.random(CHANNELS, 1, 1), x), build.random(CHANNELS, 1, 1))
    divisor = build.constant(np.abs(build.generator.standard_normal((CHANNELS, 1, 1), dtype=np.float32)) + np.float32(0.5))
    return build.node("Div", moved, divisor)


def broadcast_scale(build: Builder, x: str) -> str:
    return build.node("Mul", build.node("GlobalMaxPool", x), build.random(CHANNELS, 2, 3))


def upsampled(build: Builder, x: str, mode: str) -> str:
    scales = build.constant(np.array([1, 1, 2, 1.5], dtype=np.float32), what="fixed")
    return build.node("Resize", x, "", scales, mode=mode)


def shuffled(build: Builder, x: str) -> str:
    """Channels in two groups, as ShuffleNet mixes them, the shape computed from the batch."""
    lengths = build.node("Concat", build.node("Shape", x, start=0, end=1), build.integers(2, CHANNELS // 2, -1), axis=0)
    turned = build.node("Transpose", build.node("Reshape", x, lengths), perm=[0, 2, 1, 3])
    like = build.node("Concat", build.node("Shape", x, start=0, end=2), build.node("Shape", x, start=2), axis=0)
    return build.node("Reshape", turned, like)


def split(build: Builder, x: str) -> str:
    build.nodes.append(helper.make_node("Split", [x], [f"a{len(build.nodes)}", f"b{len(build.nodes)}"], axis=1, num_outputs=2))
    first, second = build.nodes[-1].output
    return build.node("Concat", build.node("Relu", second), first, axis=1)


def layer_normalization(build: Builder, x: str) -> str:
    turned = build.node("Transpose", x, perm=[0, 2, 3, 1])
    normal = build.node("LayerNormalization", turned, build.random(CHANNELS), build.random(CHANNELS), axis=-1, epsilon=1e-3)
    return build.node("Transpose", normal, perm=[0, 3, 1, 2])


MORE: dict[str, Callable[[Builder, str], str]] = {
    "squeeze and excite": squeeze_and_excite,
    "silu": silu,
    "swish": swish,
    "hard swish": hard_swish,
    "hard swish by gate": hard_swish_by_gate,
    "gelu": gelu,
    "gelu by tanh": gelu_by_tanh,
    "mish": mish,
    "softplus": softplus,
    "softsign": softsign,
    "own product": own_product,
    "scaled": scaled,
    "broadcast scale": broadcast_scale,
    "nearest": lambda build, x: upsampled(build, x, "nearest"),
    "linear": lambda build, x: upsampled(build, x, "linear"),
    "shuffled": shuffled,
    "split": split,
    "layer normalization": layer_normalization,
    "instance normalization": lambda build, x: build.node(
        "InstanceNormalization", x, build.random(CHANNELS), build.random(CHANNELS), epsilon=1e-3
    ),
    "ceil max pool": lambda build, x: build.node(
        "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1
    ),
    "ceil average pool": lambda build, x: build.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "sum of channels": lambda build, x: build.node("Add", build.node("ReduceSum", x, build.integers(1)), x),
    "softmax": lambda build, x: build.node("Softmax", x, axis=1),
    "log softmax": lambda build, x: build.node("LogSoftmax", x, axis=1),
    "prelu": lambda build, x: build.node("PRelu", x, build.random(CHANNELS, 1, 1)),
    "unsqueezed": lambda build, x: build.node("Squeeze", build.node("Unsqueeze", x, build.integers(2)), build.integers(2)),
}


MORE_KINDS = (
    *MORE,
    *("Abs", "Celu", "Elu", "Erf", "Gelu", "HardSwish", "Mish", "Neg", "Selu", "Softplus", "Softsign", "GlobalMaxPool"),
)
KINDS = (
    *("conv", "strided conv", "dilated conv", "grouped conv", "residual", "concat", "add constant", "gate"),
    *("batch normalization", "clip", "pad and slice", "max pool", "average pool"),
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Identity"),
)


def random_pair(kinds: list[str], seed: int, *, change: str = "mask") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution, the given layers, global pooling and a linear layer.

    `change` tells how the sparse file differs: "mask" (2:4 on the convolutions), or "everything": all constants but limits,
    also biases and batch-norm statistics, moved by up to 5 %.
    """
    build = Builder(seed)
    x = build.conv("x", CHANNELS, CHANNELS)
    for kind in kinds:
        x = layer(build, kind, x)
    x = build.node("Flatten", build.node("ReduceMean", x, build.constant(np.array([2, 3], dtype=np.int64))))
    weight = build.random(CLASSES, CHANNELS)
    x = build.node("Gemm", x, weight, build.random(CLASSES), transB=1)
    dense = build.model(x, ("batch", CLASSES))
    sparse = onnx.ModelProto()
    sparse.CopyFrom(dense)
    generator = np.random.default_rng(seed + 1)
    for tensor in sparse.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.ndim == 0 or tensor.name.startswith("fixed"):
            continue
        if change == "mask" and array.ndim == 4 and array.shape[1] % 4 == 0:
            keep = NMPattern(n=2, m=4).keep_largest(np.abs(array), group_axis=1)
            tensor.CopyFrom(numpy_helper.from_array(np.where(keep, array, np.float32(0)), tensor.name))
        if change == "everything":
            factor = generator.uniform(0.95, 1.05, array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array * factor, tensor.name))
    return dense, sparse


def as_pair(models: tuple[onnx.ModelProto, onnx.ModelProto]) -> Pair:
    """The two models as the certify stage sees them."""
    dense, sparse = (parse_graph(model.SerializeToString(), name="model") for model in models)
    return pair_graphs(dense, sparse)


def random_images(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, SIZE, SIZE), dtype=np.float32)
