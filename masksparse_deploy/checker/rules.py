"""Lipschitz constants of ONNX operators, from the table of docs/bounds.md, section 3."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.activations import slope_of
from masksparse_deploy.checker.gates import Gates
from masksparse_deploy.checker.network import Network, attributes_of, read_by
from masksparse_deploy.checker.operators import apply

__all__ = ["NoRuleError", "Rule", "Surroundings", "rule_of", "scaling"]

Array = npt.NDArray[Any]
_Number = TypeVar("_Number", float, npt.NDArray[np.float64])
_REAL = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class NoRuleError(Exception):
    """The checker has no constant for an operator as it is used; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """||f(x) - f(y)|| is at most the sum over tensors of factor times distance, or the root of the sum of their squares.

    The tensors are `Surroundings.sources` of the node; a factor is a number, or one for each sample, (count,).
    """

    factors: tuple[Any, ...]
    is_concatenation: bool = False

    def combine(self, distances: Sequence[_Number]) -> _Number:
        """The output's distance from those of the variable inputs, in order."""
        terms: list[_Number] = [factor * distance for factor, distance in zip(self.factors, distances, strict=True)]
        total: _Number = terms[0] ** 2 if self.is_concatenation else terms[0]
        for term in terms[1:]:
            total = total + (term**2 if self.is_concatenation else term)
        return total**0.5 if self.is_concatenation else total


@dataclass(frozen=True, eq=False, kw_only=True)
class Surroundings:
    """What a rule may look at.

    Attributes:
        network: the file.
        variables: names of tensors that depend on the input.
        shapes: of tensors, without the batch.
        norm: the operator norm of a layer of this file.
        gates: products of tensors with functions of themselves.
        at_zero: f(0) of the nodes for which it is known already, by the name of their output.
    """

    network: Network
    variables: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    norm: Callable[[onnx.NodeProto], float]
    gates: Gates
    at_zero: dict[str, Array] = field(default_factory=dict)

    def constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """A constant input of `node`, None if it is left out."""
        name = node.input[position] if len(node.input) > position else ""
        return self.network.constants[name] if name else None

    def sources(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The tensors whose distances decide about that of the output."""
        inputs = tuple(name for name in node.input if name in self.variables)
        gate = self.gates.find(node) if node.op_type in ("Mul", "Div") and len(inputs) == 2 else None
        return inputs if gate is None or gate.slope is None else (gate.source,)

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Whether `node` multiplies two tensors that are computed independently of each other."""
        both = node.op_type == "Mul" and not node.domain and set(node.input) <= self.variables
        return both and self.gates.find(node) is None


def rule_of(node: onnx.NodeProto, around: Surroundings) -> Rule:
    """The constants of a node that reads at least one variable tensor.

    Raises:
        NoRuleError: none is known for the operator as it is used.
        KeyError: the shape of an input or of the output is not known.
    """
    if node.domain:
        raise NoRuleError(f"{node.domain}.{node.op_type}")
    if read_by(node, bodies_only=True):
        raise NoRuleError(node.op_type)
    if sum(bool(name) for name in node.output) > 1:
        raise NoRuleError(f"{node.op_type} with {len(node.output)} outputs")
    inputs = [name for name in node.input if name in around.variables]
    fixed = around.network.constants
    is_shaped = node.op_type == "Reshape"  # to a shape that may be computed from that of the input
    if not is_shaped and any(name and name not in around.variables and name not in fixed for name in node.input):
        raise NoRuleError(f"{node.op_type} with a computed parameter")
    result, sources = around.shapes[node.output[0]], [around.shapes[name] for name in inputs]
    if node.op_type == "Concat":
        if attributes_of(node)["axis"] % (len(result) + 1) == 0:
            raise NoRuleError("Concat across samples")
        return Rule(factors=(1.0,) * len(inputs), is_concatenation=True)
    if node.op_type in ("Add", "Div", "Mul", "Sub", "Sum") and any(len(shape) < len(result) for shape in sources):
        raise NoRuleError(f"{node.op_type} across samples")
    if node.op_type in ("Add", "Sub", "Sum"):
        # an input that is broadcast has as many copies of each element as the result is larger
        return Rule(factors=tuple(math.sqrt(math.prod(result) / math.prod(shape)) for shape in sources))
    if node.op_type in ("Mul", "Div") and len(inputs) == 2:
        gate = around.gates.find(node)
        if gate is None or gate.slope is None:
            what = "a computed tensor" if gate is None else "a function of the same tensor"
            raise NoRuleError(f"{node.op_type} by {what}")
        return Rule(factors=(gate.slope,))
    if node.op_type in ("Mul", "Div"):
        return Rule(factors=(scaling(node, around),))
    if len(inputs) != 1 or node.input[0] != inputs[0]:
        raise NoRuleError(f"{node.op_type} with a computed parameter")
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return Rule(factors=(around.norm(node),))
    if (slope := slope_of(node, fixed)) is not None:
        return Rule(factors=(slope,))
    if node.op_type not in _FACTORS:
        raise NoRuleError(node.op_type)
    return Rule(factors=(_FACTORS[node.op_type](node, around, sources[0], result),))


def scaling(node: onnx.NodeProto, around: Surroundings, constant: Array | None = None) -> float:
    """How much a Mul or Div by a constant, or by `constant` instead, enlarges distances.

    Raises:
        NoRuleError: the divisor is variable, or zero somewhere.
    """
    (variable,) = (name for name in node.input if name in around.variables)
    if constant is None:
        (name,) = (name for name in node.input if name != variable)
        constant = around.network.constants[name].astype(np.float64)
        if node.op_type == "Div" and (node.input[0] != variable or not constant.all()):
            raise NoRuleError("Div by a computed tensor" if node.input[0] != variable else "Div by zero")
        constant = 1 / constant if node.op_type == "Div" else constant
    source, result = around.shapes[variable], around.shapes[node.output[0]]
    squares = np.square(constant)
    squares = squares.max(axis=0) if squares.ndim > len(result) else squares
    # an element that is broadcast is multiplied with several, whose squares add up
    repeated = tuple(axis for axis, length in enumerate(source) if length == 1 < result[axis])
    return math.sqrt(float(np.broadcast_to(squares, result).sum(axis=repeated).max()))


def _one(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    return 1.0


def _cast(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    if attributes_of(node)["to"] not in _REAL:
        raise NoRuleError("Cast to integers")
    return 1.0


def _dropout(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    training = around.constant(node, 2)
    if training is not None and training.any():
        raise NoRuleError("Dropout in training mode")
    return 1.0


def _slice(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    starts, axes = around.constant(node, 1), around.constant(node, 3)
    if starts is None:
        raise NoRuleError("Slice of an operator set before 10")
    cut = range(len(starts)) if axes is None else [int(axis) % (len(source) + 1) for axis in axes]
    if 0 in cut:
        raise NoRuleError("Slice across samples")
    return 1.0


def _pad(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    attributes = attributes_of(node)
    if attributes.get("mode", "constant") != "constant":
        raise NoRuleError(f"Pad with mode {attributes['mode']}")
    amounts, axes = around.constant(node, 1), around.constant(node, 3)
    widths = list(attributes["pads"] if amounts is None else amounts)
    padded = range(len(source) + 1) if axes is None else [int(axis) % (len(source) + 1) for axis in axes]
    of_samples = [widths[place] or widths[place + len(padded)] for place, axis in enumerate(padded) if axis == 0]
    if any(of_samples):
        raise NoRuleError("Pad across samples")
    return 1.0


def _batch_normalization(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    attributes = attributes_of(node)
    if attributes.get("training_mode", 0):
        raise NoRuleError("BatchNormalization in training mode")
    scale, variance = (around.network.constants[node.input[place]].astype(np.float64) for place in (1, 4))
    return float((np.abs(scale) / np.sqrt(variance + attributes.get("epsilon", 1e-5))).max())


def _overlap(node: onnx.NodeProto) -> int:
    """In how many windows of a pool one element can be."""
    attributes = attributes_of(node)
    kernel = attributes["kernel_shape"]
    if attributes.get("storage_order", 0) or set(attributes.get("dilations") or (1,)) != {1}:
        raise NoRuleError(f"{node.op_type} with storage_order or dilations")
    strides = attributes.get("strides") or (1,) * len(kernel)
    return math.prod(-(-k // s) for k, s in zip(kernel, strides, strict=True))


def _max_pool(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    return math.sqrt(_overlap(node))


def _average_pool(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    overlap = _overlap(node)
    if attributes_of(node).get("ceil_mode", 0):
        raise NoRuleError("AveragePool with ceil_mode")
    # an average over n elements of a window has the norm of n entries 1 / n; fewer count at a border that padding reaches
    elements = np.ones((1, 1, *source[1:]))
    counted = onnx.NodeProto()
    counted.CopyFrom(node)
    kept = [attribute for attribute in counted.attribute if attribute.name != "count_include_pad"]
    del counted.attribute[:]
    counted.attribute.extend([*kept, onnx.helper.make_attribute("count_include_pad", 1)])
    size = math.prod(attributes_of(node)["kernel_shape"])
    if attributes_of(node).get("count_include_pad", 0):
        return math.sqrt(overlap / size)
    try:
        share = float(apply(counted, [elements], opset=_POOLS).min())
    except Exception as error:  # the reference implementation raises unrelated types
        raise NoRuleError(f"{node.op_type} ({type(error).__name__} where it is computed)") from error
    return math.sqrt(overlap / (size * share))


def _mean(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    _refuse_axis_of_samples(node, around, source)
    return math.sqrt(math.prod(result) / math.prod(source))


def _sum(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    _refuse_axis_of_samples(node, around, source)
    return math.sqrt(math.prod(source) / math.prod(result))


def _largest(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    _refuse_axis_of_samples(node, around, source)
    return 1.0


def _refuse_axis_of_samples(node: onnx.NodeProto, around: Surroundings, source: Sequence[int]) -> None:
    """Global pools leave the first two axes alone; Reduce operators say which they reduce, all if they do not."""
    if not node.op_type.startswith("Reduce"):
        return
    attributes, given = attributes_of(node), around.constant(node, 1)
    axes = attributes.get("axes") if given is None else given.reshape(-1).tolist()
    is_nothing = not axes and attributes.get("noop_with_empty_axes", 0)
    if not is_nothing and (not axes or any(int(axis) % (len(source) + 1) == 0 for axis in axes)):
        raise NoRuleError(f"{node.op_type} across samples")


def _transpose(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    if list(attributes_of(node).get("perm", ()))[:1] != [0]:
        raise NoRuleError("Transpose across samples")
    return 1.0


def _unsqueeze(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    given = around.constant(node, 1)
    axes = attributes_of(node)["axes"] if given is None else given.reshape(-1).tolist()
    if any(int(axis) % (len(result) + 1) == 0 for axis in axes):
        raise NoRuleError("Unsqueeze across samples")
    return 1.0


def _softmax(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    axis = int(attributes_of(node).get("axis", -1)) % (len(source) + 1)
    if axis == 0 or around.network.opset < 13:  # before, several axes counted as one
        raise NoRuleError(f"{node.op_type} across samples" if axis == 0 else f"{node.op_type} of an operator set before 13")
    return 0.5 if node.op_type == "Softmax" else math.sqrt(source[axis - 1])


# A version of the operators in which AveragePool counts its padding on request.
_POOLS = 11

_FACTORS: Mapping[str, Callable[[onnx.NodeProto, Surroundings, Sequence[int], Sequence[int]], float]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Dropout": _dropout,
    "Flatten": _one,
    "GlobalAveragePool": _mean,
    "GlobalMaxPool": _largest,
    "LogSoftmax": _softmax,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "Reshape": _one,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _one,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
