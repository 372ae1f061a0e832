"""Small networks with masked positions in the form that baking gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.rewrite.rows.grouping import GroupCosts
from masksparse_deploy.rewrite.rows.transform import transform
from masksparse_deploy.rewrite.verify import differences

__all__ = ["ONLY_PRODUCTS", "Network", "findings", "in_rows", "residual_network"]

Array = npt.NDArray[Any]


class Network:
    """A graph that grows by one operator at a time; every method returns the name of the operator's output."""

    def __init__(self, size: int = 8, channels: int = 3, seed: int = 0, batch: int | str = "batch") -> None:
        self.random = np.random.default_rng(seed)
        self.shape = [batch, channels, size, size]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def constant(self, name: str, array: Any) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def convolve(
        self, x: str, name: str, channels: tuple[int, int], keep: Array | None = None, *, bias: bool = True, **attributes: Any
    ) -> str:
        """A convolution of 3x3 with padding 1, unless the attributes say otherwise, and its mask of positions."""
        geometry = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], **attributes}
        geometry = {key: value for key, value in geometry.items() if value is not None}
        shape = (channels[1], channels[0], *geometry["kernel_shape"])
        weight = self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        values = self.random.standard_normal(channels[1]).astype(np.float32) if bias else np.zeros(channels[1], np.float32)
        inputs = [x, self.constant(f"{name}.weight", weight.astype(np.float32))]
        inputs += [self.constant(f"{name}.bias", values)] if bias else []
        if keep is None:
            return self.add("Conv", inputs, name, **geometry)
        computed = self.add("Conv", inputs, name, **geometry)
        mask = [
            self.constant(f"{name}.keep", np.asarray(keep, dtype=np.bool_)[None, None]),
            self.constant(f"{name}.dropped", values.reshape(1, -1, 1, 1)),
        ]
        output = self.add("Where", [mask[0], computed, mask[1]], f"{name}.positions")
        self.nodes[-1].metadata_props.add(key=keys.POSITIONS, value="0" * 64)
        self.nodes[-1].metadata_props.add(key=keys.POSITIONS_LAYER, value=name)
        return output

    def mask(self, height: int, width: int | None = None, density: float = 0.6) -> Array:
        """Positions drawn at random, at least one of them kept and one dropped."""
        keep: Array = self.random.random((height, width or height)) < density
        keep[0, 0], keep[-1, -1] = True, False
        return keep

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_network(batch: int | str = "batch", density: float = 0.6) -> onnx.ModelProto:
    """A dense stem, two residual blocks (the second with a stride and a 1x1 convolution beside it), a pooling, a classifier."""
    net = Network(batch=batch)
    keep, small = net.mask(8, density=density), net.mask(4, density=density)
    x = net.add("Relu", [net.convolve("x", "stem", (3, 8))], "stem.relu")
    y = net.add("Relu", [net.convolve(x, "a.conv1", (8, 8), keep)], "a.relu1")
    y = net.convolve(y, "a.conv2", (8, 8), keep)
    x = net.add("Relu", [net.add("Add", [y, x], "a.add")], "a.relu2")
    y = net.add("Relu", [net.convolve(x, "b.conv1", (8, 16), small, strides=[2, 2])], "b.relu1")
    y = net.convolve(y, "b.conv2", (16, 16), small)
    shortcut = net.convolve(x, "b.shortcut", (8, 16), kernel_shape=[1, 1], pads=None, strides=[2, 2])
    x = net.add("Relu", [net.add("Add", [y, shortcut], "b.add")], "b.relu2")
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x], "pool")], "flat")
    weight = net.constant("fc.weight", net.random.standard_normal((5, 16)).astype(np.float32))
    return net.model(net.add("Gemm", [x, weight], "fc", transB=1))


# Operators cost nothing and weights are read for free, so that groups leave out all they can, as in large networks.
ONLY_PRODUCTS = GroupCosts(rows_of_weights=0, operators=0, gathered=0, added=0)


def in_rows(model: onnx.ModelProto, layers: Sequence[str], costs: GroupCosts | None = None) -> onnx.ModelProto:
    """The model with these layers in the form of rows."""
    parsed = ir.from_proto(model)
    transform(parsed, dict.fromkeys(layers, costs or GroupCosts()))
    written = ir.to_proto(parsed)
    onnx.checker.check_model(written, full_check=True)
    return written


def findings(model: onnx.ModelProto, rewritten: onnx.ModelProto) -> tuple[str, ...]:
    """What the check of the rewrite stage says."""
    graphs = [parse_graph(one.SerializeToString(), name=name) for one, name in ((model, "sparse"), (rewritten, "rewritten"))]
    return differences(*graphs)
