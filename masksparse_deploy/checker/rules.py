"""Lipschitz constants of ONNX operators, from the table of docs/bounds.md, section 3."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.activations import slope_of
from masksparse_deploy.checker.network import Network, attributes_of
from masksparse_deploy.checker.operators import apply

__all__ = ["NoRuleError", "Rule", "Surroundings", "rule_of"]

Array = npt.NDArray[Any]
_Number = TypeVar("_Number", float, npt.NDArray[np.float64])
_REAL = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class NoRuleError(Exception):
    """The checker has no constant for an operator as it is used; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """||f(x) - f(y)|| is at most the sum over the variable inputs of factor times distance, or the root of its squares' sum."""

    factors: tuple[float, ...]
    is_concatenation: bool = False

    def combine(self, distances: Sequence[_Number]) -> _Number:
        """The output's distance from those of the variable inputs, in order."""
        terms = [factor * distance for factor, distance in zip(self.factors, distances, strict=True)]
        total = terms[0] ** 2 if self.is_concatenation else terms[0]
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
        at_zero: f(0) of the nodes for which it is known already, by name.
    """

    network: Network
    variables: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    norm: Callable[[onnx.NodeProto], float]
    at_zero: dict[str, Array] = field(default_factory=dict)

    def constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """A constant input of `node`, None if it is left out."""
        name = node.input[position] if len(node.input) > position else ""
        return self.network.constants[name] if name else None


def rule_of(node: onnx.NodeProto, around: Surroundings) -> Rule:
    """The constants of a node that reads at least one variable tensor.

    Raises:
        NoRuleError: none is known for the operator as it is used.
        KeyError: the shape of an input or of the output is not known.
    """
    if node.domain:
        raise NoRuleError(f"{node.domain}.{node.op_type}")
    if sum(bool(name) for name in node.output) > 1:
        raise NoRuleError(f"{node.op_type} with {len(node.output)} outputs")
    inputs = [name for name in node.input if name in around.variables]
    fixed = around.network.constants
    if any(name and name not in around.variables and name not in fixed for name in node.input):
        raise NoRuleError(f"{node.op_type} with a computed parameter")
    result, sources = around.shapes[node.output[0]], [around.shapes[name] for name in inputs]
    if node.op_type == "Concat":
        if attributes_of(node)["axis"] % (len(result) + 1) == 0:
            raise NoRuleError("Concat across samples")
        return Rule(factors=(1.0,) * len(inputs), is_concatenation=True)
    if node.op_type == "Add":
        if any(len(shape) < len(result) for shape in sources):
            raise NoRuleError("Add across samples")
        # an input that is broadcast has as many copies of each element as the result is larger
        return Rule(factors=tuple(math.sqrt(math.prod(result) / math.prod(shape)) for shape in sources))
    if len(inputs) != 1 or node.input[0] != inputs[0]:
        raise NoRuleError(f"{node.op_type} with a computed parameter")
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return Rule(factors=(around.norm(node),))
    if (slope := slope_of(node)) is not None:
        return Rule(factors=(slope,))
    if node.op_type not in _FACTORS:
        raise NoRuleError(node.op_type)
    return Rule(factors=(_FACTORS[node.op_type](node, around, sources[0], result),))


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
    unusual = attributes.get("ceil_mode", 0) or attributes.get("storage_order", 0)
    if unusual or set(attributes.get("dilations") or (1,)) != {1}:
        raise NoRuleError(f"{node.op_type} with ceil_mode, storage_order or dilations")
    strides = attributes.get("strides") or (1,) * len(kernel)
    return math.prod(-(-k // s) for k, s in zip(kernel, strides, strict=True))


def _max_pool(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    return math.sqrt(_overlap(node))


def _average_pool(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    overlap = _overlap(node)
    # an average over n elements of a window has the norm of n entries 1 / n; fewer count at a border that padding reaches
    elements = np.ones((1, 1, *source[1:]))
    counted = onnx.NodeProto()
    counted.CopyFrom(node)
    kept = [attribute for attribute in counted.attribute if attribute.name != "count_include_pad"]
    del counted.attribute[:]
    counted.attribute.extend([*kept, onnx.helper.make_attribute("count_include_pad", 1)])
    size = math.prod(attributes_of(node)["kernel_shape"])
    share = 1.0 if attributes_of(node).get("count_include_pad", 0) else apply(counted, [elements], opset=_POOLS).min()
    return math.sqrt(overlap / (size * float(share)))


def _mean(node: onnx.NodeProto, around: Surroundings, source: Sequence[int], result: Sequence[int]) -> float:
    return math.sqrt(math.prod(result) / math.prod(source))


# A version of the operators in which AveragePool counts its padding on request.
_POOLS = 11

_FACTORS: Mapping[str, Callable[[onnx.NodeProto, Surroundings, Sequence[int], Sequence[int]], float]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Dropout": _dropout,
    "Flatten": _one,
    "GlobalAveragePool": _mean,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Reshape": _one,
    "Slice": _slice,
    "Squeeze": _one,
}
