"""The product of two computed tensors: a b - a~ b~ = a (b - b~) + b~ (a - a~), element by element."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.rules import NoRuleError, Rule, Surroundings

__all__ = ["Ball", "peak_of", "product_of_balls", "product_of_samples"]

Array = npt.NDArray[Any]

# The largest absolute value of what these give, whatever they are given.
_AT_MOST_ONE = ("Erf", "HardSigmoid", "Sigmoid", "Softmax", "Softsign", "Tanh")
# What these give are elements of their input, or averages of some, or zero.
_NOT_LARGER = (
    *("AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax"),
    *("ReduceMean", "Relu", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True, kw_only=True)
class Ball:
    """What holds for a tensor whatever the input within the radius.

    Attributes:
        norm: bounds ||x|| in the dense network.
        distance: bounds ||x - x~||.
        peak: bounds every |x_i| and |x~_i|.
    """

    norm: float
    distance: float
    peak: float

    @property
    def sparse_norm(self) -> float:
        """Bounds ||x~||, by the triangle inequality, and so does it bound the largest element."""
        return self.norm + self.distance


def product_of_balls(node: onnx.NodeProto, around: Surroundings, a: Ball, b: Ball) -> Ball:
    """The same for the product of two tensors.

    Raises:
        NoRuleError: a factor has no axis for samples.
    """
    result = around.shapes[node.output[0]]
    copies = [_copies(around.shapes[name], result) for name in node.input]
    # an element of one factor meets copies of one element of the other, or elements that are all different
    with_a = min(b.peak * copies[0], b.sparse_norm * copies[1])
    with_b = min(a.peak * copies[1], a.sparse_norm * copies[0])
    return Ball(
        norm=min(with_b * b.norm, with_a * a.norm),
        distance=with_b * b.distance + with_a * a.distance,
        peak=a.peak * b.peak,
    )


def product_of_samples(
    dense: Sequence[Array], sparse: Sequence[Array], shape: tuple[int, ...]
) -> tuple[Rule, tuple[Array, Array]]:
    """For given samples: the rule in l2, whose factors are (count,), and what elements' distances are multiplied with.

    Args:
        dense: the two factors in the dense network, (count, ...).
        sparse: the same in the sparse network.
        shape: of the product.

    Raises:
        NoRuleError: a factor has no axis for samples.
    """
    if any(array.ndim < len(shape) for array in dense):
        raise NoRuleError("Mul across samples")
    met_by_a, met_by_b = np.abs(sparse[1]), np.abs(dense[0])
    factors = _largest_met(met_by_a, dense[0].shape, shape), _largest_met(met_by_b, dense[1].shape, shape)
    return Rule(factors=factors), (met_by_a, met_by_b)


def peak_of(node: onnx.NodeProto, around: Sequence[Surroundings], inputs: Sequence[Ball], found: Ball) -> Ball:
    """`found` with what the operator itself says about its largest element."""
    peak = math.inf
    if node.op_type in _AT_MOST_ONE:
        peak = 1.0
    elif node.op_type == "Clip":
        peak = max(_limit(node, network) for network in around)
    elif node.op_type in _NOT_LARGER:
        peak = max(ball.peak for ball in inputs)
    return replace(found, peak=min(peak, found.peak, found.sparse_norm))


def _limit(node: onnx.NodeProto, around: Surroundings) -> float:
    limits = [around.constant(node, place) for place in (1, 2)]
    known = [float(np.abs(limit).max()) for limit in limits if limit is not None]
    return max(known) if len(known) == 2 else math.inf


def _copies(source: Sequence[int], result: Sequence[int]) -> float:
    if len(source) < len(result):
        raise NoRuleError("Mul across samples")
    return math.sqrt(math.prod(result) / math.prod(source))


def _largest_met(other: Array, own: Sequence[int], shape: tuple[int, ...]) -> Array:
    """For each sample the largest norm of what one element of a tensor of shape `own` is multiplied with."""
    squares = np.broadcast_to(np.square(other), shape)
    repeated = tuple(axis for axis in range(1, len(shape)) if own[axis] == 1 < shape[axis])
    largest: Array = np.sqrt(squares.sum(axis=repeated).reshape(len(squares), -1).max(axis=1))
    return largest
