"""How much each operator can enlarge the l2 distance between two inputs of one sample; docs/bounds.md derives the constants."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from masksparse_deploy.certify.operator_norm import NormBound, NormCache
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import apply_node, conv_geometry, pad_widths, pool_geometry, slice_axes

__all__ = ["NoRuleError", "Rule", "lipschitz_rule", "variable_tensors", "weight_norm"]

Array = npt.NDArray[Any]
# Shapes of one sample by tensor name: (channels, height, width), (features,), ...
SampleShapes = Mapping[str, tuple[int, ...]]
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_Number = TypeVar("_Number", float, npt.NDArray[np.float64])


class NoRuleError(Exception):
    """There is no proved constant for an operator as it is used; the text names it, for the certificate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """||f(x) - f(y)|| <= the sum, or for a concatenation the root of the sum of squares, of factors[i] ||x_i - y_i||.

    `factors` has one entry for each variable input in order. Inputs that are constants don't count.
    """

    factors: tuple[float, ...]
    is_concatenation: bool = False

    def combine(self, distances: Sequence[_Number]) -> _Number:
        """The bound of the output's distance, from the bounds of the variable inputs' distances."""
        terms = [factor * distance for factor, distance in zip(self.factors, distances, strict=True)]
        total = terms[0] ** 2 if self.is_concatenation else terms[0]
        for term in terms[1:]:
            total = total + (term**2 if self.is_concatenation else term)
        return total**0.5 if self.is_concatenation else total


def variable_tensors(graph: Graph) -> frozenset[str]:
    """Names of the tensors that depend on the model's input."""
    names = set(graph.inputs)
    for node in graph.nodes:
        if names & set(node.inputs):
            names |= set(node.outputs)
    return frozenset(names)


def lipschitz_rule(node: Node, graph: Graph, variables: frozenset[str], shapes: SampleShapes, norms: NormCache) -> Rule:
    """The constants of `node`.

    Args:
        node: one that reads at least one variable tensor.
        graph: the graph it is in, for its weights.
        variables: `variable_tensors(graph)`.
        shapes: of the node's variable inputs and of its output.
        norms: operator norms known so far.

    Raises:
        NoRuleError: no constant is known, or none exists.
    """
    inputs = [name for name in node.inputs if name in variables]
    if any(name and name not in variables and name not in graph.constants for name in node.inputs):
        raise NoRuleError(f"{node.op} with a computed parameter")
    sources = [shapes[name] for name in inputs]
    result = shapes[node.outputs[0]]
    if node.op == "Concat":
        return Rule(factors=(1.0,) * len(inputs), is_concatenation=True)
    if node.op == "Add":
        # an input with fewer axes than the sum has its samples along another axis of it
        if any(len(shape) < len(result) for shape in sources):
            raise NoRuleError("Add across samples")
        # broadcasting repeats every element of a smaller input equally often
        return Rule(factors=tuple(math.sqrt(math.prod(result) / math.prod(shape)) for shape in sources))
    if len(inputs) != 1 or node.inputs[0] != inputs[0]:
        raise NoRuleError(f"{node.op} with a computed parameter")
    if node.op in ("Conv", "Gemm", "MatMul"):
        return Rule(factors=(weight_norm(node, graph.constants[node.inputs[1]], sources[0], norms).value,))
    if node.op not in _FACTORS:
        raise NoRuleError(node.op)
    return Rule(factors=(_FACTORS[node.op](node, graph, sources[0], result),))


def weight_norm(node: Node, weight: Array, shape: Sequence[int], norms: NormCache) -> NormBound:
    """A bound of the operator norm of a Conv, Gemm or MatMul with `weight` in place of its own.

    Args:
        node: the operator, for strides, padding, groups and scalars.
        weight: stored like the node's own, any floating dtype.
        shape: of the layer's input, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: not a two-dimensional convolution or product with a matrix.
    """
    if node.op == "Conv" and weight.ndim == 4:
        strides, pads, dilations = conv_geometry(node, shape[1:], weight.shape[2:])
        padded = (shape[1] + pads[0] + pads[2], shape[2] + pads[1] + pads[3])
        groups = int(node.attributes.get("group", 1))
        return norms.convolution(weight, strides=strides, dilations=dilations, groups=groups, padded_size=padded)
    if weight.ndim != 2 or node.attributes.get("transA", 0):
        raise NoRuleError(f"{node.op} with a weight of {weight.ndim} dimensions or a transposed input")
    bound = norms.matrix(weight)
    return NormBound(value=abs(node.attributes.get("alpha", 1.0)) * bound.value, method=bound.method)


def _one(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    return 1.0


def _slice(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    if 0 in slice_axes(_constants(node, graph), len(source) + 1):
        raise NoRuleError("Slice across samples")
    return 1.0


def _pad(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    if pad_widths(node, _constants(node, graph), len(source) + 1)[0] != (0, 0):
        raise NoRuleError("Pad across samples")
    return 1.0


def _constants(node: Node, graph: Graph) -> list[Array | None]:
    """The node's inputs where they are constants."""
    return [graph.constants.get(name) for name in node.inputs]


def _cast(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    # Bounds are about exact arithmetic, in which a number is the same in every floating-point format.
    if node.attributes["to"] not in _FLOATS:
        raise NoRuleError("Cast to integers")
    return 1.0


def _leaky_relu(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    return max(1.0, abs(float(node.attributes.get("alpha", 0.01))))


def _hard_sigmoid(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    return abs(float(node.attributes.get("alpha", 0.2)))


def _batch_normalization(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    scale, _, _, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:])
    return float(np.max(np.abs(scale) / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))))


def _window_overlap(kernel: Sequence[int], strides: Sequence[int]) -> int:
    """In how many windows one element can be."""
    return math.prod(math.ceil(k / s) for k, s in zip(kernel, strides, strict=True))


def _max_pool(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    kernel, strides, _ = pool_geometry(node, source[1:])
    return math.sqrt(_window_overlap(kernel, strides))


def _average_pool(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    kernel, strides, pads = pool_geometry(node, source[1:])
    smallest = float(math.prod(kernel))
    if any(pads) and not node.attributes.get("count_include_pad", 0):
        # the average with padding of ones is the share of a window's elements that are not padding
        counting = dataclasses.replace(node, attributes={**node.attributes, "count_include_pad": 1})
        smallest *= float(apply_node(counting, [np.ones((1, 1, *source[1:]))], batch=None).min())
    return math.sqrt(_window_overlap(kernel, strides) / smallest)


def _mean(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    # the mean of n elements is at most the l2 norm over sqrt(n); every output averages its own elements
    return math.sqrt(math.prod(result) / math.prod(source))


_FACTORS: Mapping[str, Callable[[Node, Graph, Sequence[int], Sequence[int]], float]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _one,
    "Dropout": _one,
    "Flatten": _one,
    "GlobalAveragePool": _mean,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _one,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": _one,
    "Reshape": _one,
    "Sigmoid": lambda node, graph, source, result: 0.25,
    "Slice": _slice,
    "Squeeze": _one,
    "Tanh": _one,
}
