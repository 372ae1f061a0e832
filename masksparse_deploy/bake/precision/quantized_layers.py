"""What an INT8 file holds, read from its graph; shares no code with what writes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Graph, Node

__all__ = ["Grid", "QuantizedLayer", "QuantizedWeight", "quantized_layers"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "Gelu")


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """The parameters of one QuantizeLinear or DequantizeLinear.

    Attributes:
        scale: as stored; empty where it is not a constant.
        zero_point: as stored; None where it is left out or not a constant.
        axis: the axis that several scales lie along.
    """

    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[Any] | None
    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedWeight:
    """A weight as integers.

    Attributes:
        stored_name: the constant, INT8, or FP32 in front of a QuantizeLinear.
        levels: the integers that the layer multiplies by, in the shape of the constant.
        grid: of the DequantizeLinear.
        quantizer: of the QuantizeLinear in front of it; None for a constant stored as integers.
    """

    stored_name: str
    levels: npt.NDArray[np.integer[Any]]
    grid: Grid
    quantizer: Grid | None


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedLayer:
    """A convolution or matrix product by a constant.

    Attributes:
        node: the operator.
        weight: None if it is not read through DequantizeLinear.
        input: of the DequantizeLinear that the operator reads its activations from, and of the QuantizeLinear before it; None
            if it reads them in float.
        output_name: the last tensor of the kernel that the operator, a residual addition and an activation are fused into.
        output: of the QuantizeLinear behind it; None if there is none.
    """

    node: Node
    weight: QuantizedWeight | None
    input: Grid | None
    output_name: str
    output: Grid | None

    @property
    def output_channel_axis(self) -> int:
        """The axis of the weight that holds output channels."""
        if self.node.op == "MatMul":
            return (self.weight.levels.ndim if self.weight is not None else 2) - 1
        return 0 if self.node.op == "Conv" or self.node.attributes.get("transB", 0) else 1


def quantized_layers(graph: Graph) -> tuple[QuantizedLayer, ...]:
    """All convolutions and matrix products whose weight does not depend on the input, in graph order."""
    view = _View(graph)
    return tuple(
        QuantizedLayer(
            node=node,
            weight=view.weight(node.inputs[1]),
            input=view.input_grid(node.inputs[0]),
            output_name=(end := view.fused_end(node.outputs[0])),
            output=view.output_grid(end),
        )
        for node in graph.nodes
        if not node.domain and node.op in _WEIGHTED and view.is_fixed(node.inputs[1])
    )


class _View:
    """Who writes and who reads each tensor of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._constants = graph.constants
        self._outputs = set(graph.outputs)
        self._writers: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}
        self._fixed = set(graph.constants)
        for node in graph.nodes:
            given = [name for name in node.inputs if name]
            if given and self._fixed.issuperset(given):
                self._fixed.update(node.outputs)
            self._writers.update(dict.fromkeys(node.outputs, node))
            for name in dict.fromkeys(given):
                self._readers.setdefault(name, []).append(node)

    def is_fixed(self, name: str) -> bool:
        return name in self._fixed

    def weight(self, name: str) -> QuantizedWeight | None:
        dequantizer = self._writer(name, "DequantizeLinear")
        if dequantizer is None:
            return None
        grid = self._grid(dequantizer)
        stored = dequantizer.inputs[0]
        quantizer = self._writer(stored, "QuantizeLinear")
        before = None
        if quantizer is not None:
            stored = quantizer.inputs[0]
            before = self._grid(quantizer)
        if stored not in self._constants:
            return None
        levels = self._constants[stored]
        if before is not None:
            levels = _quantized(levels, before)
        if levels.dtype.kind not in "iu":
            return None
        return QuantizedWeight(stored_name=stored, levels=levels, grid=grid, quantizer=before)

    def input_grid(self, name: str) -> Grid | None:
        dequantizer = self._writer(name, "DequantizeLinear")
        quantizer = self._writer(dequantizer.inputs[0], "QuantizeLinear") if dequantizer is not None else None
        return self._grid(quantizer) if quantizer is not None else None

    def output_grid(self, name: str) -> Grid | None:
        readers = self._readers.get(name, [])
        quantizers = [node for node in readers if node.op == "QuantizeLinear" and not node.domain]
        return self._grid(quantizers[0]) if quantizers and len(quantizers) == len(readers) else None

    def fused_end(self, name: str) -> str:
        """Follow what TensorRT fuses with a convolution, as long as nothing else reads the tensors between."""
        added = False
        while True:
            readers = self._readers.get(name, [])
            if name in self._outputs or any(node.domain for node in readers):
                return name
            kinds = {node.op: node for node in readers}
            if len(readers) == 1 and (kinds.keys() & set(_FUSED_ACTIVATIONS)):
                name = readers[0].outputs[0]
            elif len(readers) == 1 and "Add" in kinds:
                other = next((given for given in readers[0].inputs if given != name), None)
                residual = other is not None and not added and self.input_grid(other) is not None
                if other is None or not (residual or other in self._fixed):
                    return name
                added |= residual
                name = readers[0].outputs[0]
            elif len(readers) == 2 and set(kinds) == {"Sigmoid", "Mul"} and self._gates(kinds):
                name = kinds["Mul"].outputs[0]
            else:
                return name

    def _gates(self, swish: Mapping[str, Node]) -> bool:
        gate = swish["Sigmoid"].outputs[0]
        return gate in swish["Mul"].inputs and self._readers[gate] == [swish["Mul"]] and gate not in self._outputs

    def _writer(self, name: str, op: str) -> Node | None:
        node = self._writers.get(name)
        return node if node is not None and node.op == op and not node.domain else None

    def _grid(self, node: Node) -> Grid:
        scale = self._constants.get(node.inputs[1], np.empty(0, dtype=np.float32))
        zero_point = self._constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        return Grid(scale=scale, zero_point=zero_point, axis=int(node.attributes.get("axis", 1)))


def _quantized(array: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """QuantizeLinear as ONNX defines it, for the type of the zero point; the float array itself where that cannot be done."""
    zero_point = grid.zero_point
    if zero_point is None or zero_point.dtype.kind not in "iu" or grid.scale.size == 0:
        return array
    shape: tuple[int, ...] = ()
    if grid.scale.ndim == 1:
        axis = grid.axis % array.ndim
        shape = tuple(-1 if index == axis else 1 for index in range(array.ndim))
        if grid.scale.size != array.shape[axis] or zero_point.shape != grid.scale.shape:
            return array
    limits = np.iinfo(zero_point.dtype)
    with np.errstate(all="ignore"):  # a scale of 0 is found by the checks, not here
        levels = np.rint(array / grid.scale.reshape(shape)) + zero_point.astype(np.float64).reshape(shape)
        bounded: npt.NDArray[Any] = np.nan_to_num(np.clip(levels, limits.min, limits.max)).astype(zero_point.dtype)
    return bounded
