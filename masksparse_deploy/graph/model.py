"""A read-only view of an ONNX graph as NumPy values, for everything that checks files instead of writing them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.layout import LayoutStep, as_stored, stored_axis

__all__ = ["Array", "Body", "Graph", "Node", "Shape", "WeightedLayer"]

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operator; `attributes` hold Python numbers, strings, tuples and NumPy arrays; "" is an input left out."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Graph:
    """A model's main graph, or the body of an If, Loop or Scan.

    Attributes:
        nodes: in topological order, as ONNX demands. The attributes that hold bodies tell their structure only; their weights
            are in `bodies`.
        constants: initializers and the values of Constant nodes, by name, in their stored dtype; a body may also read those of
            the graphs around it, which are not repeated here.
        constant_metadata: metadata_props of initializers and of the tensors of Constant nodes, by name.
        inputs: name -> shape of the inputs that are not initializers; None for a dynamic length, () for an input that is no
            tensor or whose number of axes the file does not tell.
        outputs: names of the graph's outputs.
        shapes: shapes of all tensors that ONNX shape inference can tell.
        opsets: domain -> version.
        metadata: metadata_props of the model.
        sha256: digest of the file. Where weights lie in other files, a digest over both: of the canonical JSON object with the
            file's own digest under "onnx" and those of the other files, by location, under "external".
        bodies: the bodies of this graph's If, Loop and Scan nodes, in graph order.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    constant_metadata: Mapping[str, Mapping[str, str]]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape]
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    sha256: str
    bodies: tuple["Body", ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Body:
    """The graph in an attribute, such as then_branch, of a node."""

    node: Node
    attribute: str
    graph: Graph


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightedLayer:
    """A convolution or matrix product with a constant weight.

    Attributes:
        node: the operator.
        weight_name: name of the operator's input.
        weight: the array that the operator multiplies by: (out_channels, in_channels / groups, kernel_h, kernel_w) for a
            convolution, (in_channels, out_channels / groups, kernel_h, kernel_w) for a transposed one, as the operator reads
            it otherwise. In the stored dtype unless it passes through Cast; float32 behind DequantizeLinear.
        stored_name: the initializer or Constant that the weight comes from; `weight_name` where it is read directly.
        stored: that constant, in its stored dtype and shape.
        stored_metadata: metadata_props of that initializer.
        route: types of the operators between the two, from the constant on.
        layout: how `stored` is turned round on the way (see graph.layout).
        quantized: name of the dtype that DequantizeLinear reads, such as "int8"; None without one.
        bias: (out_channels,) or None, looked through likewise.
        group_axis: the axis of `weight` that is multiplied and summed over input channels, along which N:M groups run.
        groups: 1 unless a grouped convolution.
        consumer_count: how many operator inputs in the file read the stored constant, directly or behind such a route.
    """

    node: Node
    weight_name: str
    weight: Array
    stored_name: str
    stored: Array
    stored_metadata: Mapping[str, str]
    route: tuple[str, ...]
    layout: tuple[LayoutStep, ...]
    quantized: str | None
    bias: Array | None
    group_axis: int
    groups: int
    consumer_count: int

    @property
    def output_axis(self) -> int:
        """The axis of `weight` that its output channels lie on, of `groups` together."""
        if self.node.op == "Conv" or (self.node.op == "Gemm" and self.group_axis == 1):
            return 0
        return 1 if self.node.op == "ConvTranspose" else max(self.weight.ndim - 1, 0)

    def group_axes(self, pattern: NMPattern) -> tuple[int, ...]:
        """The axes of `weight` along which groups of `pattern` run: of the input channels, if transposable the outputs' too."""
        return (self.group_axis, self.output_axis) if pattern.transposable else (self.group_axis,)

    @property
    def kernel_positions(self) -> int:
        """kernel_h x kernel_w for a convolution, 1 for a matrix product."""
        return math.prod(self.weight.shape[2:]) if self.node.op in ("Conv", "ConvTranspose") else 1

    @property
    def weight_as_stored(self) -> Array:
        """`weight` in the shape of `stored`, for masks that are made for the stored constant."""
        return as_stored(self.weight, self.layout)

    @property
    def stored_group_axis(self) -> int | None:
        """The axis of `stored` along which N:M groups run; None where a Reshape splits or joins the input channels."""
        return stored_axis(self.group_axis, self.layout) if self.group_axis < self.weight.ndim else None
