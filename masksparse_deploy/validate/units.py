"""What a runtime may compute in one kernel: a layer and what is fused with it, in INT8 up to the QuantizeLinear behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.positions import is_positions_node
from masksparse_deploy.validate.biases import bias_step

__all__ = ["Grid", "Unit", "unit_of"]

Array = npt.NDArray[Any]

# Elementwise operators that move no two values further apart than they are (LeakyRelu: by its slope): those that give one of
# the numbers they get, and those that round.
_EXACT = ("Relu", "Clip")
_ROUNDED = ("LeakyRelu", "Add")
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that a QuantizeLinear rounds to: step (level - zero_point), low <= level <= high."""

    step: float
    zero_point: int
    low: int
    high: int

    def clamp(self, values: Array) -> npt.NDArray[np.float64]:
        """What of the values the grid can reach, float64."""
        return np.clip(values, self.step * (self.low - self.zero_point), self.step * (self.high - self.zero_point))

    def nearest(self, values: Array) -> npt.NDArray[np.float64]:
        """The nearest numbers of the grid, float64; ties to even, as QuantizeLinear."""
        levels = np.clip(np.rint(values / self.step), self.low - self.zero_point, self.high - self.zero_point)
        return np.asarray(self.step * levels, dtype=np.float64)

    @property
    def reach(self) -> float:
        """The largest magnitude on the grid."""
        return self.step * max(self.high - self.zero_point, self.zero_point - self.low)


@dataclass(frozen=True, eq=False, kw_only=True)
class Unit:
    """A layer with what follows it up to the tensor that the engine is asked for.

    Attributes:
        layer: the Conv, Gemm or MatMul.
        precision: of the layer in the file: "fp32", "fp16", "bf16", "int8", or another dtype that has no bound.
        tail: elementwise operators behind it; of a floating-point layer only those that round nothing, such as the Where that
            masks positions.
        output: the tensor that is compared: what the DequantizeLinear behind the unit gives, else what the last operator gives.
        constants: that the tail reads, by name.
        grid: that `output` lies on; None for a floating-point output.
        grids: of the tensors read by layer and tail that lie on grids, by name.
        product_step: step of the products of integers, for all output channels or each; None unless it is an INT8 layer.
        obstacle: why the kernel may do something that is not covered, so that the unit ends early; None if nothing is left out.
    """

    layer: WeightedLayer
    precision: str
    tail: tuple[Node, ...]
    output: str
    constants: Mapping[str, Array]
    grid: Grid | None = None
    grids: Mapping[str, Grid] = field(default_factory=dict)
    product_step: npt.NDArray[np.float64] | None = None
    obstacle: str | None = None

    @property
    def input(self) -> str:
        """The tensor that the layer reads."""
        return self.layer.node.inputs[0]

    @property
    def others(self) -> tuple[str, ...]:
        """Tensors that the tail adds, constants apart."""
        own = {self.layer.node.outputs[0], *(node.outputs[0] for node in self.tail)}
        names = (name for node in self.tail for name in node.inputs if name)
        return tuple(dict.fromkeys(name for name in names if name not in own and name not in self.constants))


def unit_of(graph: Graph, layer: WeightedLayer) -> Unit:
    """The unit around a layer of `graph`; it is an INT8 one where both its factors are integers times constant scales."""
    step = bias_step(layer, graph)
    is_integer = step is not None and layer.quantized in ("int8", "uint8")
    is_integer = is_integer and _grid_behind(graph, layer.node.inputs[0]) is not None
    tail: list[Node] = []
    value, end, obstacle = layer.node.outputs[0], None, None
    while value not in graph.outputs:
        readers = [node for node in graph.nodes if value in node.inputs]
        end = _quantized_as(graph, value, readers) if is_integer else None
        if end is not None:
            break
        if len(readers) != 1 or not _is_covered(readers[0], graph, _ROUNDED if is_integer else ()):
            kinds = ", ".join(sorted({node.op for node in readers})) or "nothing"
            obstacle = f"behind it stands {kinds}, whose rounding in an INT8 kernel the bound does not cover"
            break
        tail.append(readers[0])
        value = readers[0].outputs[0]
    names = {name for node in tail for name in node.inputs if name}
    constants = {name: graph.constants[name] for name in names if name in graph.constants}
    if not is_integer:
        dtype = layer.weight.dtype.name
        return Unit(layer=layer, precision=_DTYPES.get(dtype, dtype), tail=tuple(tail), output=value, constants=constants)
    read = [layer.node.inputs[0], *names]
    return Unit(
        layer=layer,
        precision="int8",
        tail=tuple(tail),
        output=value if end is None else end,
        grid=None if end is None else _grid_behind(graph, end),
        grids={name: found for name in read if (found := _grid_behind(graph, name)) is not None},
        constants=constants,
        product_step=step,
        obstacle=_factors(layer.node) or obstacle,
    )


def _factors(node: Node) -> str | None:
    """Why a Gemm is more than a product of integers and a bias."""
    if any(node.attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta")) and node.op == "Gemm":
        return "its factors alpha and beta are not 1, which the bound of an INT8 kernel does not cover"
    return None


def _is_covered(node: Node, graph: Graph, rounded: Sequence[str]) -> bool:
    """Whether the error of a fused operator is known: adding another tensor of the same shape, or clamping by constants."""
    if is_positions_node(node) and node.op == "Where" and not rounded:  # gives one of the numbers it gets
        return all(name in graph.constants for name in (node.inputs[0], node.inputs[2]))
    if node.domain or node.op not in (*_EXACT, *rounded):
        return False
    if node.op == "Add":
        # an element that is broadcast would count once, and be in the output many times
        shapes = [graph.shapes.get(name) for name in (*node.inputs, *node.outputs) if name not in graph.constants]
        return node.inputs[0] != node.inputs[1] and None not in shapes and all(shape == shapes[-1] for shape in shapes)
    return all(not name or name in graph.constants for name in node.inputs[1:])


def _quantized_as(graph: Graph, value: str, readers: Sequence[Node]) -> str | None:
    """The output of the DequantizeLinear behind `value`, where a QuantizeLinear is the only operator that reads it."""
    if len(readers) != 1 or readers[0].op != "QuantizeLinear" or readers[0].inputs[0] != value:
        return None
    integers = readers[0].outputs[0]
    found = (node.outputs[0] for node in graph.nodes if node.op == "DequantizeLinear" and node.inputs[0] == integers)
    return next((name for name in found if _grid_behind(graph, name) is not None), None)


def _grid_behind(graph: Graph, tensor: str) -> Grid | None:
    """The grid of a tensor that a QuantizeLinear and a DequantizeLinear with the same constants give, one for all channels."""
    dequantizer = _maker(graph, tensor, "DequantizeLinear")
    quantizer = None if dequantizer is None else _maker(graph, dequantizer.inputs[0], "QuantizeLinear")
    if dequantizer is None or quantizer is None:
        return None
    found = [[graph.constants.get(name) for name in node.inputs[1:3]] for node in (quantizer, dequantizer)]
    for parameters in found:
        if len(parameters) != 2 or any(array is None or array.size != 1 for array in parameters):
            return None
    (scale, point), (other_scale, other_point) = found
    assert scale is not None and point is not None
    if scale != other_scale or point != other_point or point.dtype not in (np.int8, np.uint8):
        return None
    limits = np.iinfo(point.dtype)
    return Grid(step=float(scale.reshape(())), zero_point=int(point.reshape(())), low=int(limits.min), high=int(limits.max))


def _maker(graph: Graph, tensor: str, op: str) -> Node | None:
    return next((node for node in graph.nodes if tensor in node.outputs and node.op == op), None)
