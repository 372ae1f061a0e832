"""How much each operator can enlarge the l2 distance between two inputs of one sample; docs/bounds.md derives the constants."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.activations import slope
from masksparse_deploy.certify.norms.geometry import norm_geometry
from masksparse_deploy.certify.operator_norm import NormBound, NormCache
from masksparse_deploy.certify.rule import NoRuleError, Rule
from masksparse_deploy.graph.geometry import pool_geometry
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import axes_of, pad_widths, slice_axes
from masksparse_deploy.graph.normalization import NORMALIZATIONS, epsilon_of, normalized_axes
from masksparse_deploy.graph.operators import pool_divisors
from masksparse_deploy.graph.resize import resize_matrices

__all__ = ["constant_factor", "lipschitz_rule", "variable_tensors", "weight_norm"]

Array = npt.NDArray[Any]
# Shapes of one sample by tensor name: (channels, height, width), (features,), ...
SampleShapes = Mapping[str, tuple[int, ...]]

# Operators whose other inputs are shapes, which may be computed from the shape of the model's input.
_SHAPED = ("Reshape", "Resize")


def variable_tensors(graph: Graph) -> frozenset[str]:
    """Names of the tensors that depend on the values of the model's input."""
    names = set(graph.inputs)
    for node in graph.nodes:
        if names & set(node.inputs) and node.op != "Shape":
            names.update(name for name in node.outputs if name)
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
    if node.op not in _SHAPED and any(name and name not in variables and name not in graph.constants for name in node.inputs):
        raise NoRuleError(f"{node.op} with a computed parameter")
    sources = [shapes[name] for name in inputs]
    result = shapes[node.outputs[0]]
    if node.op == "Concat":
        return Rule(factors=(1.0,) * len(inputs), is_concatenation=True)
    # an input with fewer axes than the result has its samples along another axis of it
    if node.op in _BROADCASTING and any(len(shape) < len(result) for shape in sources):
        raise NoRuleError(f"{node.op} across samples")
    if node.op in ("Add", "Sub", "Sum"):
        # broadcasting repeats every element of a smaller input equally often
        return Rule(factors=tuple(math.sqrt(math.prod(result) / math.prod(shape)) for shape in sources))
    if node.op in ("Mul", "Div"):
        return Rule(factors=(constant_factor(node, graph.constants, inputs, sources[0], result),))
    if len(inputs) != 1 or node.inputs[0] != inputs[0]:
        raise NoRuleError(f"{node.op} with a computed parameter")
    if node.op in ("Conv", "Gemm", "MatMul"):
        return Rule(factors=(weight_norm(node, graph.constants[node.inputs[1]], sources[0], norms).value,))
    factor = slope(node, graph)
    if factor is None:
        if node.op not in _FACTORS:
            raise NoRuleError(node.op)
        factor = _FACTORS[node.op](node, graph, sources[0], result)
    return Rule(factors=(factor,))


def constant_factor(
    node: Node, constants: Mapping[str, Array], inputs: Sequence[str], source: Sequence[int], result: Sequence[int]
) -> float:
    """How much a Mul or Div by a constant enlarges distances.

    Args:
        node: the operator.
        constants: where its constant is.
        inputs: names of its variable inputs.
        source: shape of the variable one, without the batch.
        result: shape of the output.

    Raises:
        NoRuleError: both are variable, or the divisor is, or is zero somewhere.
    """
    if len(inputs) != 1 or (node.op == "Div" and node.inputs[0] not in inputs):
        raise NoRuleError(f"{node.op} by a computed tensor")
    (name,) = (name for name in node.inputs if name not in inputs)
    constant = constants[name].astype(np.float64)
    if node.op == "Div" and not constant.all():
        raise NoRuleError("Div by zero")
    squares = (1 / constant if node.op == "Div" else constant) ** 2
    if squares.ndim > len(result):
        squares = squares.max(axis=0)  # along the batch
    squares = np.broadcast_to(squares, result)
    repeated = tuple(axis for axis, length in enumerate(source) if length == 1 and result[axis] > 1)
    return float(np.sqrt(squares.sum(axis=repeated).max()))


def weight_norm(node: Node, weight: Array, shape: Sequence[int], norms: NormCache) -> NormBound:
    """A bound of the operator norm of a Conv, ConvTranspose, Gemm or MatMul with `weight` in place of its own.

    Args:
        node: the operator, for strides, padding, groups and scalars.
        weight: stored like the node's own, any floating dtype.
        shape: of the layer's input, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: neither a convolution of one to three dimensions nor a product with a matrix.
    """
    if node.op in ("Conv", "ConvTranspose") and 3 <= weight.ndim <= 5:
        geometry = norm_geometry(node, size=shape[1:], taps=weight.shape[2:])
        return norms.convolution(
            weight,
            strides=geometry.strides,
            dilations=geometry.dilations,
            groups=geometry.groups,
            padded_size=geometry.padded_size,
        )
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


def _batch_normalization(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    scale, _, _, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:])
    return float(np.max(np.abs(scale) / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))))


def _window_overlap(kernel: Sequence[int], strides: Sequence[int]) -> int:
    """In how many windows one element can be."""
    return math.prod(math.ceil(k / s) for k, s in zip(kernel, strides, strict=True))


def _max_pool(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    geometry = pool_geometry(node, source[1:])
    return math.sqrt(_window_overlap(geometry.kernel, geometry.strides))


def _average_pool(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    geometry = pool_geometry(node, source[1:])
    divisors = pool_divisors(
        source[1:],
        kernel=geometry.kernel,
        strides=geometry.strides,
        pads=geometry.pads,
        count_include_pad=bool(node.attributes.get("count_include_pad", 0)),
        extension=geometry.extension,
    )
    # a window of n elements that is divided by d >= n is at most sqrt(n) / d times their norm, and so is 1 / sqrt(d)
    return math.sqrt(_window_overlap(geometry.kernel, geometry.strides) / float(divisors.min()))


def _mean(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    # the mean of n elements is at most the l2 norm over sqrt(n); every output averages its own elements
    return math.sqrt(math.prod(result) / math.prod(source))


def _sum(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    return math.sqrt(math.prod(source) / math.prod(result))


def _reduced(
    function: Callable[[Node, Graph, Sequence[int], Sequence[int]], float],
) -> Callable[[Node, Graph, Sequence[int], Sequence[int]], float]:
    """The same function for a Reduce operator that leaves the batch alone."""

    def factor(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
        rank = len(source) + 1
        axes = axes_of(node, _constants(node, graph), rank)
        if axes is None and node.attributes.get("noop_with_empty_axes", 0):
            return 1.0
        if axes is None or 0 in axes:
            raise NoRuleError(f"{node.op} across samples")
        return function(node, graph, source, result)

    return factor


def _transpose(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    if 0 not in node.attributes.get("perm", ())[:1]:
        raise NoRuleError("Transpose across samples")
    return 1.0


def _unsqueeze(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    given = node.attributes.get("axes")
    axes = graph.constants[node.inputs[1]].reshape(-1).tolist() if given is None else given
    if any(int(axis) % (len(result) + 1) == 0 for axis in axes):
        raise NoRuleError("Unsqueeze across samples")
    return 1.0


def _resize(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    # a product of one matrix for each axis, whose norm is the product of theirs; computed sizes are those of the result
    scales = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    matrices = resize_matrices(node, (1, *source), scales, np.array((1, *result)))
    if matrices[0] is not None:
        raise NoRuleError("Resize across samples")
    # a relative 1e-9 for the rounding of the singular values
    return math.prod(float(np.linalg.norm(matrix, 2)) for matrix in matrices if matrix is not None) * (1 + 1e-9)


def _softmax(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    axis = int(node.attributes.get("axis", -1)) % (len(source) + 1)
    if axis == 0:
        raise NoRuleError(f"{node.op} across samples")
    # diag(p) - p p^T has rows with absolute sums 2 p (1 - p) <= 1/2; ||I - 1 p^T|| is largest where p has one element: sqrt(n)
    return 0.5 if node.op == "Softmax" else math.sqrt(source[axis - 1])


def _normalization(node: Node, graph: Graph, source: Sequence[int], result: Sequence[int]) -> float:
    if 0 in normalized_axes(node, len(source) + 1):
        raise NoRuleError(f"{node.op} across samples")
    if epsilon_of(node) <= 0:
        raise NoRuleError(f"{node.op} with epsilon 0")
    # true for all inputs, but so large that the recursions over samples take the one of certify.local
    return float(np.abs(graph.constants[node.inputs[1]].astype(np.float64)).max()) / math.sqrt(epsilon_of(node))


_BROADCASTING = ("Add", "Div", "Mul", "Sub", "Sum")
_FACTORS: Mapping[str, Callable[[Node, Graph, Sequence[int], Sequence[int]], float]] = {
    **dict.fromkeys(NORMALIZATIONS, _normalization),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Flatten": _one,
    "GlobalAveragePool": _mean,
    "GlobalMaxPool": _one,
    "LogSoftmax": _softmax,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMax": _reduced(_one),
    "ReduceMean": _reduced(_mean),
    "ReduceSum": _reduced(_sum),
    "Reshape": _one,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _one,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
